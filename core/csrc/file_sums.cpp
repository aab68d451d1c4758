#include "file_sums.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "crc32c.hpp"
#include "error.hpp"
#include "read_cursor.hpp"

namespace sllm {
namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;

class Summing {
 public:
  Summing(File* file, const std::string& path, uint64_t size, uint64_t chunk_size)
      : file_(file),
        path_(path),
        size_(size),
        chunk_size_(chunk_size),
        sums_(size / chunk_size + (size % chunk_size != 0 ? 1 : 0)) {}

  // Takes chunks until none is left; `stop` may be empty.
  void Work(const std::function<bool()>& stop) {
    try {
      std::vector<std::byte> buffer(static_cast<size_t>(std::min(kPiece, chunk_size_)));
      for (;;) {
        const uint64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= sums_.size()) return;
        const uint64_t begin = chunk * chunk_size_;
        const uint64_t end = begin + std::min(chunk_size_, size_ - begin);
        uint32_t sum = 0;
        for (uint64_t at = begin; at < end; at += kPiece) {
          if (stop && stop()) throw CancelledError();
          if (failed_.load(std::memory_order_relaxed)) return;
          const uint64_t length = std::min(kPiece, end - at);
          ReadPiece(buffer.data(), at, length);
          sum = Crc32c(sum, buffer.data(), static_cast<size_t>(length));
        }
        sums_[chunk] = sum;
      }
    } catch (...) {
      const std::scoped_lock lock(mutex_);
      if (!error_) error_ = std::current_exception();
      failed_.store(true, std::memory_order_relaxed);
    }
  }

  std::vector<uint32_t> Take() {
    if (error_) std::rethrow_exception(error_);
    return std::move(sums_);
  }

  size_t chunks() const { return sums_.size(); }

 private:
  void ReadPiece(std::byte* buffer, uint64_t offset, uint64_t length) {
    ReadCursor cursor(buffer, {offset, length}, size_, false);
    while (!cursor.Advance(file_->Read(cursor.to(), cursor.length(), cursor.offset()), path_)) {
      if (cursor.stalls() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  File* const file_;
  const std::string& path_;
  const uint64_t size_;
  const uint64_t chunk_size_;
  std::vector<uint32_t> sums_;  // each element written by one thread
  std::atomic<uint64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

std::vector<uint32_t> FileChunkSums(Env* env, const std::string& path, uint64_t chunk_size,
                                    unsigned threads, const std::function<bool()>& stop) {
  if (chunk_size == 0) throw std::invalid_argument("chunk size 0");
  std::unique_ptr<File> file;
  const int code = env->Open(path, OpenMode::kBuffered, &file);
  if (code != 0) throw IoError(-code, path, ErrnoText("cannot open file", -code));
  const int64_t size = file->Size();
  if (size < 0) {
    const int error = static_cast<int>(-size);
    throw IoError(error, path, ErrnoText("cannot get size", error));
  }
  Summing summing(file.get(), path, static_cast<uint64_t>(size), chunk_size);
  const size_t cores = std::max(1U, std::thread::hardware_concurrency());
  const size_t wanted = threads != 0 ? threads : std::min<size_t>(cores, 8);
  {
    std::vector<std::jthread> helpers;
    for (size_t i = 1; i < std::min(wanted, summing.chunks()); ++i) {
      try {
        helpers.emplace_back([&summing] { summing.Work({}); });
      } catch (const std::system_error&) {
        break;  // the threads there are do it alone
      }
    }
    summing.Work(stop);
  }
  return summing.Take();
}

}  // namespace sllm
