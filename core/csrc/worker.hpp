// One reading thread of a job.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "env.hpp"
#include "job.hpp"
#include "read_cursor.hpp"

namespace sllm {

class Worker {
 public:
  // `depth`: blocks this worker keeps in flight on its ring.
  Worker(Job* job, unsigned depth) : job_(job), depth_(depth) {}
  // Runs until the job has no more blocks or stops. Reports errors to the job.
  void Run();

 private:
  struct Slot {
    FileTask* task = nullptr;
    size_t block = 0;
    ReadCursor cursor;
  };

  void Loop();
  void Begin(FileTask* task, size_t block);
  void ReadNow(FileTask* task, size_t block, bool direct);
  void Populate(FileTask* task, size_t block);
  void Enqueue(FileTask* task, size_t block);
  void RegisterMemory(FileTask* task);
  void Resubmit(uint64_t tag);
  void Collect();
  void Drain();
  void Done(FileTask* task, size_t block);
  uint32_t SumMapped(FileTask* task, uint64_t offset, uint64_t length);

  Job* const job_;
  const unsigned depth_;
  std::unique_ptr<Ring> ring_;
  const FileTask* registered_ = nullptr;  // whose memory the ring has registered
  bool may_register_ = true;
  std::vector<Slot> slots_;
  std::vector<uint64_t> free_slots_;
  unsigned in_flight_ = 0;
  std::vector<RingResult> results_;
  std::vector<std::byte> scratch_;
};

}  // namespace sllm
