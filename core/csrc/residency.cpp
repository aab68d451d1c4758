#include "residency.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <vector>

#include "env.hpp"
#include "probe.hpp"

namespace sllm {

double ResidentByCachestat(int descriptor, uint64_t offset, uint64_t length) {
  constexpr long kCachestat = 451;  // the same number on every architecture
  struct {
    uint64_t offset, length;
  } const range{offset, length};
  struct {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } counts{};
  if (syscall(kCachestat, descriptor, &range, &counts, 0U) != 0) return -1;
  const uint64_t pages = (offset + length + kPage - 1) / kPage - offset / kPage;
  return std::min(1.0, static_cast<double>(counts.cached) / static_cast<double>(pages));
}

namespace {

// Since Linux 5.2 mincore answers "resident" about other people's files.
bool MincoreIsTruthful(int descriptor) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0) return false;
  if (status.st_uid == geteuid() || geteuid() == 0) return true;
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  return access(link.c_str(), W_OK) == 0;
}

}  // namespace

double ResidentByMincore(int descriptor, uint64_t offset, uint64_t length) {
  if (!MincoreIsTruthful(descriptor)) return -1;
  const uint64_t begin = offset / kPage * kPage;
  const size_t size = static_cast<size_t>(offset + length - begin);
  void* const map = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor,
                         static_cast<off_t>(begin));
  if (map == MAP_FAILED) return -1;
  std::vector<unsigned char> pages((size + kPage - 1) / kPage);
  const int failed = mincore(map, size, pages.data());
  munmap(map, size);
  if (failed != 0) return -1;
  const auto cached = std::count_if(pages.begin(), pages.end(),
                                    [](unsigned char page) { return (page & 1) != 0; });
  return static_cast<double>(cached) / static_cast<double>(pages.size());
}

double ResidentBySample(int descriptor, uint64_t offset, uint64_t length) {
  constexpr uint64_t kSamples = 64;
  const uint64_t samples = std::min(kSamples, (length + kPage - 1) / kPage);
  uint64_t cached = 0;
  for (uint64_t i = 0; i < samples; ++i) {
    std::byte byte{};
    iovec vector{&byte, 1};
    const auto at = static_cast<off_t>(offset + length / samples * i);
    const ssize_t got = preadv2(descriptor, &vector, 1, at, RWF_NOWAIT);
    if (got == 1) {
      ++cached;
    } else if (got < 0 && errno != EAGAIN) {
      return -1;
    }
  }
  return static_cast<double>(cached) / static_cast<double>(samples);
}

double ResidentFraction(int descriptor, uint64_t offset, uint64_t length) {
  if (length == 0) return 1;
  double fraction = ResidentByCachestat(descriptor, offset, length);
  if (fraction < 0) fraction = ResidentByMincore(descriptor, offset, length);
  if (fraction < 0) fraction = ResidentBySample(descriptor, offset, length);
  return fraction;
}

}  // namespace sllm
