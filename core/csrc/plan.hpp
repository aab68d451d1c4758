// From the byte ranges somebody wants to the aligned blocks that are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sllm {

struct Extent {
  uint64_t offset;
  uint64_t length;
};

// One read: starts on a page boundary and ends on one or at the end of the file.
struct Block {
  uint64_t offset;
  uint64_t length;
  uint64_t end() const { return offset + length; }
};

// Wanted ranges closer than this are read in one go: on a disk of 2 GB/s these bytes cost 30 us,
// less than another request.
inline constexpr uint64_t kCoalesceGap = 64 << 10;

// Blocks in file order that cover `extents` (ascending, disjoint, within the file), cut at
// multiples of `block_size`. Throws std::invalid_argument on bad extents or block size.
std::vector<Block> PlanBlocks(const std::vector<Extent>& extents, uint64_t file_size,
                              uint64_t block_size);

// True when `blocks` cover all of [begin, end).
bool Covers(const std::vector<Block>& blocks, uint64_t begin, uint64_t end);

// Index of the first block that ends after `offset` (blocks.size() when there is none).
size_t FirstBlockAfter(const std::vector<Block>& blocks, uint64_t offset);

}  // namespace sllm
