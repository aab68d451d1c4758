#include "statx_align.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace sllm {

uint32_t DirectAlignment(int descriptor) {
  // By offset and not through struct statx, whose STATX_DIOALIGN fields older headers lack.
  // Layout: linux/stat.h; its size is 256 bytes by definition.
  constexpr unsigned kDioAlign = 0x2000;
  constexpr size_t kMemoryAlignAt = 0x98;
  constexpr size_t kOffsetAlignAt = 0x9C;
  constexpr uint32_t kUnsaid = 512;
  alignas(8) std::array<unsigned char, 256> status{};
  if (syscall(SYS_statx, descriptor, "", AT_EMPTY_PATH, kDioAlign, status.data()) != 0) {
    return kUnsaid;
  }
  uint32_t mask = 0;
  uint32_t memory = 0;
  uint32_t offset = 0;
  std::memcpy(&mask, status.data(), sizeof mask);
  std::memcpy(&memory, status.data() + kMemoryAlignAt, sizeof memory);
  std::memcpy(&offset, status.data() + kOffsetAlignAt, sizeof offset);
  if ((mask & kDioAlign) == 0) return kUnsaid;
  if (memory == 0 || offset == 0) return 0;
  return std::max(memory, offset);
}

}  // namespace sllm
