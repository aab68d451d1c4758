#include "chunk_sums.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "crc32c.hpp"
#include "error.hpp"

namespace sllm {

ChunkSums::ChunkSums(std::string path, uint64_t file_size, uint64_t chunk_size,
                     std::vector<uint32_t> expected, const std::vector<Block>& blocks)
    : path_(std::move(path)),
      file_size_(file_size),
      chunk_size_(chunk_size),
      expected_(std::move(expected)),
      blocks_(blocks),
      waiting_(blocks.size(), 1) {
  if (chunk_size == 0) throw std::invalid_argument("checksums without a chunk size");
  const uint64_t count = file_size / chunk_size + (file_size % chunk_size != 0 ? 1 : 0);
  if (expected_.size() != count) {
    throw std::invalid_argument(path_ + ": " + std::to_string(expected_.size()) +
                                " checksums for " + std::to_string(count) + " chunks");
  }
  chunks_.resize(count);
  for (size_t block = 0; block < blocks_.size(); ++block) {
    for (uint64_t c = blocks_[block].offset / chunk_size_;
         c * chunk_size_ < blocks_[block].end(); ++c) {
      Chunk& chunk = chunks_[c];
      if (!chunk.parts.empty()) continue;
      if (!Covers(blocks_, c * chunk_size_, ChunkEnd(c))) {
        complete_ = false;
        continue;
      }
      chunk.first_block = block;
      const size_t past = FirstBlockAfter(blocks_, ChunkEnd(c) - 1) + 1;
      chunk.parts.resize(past - block);
      chunk.missing = past - block;
      for (size_t b = block; b < past; ++b) ++waiting_[b];
    }
  }
}

uint64_t ChunkSums::ChunkEnd(uint64_t chunk) const {
  return std::min(file_size_, (chunk + 1) * chunk_size_);
}

uint64_t ChunkSums::PartLength(uint64_t chunk, size_t block) const {
  return std::min(ChunkEnd(chunk), blocks_[block].end()) -
         std::max(chunk * chunk_size_, blocks_[block].offset);
}

void ChunkSums::Add(size_t index, const Sum& sum, std::vector<size_t>* cleared) {
  const Block& block = blocks_[index];
  const auto clear_one = [&](size_t b) {
    if (--waiting_[b] == 0) cleared->push_back(b);
  };
  for (uint64_t c = block.offset / chunk_size_; c * chunk_size_ < block.end(); ++c) {
    Chunk& chunk = chunks_[c];
    if (chunk.parts.empty()) continue;  // never changes after construction: no lock needed
    const uint32_t part = sum(std::max(c * chunk_size_, block.offset), PartLength(c, index));
    const std::scoped_lock lock(mutex_);
    chunk.parts[index - chunk.first_block] = part;
    if (--chunk.missing != 0) continue;
    Compare(c);
    for (size_t i = 0; i < chunk.parts.size(); ++i) clear_one(chunk.first_block + i);
  }
  const std::scoped_lock lock(mutex_);
  clear_one(index);
}

void ChunkSums::Compare(uint64_t c) const {
  const Chunk& chunk = chunks_[c];
  uint32_t actual = chunk.parts.front();
  for (size_t i = 1; i < chunk.parts.size(); ++i) {
    actual = Crc32cCombine(actual, chunk.parts[i], PartLength(c, chunk.first_block + i));
  }
  if (actual != expected_[c]) {
    throw ChecksumError(path_, c, c * chunk_size_, expected_[c], actual);
  }
}

}  // namespace sllm
