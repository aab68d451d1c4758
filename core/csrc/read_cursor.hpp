// The progress of one block's read: what to ask for next, and what an answer means. The retry rules
// for short reads, EINTR, EAGAIN and files that end early are here, for every kind of reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "plan.hpp"

namespace sllm {

class ReadCursor {
 public:
  // `to` is where the block's first byte goes. With `direct`, requests keep to page boundaries and
  // may run past the end of the file, for which the memory needs room.
  ReadCursor(std::byte* to, const Block& block, uint64_t file_size, bool direct)
      : to_(to),
        begin_(block.offset),
        end_(block.end()),
        file_size_(file_size),
        direct_(direct),
        at_(block.offset) {}

  std::byte* to() const { return to_ + (at_ - begin_); }
  uint64_t offset() const { return at_; }
  size_t length() const;

  // Takes the result of the read just described (as File::Read). True when the block is complete,
  // false when the next read should be issued. Throws IoError naming `path`.
  bool Advance(int64_t result, const std::string& path);

  // How often in a row nothing was gained: the caller waits a little before it asks again.
  unsigned stalls() const { return stalls_; }

 private:
  std::byte* to_;
  uint64_t begin_;
  uint64_t end_;
  uint64_t file_size_;
  bool direct_;
  uint64_t at_;
  unsigned stalls_ = 0;
  bool came_empty_ = false;  // the last read gained nothing, without an error
};

}  // namespace sllm
