// Compares a file's chunks with their checksums, block by block, in whatever order blocks come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "plan.hpp"

namespace sllm {

// A block's share of every chunk is summed while the block is hot in the cache; the shares are
// joined arithmetically, so a chunk's bytes are looked at only once. A chunk that the blocks do
// not cover wholly cannot be compared and is left out.
class ChunkSums {
 public:
  // Throws std::invalid_argument when the number of checksums does not fit the file.
  ChunkSums(std::string path, uint64_t file_size, uint64_t chunk_size,
            std::vector<uint32_t> expected, const std::vector<Block>& blocks);

  // CRC32C of `length` bytes of the file at `offset`, as they were read.
  using Sum = std::function<uint32_t(uint64_t offset, uint64_t length)>;

  // Block `index` was read. Appends to *cleared the blocks that thereby have nothing left to be
  // compared. Throws ChecksumError.
  void Add(size_t index, const Sum& sum, std::vector<size_t>* cleared);

  // True when every chunk that any block touches is compared.
  bool complete() const { return complete_; }

 private:
  struct Chunk {
    size_t first_block = 0;
    std::vector<uint32_t> parts;  // one a block; empty when the chunk is not wholly covered
    size_t missing = 0;
  };
  uint64_t ChunkEnd(uint64_t chunk) const;
  uint64_t PartLength(uint64_t chunk, size_t block) const;
  void Compare(uint64_t chunk) const;

  const std::string path_;
  const uint64_t file_size_;
  const uint64_t chunk_size_;
  const std::vector<uint32_t> expected_;
  const std::vector<Block>& blocks_;
  bool complete_ = true;

  std::mutex mutex_;
  std::vector<Chunk> chunks_;
  std::vector<size_t> waiting_;  // by block: its own read, and chunks not compared yet
};

}  // namespace sllm
