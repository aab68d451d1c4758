#include "region.hpp"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "error.hpp"

namespace sllm {
namespace {

size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

[[noreturn]] void ThrowMapError(int code, const std::string& path, size_t length) {
  if (code == ENOMEM) throw std::bad_alloc();
  throw IoError(code, path, ErrnoText("cannot map " + std::to_string(length) + " bytes", code));
}

}  // namespace

size_t RegionCapacity(size_t size) { return std::max(RoundUp(size, kPage), kPage); }

Memory::Memory(Env* env, std::byte* data, size_t capacity, bool huge_pages, bool is_map)
    : env_(env),
      data_(data),
      capacity_(capacity),
      huge_pages_(huge_pages),
      is_map_(is_map),
      slices_((capacity + kSlice - 1) / kSlice),
      touched_(new std::atomic<bool>[slices_]()) {}

std::unique_ptr<Memory> Memory::Anonymous(Env* env, size_t capacity, bool huge_pages) {
  // Below one huge page there is nothing to win, only 2 MiB to lose.
  const bool huge = huge_pages && capacity >= kSlice;
  std::byte* data = nullptr;
  const int code = env->MapAnonymous(capacity, huge, &data);
  if (code != 0) ThrowMapError(-code, "", capacity);
  return std::unique_ptr<Memory>(new Memory(env, data, capacity, huge, false));
}

std::unique_ptr<Memory> Memory::MapFile(Env* env, File* file, const std::string& path,
                                        size_t length) {
  std::byte* data = nullptr;
  const int code = env->MapFile(file, length, &data);
  if (code != 0) ThrowMapError(-code, path, length);
  return std::unique_ptr<Memory>(new Memory(env, data, length, false, true));
}

Memory::~Memory() { env_->Unmap(data_, capacity_); }

bool Memory::Touched(size_t begin, size_t end) const {
  for (size_t slice = begin / kSlice; slice * kSlice < end; ++slice) {
    if (!touched_[slice].load(std::memory_order_relaxed)) return false;
  }
  return true;
}

void Memory::Touch(size_t begin, size_t end) {
  for (size_t slice = begin / kSlice; slice * kSlice < end; ++slice) {
    if (touched_[slice].load(std::memory_order_relaxed)) continue;
    const size_t from = slice * kSlice;
    const size_t length = std::min(kSlice, capacity_ - from);
    const int code = env_->Populate(data_ + from, length, Access::kWrite);
    if (code == -ENOMEM) throw std::bad_alloc();
    if (code != 0) throw IoError(-code, "", ErrnoText("cannot touch memory", -code));
    touched_[slice].store(true, std::memory_order_relaxed);
  }
}

Region::Region(std::unique_ptr<Memory> memory, size_t size, std::weak_ptr<RegionPool> pool)
    : memory_(std::move(memory)), size_(size), pool_(std::move(pool)) {}

Region::~Region() {
  if (auto pool = pool_.lock()) pool->GiveBack(std::move(memory_));
}

std::shared_ptr<Region> RegionPool::Allocate(size_t size, bool huge_pages, bool touch) {
  const size_t capacity = RegionCapacity(size);
  std::unique_ptr<Memory> memory = TakeFit(capacity, huge_pages);
  if (!memory) memory = Memory::Anonymous(env_, capacity, huge_pages);
  // From here on the region owns it: a failing touch gives the memory back.
  auto region = std::make_shared<Region>(std::move(memory), size, weak_from_this());
  if (touch) TouchInParallel(&region->memory(), capacity);
  return region;
}

std::unique_ptr<Memory> RegionPool::TakeFit(size_t capacity, bool huge_pages) {
  // A held region up to this many times too big is still a good find: its surplus lies idle for
  // one load, whereas fresh memory has to be touched. Beyond, small files would eat big regions.
  constexpr size_t kWaste = 2;
  const std::scoped_lock lock(mutex_);
  auto best = held_.end();
  for (auto it = held_.begin(); it != held_.end(); ++it) {
    const size_t have = (*it)->capacity();
    if (have < capacity || have / kWaste > capacity) continue;
    if (huge_pages && capacity >= Memory::kSlice && !(*it)->huge_pages()) continue;
    if (best == held_.end() || have < (*best)->capacity()) best = it;
  }
  if (best == held_.end()) return nullptr;
  std::unique_ptr<Memory> found = std::move(*best);
  held_.erase(best);
  held_bytes_ -= found->capacity();
  return found;
}

void RegionPool::GiveBack(std::unique_ptr<Memory> memory) {
  if (memory->capacity() > keep_bytes_) return;
  std::vector<std::unique_ptr<Memory>> evicted;  // unmapped after the lock is gone: it is slow
  const std::scoped_lock lock(mutex_);
  while (held_bytes_ + memory->capacity() > keep_bytes_) {
    held_bytes_ -= held_.front()->capacity();
    evicted.push_back(std::move(held_.front()));
    held_.pop_front();
  }
  held_bytes_ += memory->capacity();
  held_.push_back(std::move(memory));
}

void RegionPool::Clear() {
  std::deque<std::unique_ptr<Memory>> gone;
  const std::scoped_lock lock(mutex_);
  gone.swap(held_);
  held_bytes_ = 0;
}

size_t RegionPool::held_bytes() const {
  const std::scoped_lock lock(mutex_);
  return held_bytes_;
}

void TouchInParallel(Memory* memory, size_t length) {
  // Page faults scale with cores until the memory's own bandwidth; more than this gains nothing.
  constexpr size_t kMaxThreads = 16;
  constexpr size_t kShare = Memory::kSlice * 8;
  std::atomic<size_t> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (;;) {
        const size_t begin = next.fetch_add(kShare, std::memory_order_relaxed);
        if (begin >= length) return;
        memory->Touch(begin, std::min(length, begin + kShare));
      }
    } catch (...) {
      next.store(length, std::memory_order_relaxed);
      const std::scoped_lock lock(mutex);
      error = std::current_exception();
    }
  };
  {
    const size_t cores = std::max(1U, std::thread::hardware_concurrency());
    const size_t helpers = std::min({kMaxThreads, cores, length / kShare + 1}) - 1;
    std::vector<std::jthread> threads;
    threads.reserve(helpers);
    for (size_t i = 0; i < helpers; ++i) {
      try {
        threads.emplace_back(work);
      } catch (const std::system_error&) {
        break;  // fewer helpers; this thread does the rest
      }
    }
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace sllm
