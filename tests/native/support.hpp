// Files with known bytes, and an Env that misbehaves on request.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "env.hpp"
#include "job.hpp"

namespace sllm {

std::vector<std::byte> RandomBytes(size_t size, uint32_t seed = 1);

// True when the region begins with these bytes.
bool SameBytes(const Region& region, const std::vector<std::byte>& expected);

// A file of its own under the temporary directory, gone at the end.
class TempFile {
 public:
  explicit TempFile(const std::vector<std::byte>& content);
  ~TempFile();
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string& path() const { return path_; }
  void Resize(uint64_t size) const;
  void Evict() const;  // written back first: dirty pages do not go

 private:
  std::string path_;
};

// Passes everything on to the real Env, but for what the hooks decide. Set hooks before use: they
// are called from the job's threads.
class FaultEnv final : public Env {
 public:
  // Called before every read, synchronous or queued. May shorten *length. A value is returned to
  // the reader in place of reading.
  std::function<std::optional<int64_t>(uint64_t offset, size_t* length)> on_read;
  // Called before every Populate; nonzero is returned in its place.
  std::function<int(Access access)> on_populate;
  std::atomic<int> open_error{0};
  std::atomic<int> direct_error{0};  // opening with OpenMode::kDirect
  std::atomic<int> anonymous_error{0};
  std::atomic<int> ring_error{0};
  std::atomic<int> submit_error{0};
  std::atomic<int> register_error{0};
  std::optional<double> resident;

  std::atomic<int> open_files{0};
  std::atomic<int> mappings{0};

  int Open(const std::string& path, OpenMode mode, std::unique_ptr<File>* file) override;
  int MapAnonymous(size_t length, bool huge_pages, std::byte** address) override;
  int MapFile(File* file, size_t length, std::byte** address) override;
  void Unmap(std::byte* address, size_t length) override;
  int Populate(std::byte* address, size_t length, Access access) override;
  std::unique_ptr<Ring> NewRing(unsigned depth, int* error) override;
};

bool HaveUring();
bool HaveDirect(const std::string& path);
// Those that work here, on the temporary directory's file system.
std::vector<Method> WorkingMethods();

FileRequest Request(const std::string& path, uint64_t size, std::vector<Extent> extents,
                    Method method = Method::kAuto);
// A deadline no healthy test comes near: only there so that a hang becomes a failure.
Job::Deadline Soon();

}  // namespace sllm
