#include "plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "env.hpp"

namespace sllm {
namespace {

void CheckExtents(const std::vector<Extent>& extents, uint64_t file_size) {
  uint64_t previous_end = 0;
  for (size_t i = 0; i < extents.size(); ++i) {
    const Extent& extent = extents[i];
    const auto fail = [&](const char* what) {
      throw std::invalid_argument("extent " + std::to_string(i) + " (offset " +
                                  std::to_string(extent.offset) + ", length " +
                                  std::to_string(extent.length) + ") " + what);
    };
    if (extent.offset > file_size || extent.length > file_size - extent.offset) {
      fail("reaches past the end of the file");
    }
    if (extent.offset < previous_end) fail("overlaps or precedes the one before it");
    previous_end = extent.offset + extent.length;
  }
}

}  // namespace

std::vector<Block> PlanBlocks(const std::vector<Extent>& extents, uint64_t file_size,
                              uint64_t block_size) {
  if (block_size == 0 || block_size % kPage != 0) {
    throw std::invalid_argument("block size " + std::to_string(block_size) +
                                " is not a positive multiple of 4096");
  }
  CheckExtents(extents, file_size);
  std::vector<Block> blocks;
  size_t i = 0;
  while (i < extents.size()) {
    if (extents[i].length == 0) {
      ++i;
      continue;
    }
    uint64_t begin = extents[i].offset / kPage * kPage;
    uint64_t end = extents[i].offset + extents[i].length;
    for (++i; i < extents.size() && extents[i].offset <= end + kCoalesceGap; ++i) {
      if (extents[i].length != 0) end = extents[i].offset + extents[i].length;
    }
    end = std::min((end + kPage - 1) / kPage * kPage, file_size);
    while (begin < end) {
      const uint64_t cut = std::min(end, (begin / block_size + 1) * block_size);
      blocks.push_back({begin, cut - begin});
      begin = cut;
    }
  }
  return blocks;
}

size_t FirstBlockAfter(const std::vector<Block>& blocks, uint64_t offset) {
  const auto it = std::upper_bound(blocks.begin(), blocks.end(), offset,
                                   [](uint64_t at, const Block& b) { return at < b.end(); });
  return static_cast<size_t>(it - blocks.begin());
}

bool Covers(const std::vector<Block>& blocks, uint64_t begin, uint64_t end) {
  for (size_t i = FirstBlockAfter(blocks, begin); begin < end; ++i) {
    if (i == blocks.size() || blocks[i].offset > begin) return false;
    begin = blocks[i].end();
  }
  return true;
}

}  // namespace sllm
