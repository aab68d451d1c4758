// The operating system, as the loader sees it. Tests put a faulty one in its place.
//
// Nothing here throws: calls return a byte count or a negative errno, so that the retry rules
// (EINTR, EAGAIN, short reads) live in one place above this line and can be tested there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sllm {

// Direct I/O and mappings work in these; a file system that wants more is read through the cache.
inline constexpr size_t kPage = 4096;

enum class OpenMode { kBuffered, kDirect };

class File {
 public:
  virtual ~File() = default;
  // Bytes read (fewer than asked is normal), 0 at the end of the file, or -errno.
  virtual int64_t Read(std::byte* to, size_t length, uint64_t offset) = 0;
  // Size in bytes or -errno.
  virtual int64_t Size() = 0;
  // Page-cache residency of [offset, offset + length), 0..1; -1 when it cannot be known.
  virtual double Resident(uint64_t offset, uint64_t length) = 0;
  virtual int descriptor() const = 0;
};

enum class Access { kRead, kWrite };

// A read to queue on a Ring; `tag` comes back with its result.
struct RingRead {
  int descriptor;
  std::byte* to;
  uint32_t length;
  uint64_t offset;
  uint64_t tag;
  bool registered = false;  // `to` lies within what was registered last
};

struct RingResult {
  uint64_t tag;
  int64_t result;  // as File::Read
};

// Asynchronous reads: one submission/completion queue, used by one thread.
class Ring {
 public:
  virtual ~Ring() = default;
  // 0 or -errno; on error nothing was queued.
  virtual int Submit(const RingRead& read) = 0;
  // Appends at least one result unless `milliseconds` pass first. 0 or -errno.
  virtual int Wait(std::vector<RingResult>* results, unsigned milliseconds) = 0;
  // Pins [begin, begin + length) once for all reads marked `registered`, in place of what was
  // registered before. 0 or -errno: -EINVAL from old kernels, -ENOMEM beyond RLIMIT_MEMLOCK.
  virtual int Register(std::byte* begin, size_t length) = 0;
  // Asks the kernel to end what is queued. The results still have to be collected.
  virtual void CancelAll() = 0;
};

// What Populate does before Linux 5.14: touches a byte of every page, changing none.
void TouchPages(std::byte* address, size_t length, Access access);

class Env {
 public:
  virtual ~Env() = default;

  virtual int Open(const std::string& path, OpenMode mode, std::unique_ptr<File>* file) = 0;
  // Fresh zeroed memory, aligned to 2 MiB when `huge_pages` are asked for. 0 or -errno.
  virtual int MapAnonymous(size_t length, bool huge_pages, std::byte** address) = 0;
  // Private, writable, copy-on-write mapping of the start of a file. 0 or -errno.
  virtual int MapFile(File* file, size_t length, std::byte** address) = 0;
  virtual void Unmap(std::byte* address, size_t length) = 0;
  // Makes pages present, reading (kRead) or allocating (kWrite) them as needed. 0 or -errno; a
  // mapped file that lost its end yields -EFAULT here, where a plain touch would raise SIGBUS.
  virtual int Populate(std::byte* address, size_t length, Access access) = 0;
  // Null, and *error set to an errno, when asynchronous reads are not to be had.
  virtual std::unique_ptr<Ring> NewRing(unsigned depth, int* error) = 0;

  static Env* Default();
};

}  // namespace sllm
