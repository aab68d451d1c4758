#include "support.hpp"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <utility>

#include "probe.hpp"

namespace sllm {

std::vector<std::byte> RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

bool SameBytes(const Region& region, const std::vector<std::byte>& expected) {
  return region.size() >= expected.size() &&
         std::equal(expected.begin(), expected.end(), region.data());
}

TempFile::TempFile(const std::vector<std::byte>& content) {
  path_ = (std::filesystem::temp_directory_path() / "sllm-test-XXXXXX").string();
  const int descriptor = mkstemp(path_.data());
  if (descriptor < 0) throw std::runtime_error("mkstemp");
  size_t at = 0;
  while (at < content.size()) {
    const ssize_t put = write(descriptor, content.data() + at, content.size() - at);
    if (put <= 0) throw std::runtime_error("write");
    at += static_cast<size_t>(put);
  }
  close(descriptor);
}

TempFile::~TempFile() { unlink(path_.c_str()); }

void TempFile::Resize(uint64_t size) const {
  if (truncate(path_.c_str(), static_cast<off_t>(size)) != 0) throw std::runtime_error("truncate");
}

void TempFile::Evict() const {
  const int descriptor = open(path_.c_str(), O_RDONLY);
  fsync(descriptor);
  close(descriptor);
  EvictFile(path_);
}

namespace {

class FaultFile final : public File {
 public:
  FaultFile(FaultEnv* env, std::unique_ptr<File> inner) : env_(env), inner_(std::move(inner)) {
    ++env_->open_files;
  }
  ~FaultFile() override { --env_->open_files; }
  int64_t Read(std::byte* to, size_t length, uint64_t offset) override {
    if (env_->on_read) {
      if (const auto result = env_->on_read(offset, &length)) return *result;
    }
    return inner_->Read(to, length, offset);
  }
  int64_t Size() override { return inner_->Size(); }
  double Resident(uint64_t offset, uint64_t length) override {
    return env_->resident ? *env_->resident : inner_->Resident(offset, length);
  }
  int descriptor() const override { return inner_->descriptor(); }
  File* inner() const { return inner_.get(); }

 private:
  FaultEnv* const env_;
  const std::unique_ptr<File> inner_;
};

class FaultRing final : public Ring {
 public:
  FaultRing(FaultEnv* env, std::unique_ptr<Ring> inner) : env_(env), inner_(std::move(inner)) {}
  // A ring that goes while reads are under way lets the kernel write to memory freed after it.
  ~FaultRing() override { EXPECT_EQ(outstanding_, 0); }
  int Submit(const RingRead& read) override {
    if (const int error = env_->submit_error.load()) return -error;
    ++outstanding_;
    RingRead changed = read;
    if (env_->on_read) {
      size_t length = read.length;
      if (const auto result = env_->on_read(read.offset, &length)) {
        faked_.push_back({read.tag, *result});
        return 0;
      }
      changed.length = static_cast<uint32_t>(length);
    }
    return inner_->Submit(changed);
  }
  int Wait(std::vector<RingResult>* results, unsigned milliseconds) override {
    const size_t before = results->size();
    int code = 0;
    if (faked_.empty()) {
      code = inner_->Wait(results, milliseconds);
    } else {
      results->insert(results->end(), faked_.begin(), faked_.end());
      faked_.clear();
    }
    outstanding_ -= static_cast<int>(results->size() - before);
    return code;
  }
  int Register(std::byte* begin, size_t length) override {
    if (const int error = env_->register_error.load()) return -error;
    return inner_->Register(begin, length);
  }
  void CancelAll() override { inner_->CancelAll(); }

 private:
  FaultEnv* const env_;
  const std::unique_ptr<Ring> inner_;
  std::vector<RingResult> faked_;
  int outstanding_ = 0;
};

}  // namespace

int FaultEnv::Open(const std::string& path, OpenMode mode, std::unique_ptr<File>* file) {
  if (const int error = open_error.load()) return -error;
  if (mode == OpenMode::kDirect && direct_error.load() != 0) return -direct_error.load();
  std::unique_ptr<File> inner;
  const int code = Default()->Open(path, mode, &inner);
  if (code == 0) *file = std::make_unique<FaultFile>(this, std::move(inner));
  return code;
}

int FaultEnv::MapAnonymous(size_t length, bool huge_pages, std::byte** address) {
  if (const int error = anonymous_error.load()) return -error;
  const int code = Default()->MapAnonymous(length, huge_pages, address);
  if (code == 0) ++mappings;
  return code;
}

int FaultEnv::MapFile(File* file, size_t length, std::byte** address) {
  const int code = Default()->MapFile(file, length, address);
  if (code == 0) ++mappings;
  return code;
}

void FaultEnv::Unmap(std::byte* address, size_t length) {
  --mappings;
  Default()->Unmap(address, length);
}

int FaultEnv::Populate(std::byte* address, size_t length, Access access) {
  if (on_populate) {
    if (const int code = on_populate(access)) return code;
  }
  return Default()->Populate(address, length, access);
}

std::unique_ptr<Ring> FaultEnv::NewRing(unsigned depth, int* error) {
  if (ring_error.load() != 0) {
    *error = ring_error.load();
    return nullptr;
  }
  auto inner = Default()->NewRing(depth, error);
  return inner ? std::make_unique<FaultRing>(this, std::move(inner)) : nullptr;
}

bool HaveUring() {
  int error = 0;
  return Env::Default()->NewRing(1, &error) != nullptr;
}

bool HaveDirect(const std::string& path) {
  std::unique_ptr<File> file;
  return DirectRefusal(Env::Default(), path, &file).empty();
}

std::vector<Method> WorkingMethods() {
  std::vector<Method> methods{Method::kAuto, Method::kMap, Method::kBuffered};
  const TempFile file(RandomBytes(kPage));
  if (HaveDirect(file.path())) {
    methods.push_back(Method::kDirect);
    if (HaveUring()) methods.push_back(Method::kUring);
  }
  return methods;
}

FileRequest Request(const std::string& path, uint64_t size, std::vector<Extent> extents,
                    Method method) {
  FileRequest request;
  request.path = path;
  request.expected_size = size;
  request.extents = std::move(extents);
  request.method = method;
  return request;
}

Job::Deadline Soon() { return Clock::now() + std::chrono::minutes(2); }

}  // namespace sllm
