// One file of a job: what is asked of it, and how far it has come.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "busy_clock.hpp"
#include "chunk_sums.hpp"
#include "env.hpp"
#include "method.hpp"
#include "plan.hpp"
#include "region.hpp"

namespace sllm {

// When checksums are compared: while bytes are copied anyway, or also where that takes a pass of its
// own (over a mapping).
enum class Verify { kNever, kCopied, kAlways };

struct FileRequest {
  std::string path;
  uint64_t expected_size = 0;
  std::vector<Extent> extents;
  Method method = Method::kAuto;
  uint64_t chunk_size = 0;
  std::vector<uint32_t> crc32c;
  Verify verify = Verify::kNever;
  std::shared_ptr<Region> into;
};

// Throws std::invalid_argument when the parts of the request contradict each other.
void CheckRequest(const FileRequest& request);

struct FileTask {
  FileTask(FileRequest request_in, uint64_t block_size);

  struct Setup {
    Env* env;
    RegionPool* pool;  // may be null
    bool huge_pages;
    int ring_error;
  };
  // Opens the file, checks its size, chooses the method, obtains the memory. Throws IoError,
  // std::bad_alloc, std::invalid_argument.
  void Prepare(const Setup& setup);

  // Throws IoError unless the file has just the expected size (now).
  void CheckSize() const;

  const FileRequest request;
  const std::vector<Block> blocks;

  // Written by Prepare, read-only afterwards.
  std::unique_ptr<File> cached;
  Choice choice;
  std::shared_ptr<Region> region;
  std::unique_ptr<ChunkSums> sums;

  std::atomic<bool> registered{false};  // some read went into registered memory

  BusyClock allocate_clock;
  BusyClock read_clock;
  BusyClock verify_clock;

  // Guarded by the job's mutex.
  bool prepared = false;
  bool finished = false;
  bool released = false;
  size_t next_block = 0;
  size_t blocks_done = 0;
  std::vector<bool> block_done;
  double started = 0;
  double finished_at = 0;
};

}  // namespace sllm
