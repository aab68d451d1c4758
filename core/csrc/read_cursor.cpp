#include "read_cursor.hpp"

#include <algorithm>
#include <cerrno>

#include "env.hpp"
#include "error.hpp"

namespace sllm {
namespace {

// Interrupted or postponed this often in a row, a read is taken for broken.
constexpr unsigned kMaxStalls = 100;

}  // namespace

size_t ReadCursor::length() const {
  const uint64_t end = direct_ ? (end_ + kPage - 1) / kPage * kPage : end_;
  return static_cast<size_t>(end - at_);
}

bool ReadCursor::Advance(int64_t result, const std::string& path) {
  if (result < 0) {
    const int code = static_cast<int>(-result);
    const bool passing = code == EINTR || code == EAGAIN;
    if (passing && ++stalls_ <= kMaxStalls) return false;
    throw IoError(code, path,
                  ErrnoText("cannot read " + std::to_string(length()) + " bytes at offset " +
                                std::to_string(at_),
                            code));
  }
  const uint64_t reached = at_ + static_cast<uint64_t>(result);
  if (reached >= end_) return true;
  // Direct reads can only go on from a page boundary.
  const uint64_t resume = direct_ ? reached / kPage * kPage : reached;
  if (resume > at_) {
    at_ = resume;
    stalls_ = 0;
    came_empty_ = false;
    return false;
  }
  // Nothing gained. At a true end of file asking again yields the same; ask once more, because a
  // signal may also have cut a direct read below one page.
  ++stalls_;
  if (!came_empty_) {
    came_empty_ = true;
    return false;
  }
  throw IoError(EIO, path,
                "file ends at offset " + std::to_string(reached) + ", expected size " +
                    std::to_string(file_size_) + ": it was truncated while being read");
}

}  // namespace sllm
