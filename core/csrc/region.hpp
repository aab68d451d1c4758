// Host memory that files are read into or mapped as, and the pool that keeps it touched.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>

#include "env.hpp"

namespace sllm {

// One mapping. Remembers which slices were touched: the first touch of fresh memory can cost more
// than reading the file, so nobody should pay it twice, nor for bytes that nobody asked for.
class Memory {
 public:
  static constexpr size_t kSlice = size_t{2} << 20;  // a huge page on x86-64 and most arm64

  // Both throw std::bad_alloc on ENOMEM, IoError on other errors.
  static std::unique_ptr<Memory> Anonymous(Env* env, size_t capacity, bool huge_pages);
  static std::unique_ptr<Memory> MapFile(Env* env, File* file, const std::string& path,
                                         size_t length);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::byte* data() const { return data_; }
  size_t capacity() const { return capacity_; }
  bool huge_pages() const { return huge_pages_; }
  bool is_map() const { return is_map_; }

  // True when every page of [begin, end) has been touched before.
  bool Touched(size_t begin, size_t end) const;
  // Makes the pages of [begin, end) present, slice by slice, skipping slices already done. Safe
  // from several threads at once, also next to reads into the same slice. Anonymous memory only.
  void Touch(size_t begin, size_t end);

 private:
  Memory(Env* env, std::byte* data, size_t capacity, bool huge_pages, bool is_map);

  Env* const env_;
  std::byte* const data_;
  const size_t capacity_;
  const bool huge_pages_;
  const bool is_map_;
  const size_t slices_;
  const std::unique_ptr<std::atomic<bool>[]> touched_;
};

class RegionPool;

// A user's hold on a Memory: `size` bytes of it are meant. Gives it back to its pool at the end.
class Region {
 public:
  Region(std::unique_ptr<Memory> memory, size_t size, std::weak_ptr<RegionPool> pool = {});
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  std::byte* data() const { return memory_->data(); }
  size_t size() const { return size_; }
  Memory& memory() const { return *memory_; }

 private:
  std::unique_ptr<Memory> memory_;
  const size_t size_;
  const std::weak_ptr<RegionPool> pool_;
};

class RegionPool : public std::enable_shared_from_this<RegionPool> {
 public:
  explicit RegionPool(size_t keep_bytes, Env* env = Env::Default())
      : env_(env), keep_bytes_(keep_bytes) {}

  // With `touch`, every page is present on return (several threads share the work).
  std::shared_ptr<Region> Allocate(size_t size, bool huge_pages, bool touch);
  void Clear();
  size_t held_bytes() const;

 private:
  friend class Region;
  void GiveBack(std::unique_ptr<Memory> memory);
  std::unique_ptr<Memory> TakeFit(size_t capacity, bool huge_pages);

  Env* const env_;
  const size_t keep_bytes_;
  mutable std::mutex mutex_;
  std::deque<std::unique_ptr<Memory>> held_;  // oldest first
  size_t held_bytes_ = 0;
};

// `size` rounded up to whole pages, at least one: the end of a direct read may run that far.
size_t RegionCapacity(size_t size);

// Touches all of [0, length) with a few threads.
void TouchInParallel(Memory* memory, size_t length);

}  // namespace sllm
