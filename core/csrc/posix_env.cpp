// Env on Linux.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "env.hpp"
#include "probe.hpp"
#include "statx_align.hpp"
#include "uring.hpp"

namespace sllm {
namespace {

// Linux 5.14; absent from older headers.
constexpr int kPopulateRead = 22;
constexpr int kPopulateWrite = 23;
constexpr size_t kHugePage = size_t{2} << 20;

class PosixFile final : public File {
 public:
  explicit PosixFile(int descriptor) : descriptor_(descriptor) {}
  ~PosixFile() override { close(descriptor_); }
  PosixFile(const PosixFile&) = delete;
  PosixFile& operator=(const PosixFile&) = delete;

  int64_t Read(std::byte* to, size_t length, uint64_t offset) override {
    const ssize_t got = pread(descriptor_, to, length, static_cast<off_t>(offset));
    return got < 0 ? -errno : got;
  }

  int64_t Size() override {
    struct stat status {};
    return fstat(descriptor_, &status) != 0 ? -errno : status.st_size;
  }

  double Resident(uint64_t offset, uint64_t length) override {
    return ResidentFraction(descriptor_, offset, length);
  }

  int descriptor() const override { return descriptor_; }

 private:
  const int descriptor_;
};

class PosixEnv final : public Env {
 public:
  int Open(const std::string& path, OpenMode mode, std::unique_ptr<File>* file) override {
    const int direct = mode == OpenMode::kDirect ? O_DIRECT : 0;
    int descriptor = -1;
    do {
      // Non-blocking, so that a FIFO somebody calls model.safetensors cannot hang us.
      descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | direct);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) return -errno;
    auto opened = std::make_unique<PosixFile>(descriptor);
    struct stat status {};
    if (fstat(descriptor, &status) != 0) return -errno;
    if (S_ISDIR(status.st_mode)) return -EISDIR;
    if (!S_ISREG(status.st_mode)) return -EINVAL;
    if (direct != 0) {
      const uint32_t align = DirectAlignment(descriptor);
      if (align == 0 || align > kPage) return -EINVAL;
    }
    *file = std::move(opened);
    return 0;
  }

  int MapAnonymous(size_t length, bool huge_pages, std::byte** address) override {
    const size_t slack = huge_pages ? kHugePage : 0;
    if (length + slack < length) return -ENOMEM;
    void* const map = mmap(nullptr, length + slack, PROT_READ | PROT_WRITE,
                           // A region spans its file, of which a small part may be wanted: only
                           // what is touched may count against the machine's memory.
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return -errno;
    auto* begin = static_cast<std::byte*>(map);
    if (huge_pages) {
      const size_t past = reinterpret_cast<uintptr_t>(begin) % kHugePage;
      const size_t head = past == 0 ? 0 : kHugePage - past;
      if (head != 0) munmap(begin, head);
      begin += head;
      if (slack != head) munmap(begin + length, slack - head);
      madvise(begin, length, MADV_HUGEPAGE);  // advice: small pages do as well
    }
    *address = begin;
    return 0;
  }

  int MapFile(File* file, size_t length, std::byte** address) override {
    void* const map = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
                           file->descriptor(), 0);
    if (map == MAP_FAILED) return -errno;
    *address = static_cast<std::byte*>(map);
    return 0;
  }

  void Unmap(std::byte* address, size_t length) override { munmap(address, length); }

  int Populate(std::byte* address, size_t length, Access access) override {
    static std::atomic<bool> unsupported{false};
    if (!unsupported.load(std::memory_order_relaxed)) {
      const int advice = access == Access::kWrite ? kPopulateWrite : kPopulateRead;
      int failed = 0;
      do {
        failed = madvise(address, length, advice);
      } while (failed != 0 && (errno == EINTR || errno == EAGAIN));
      if (failed == 0) return 0;
      if (errno != EINVAL) return -errno;
      unsupported.store(true, std::memory_order_relaxed);
    }
    TouchPages(address, length, access);
    return 0;
  }

  std::unique_ptr<Ring> NewRing(unsigned depth, int* error) override {
    return NewUring(depth, error);
  }
};

}  // namespace

void TouchPages(std::byte* address, size_t length, Access access) {
  for (size_t at = 0; at < length; at += kPage) {
    auto* const byte = reinterpret_cast<unsigned char*>(address + at);
    if (access == Access::kWrite) {
      // Atomic, because a read into a neighbouring part of the same slice may be under way.
      __atomic_fetch_or(byte, 0, __ATOMIC_RELAXED);
    } else {
      static_cast<void>(*static_cast<volatile unsigned char*>(byte));
    }
  }
}

Env* Env::Default() {
  static PosixEnv env;
  return &env;
}

}  // namespace sllm
