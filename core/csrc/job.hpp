// A load: several files, read in order by native threads.
//
// One coordinator thread opens files and obtains memory ahead of the workers; the workers take
// blocks in file order, whichever file they belong to, so that the disk does not idle between
// files. Everything shared sits under one mutex: blocks are megabytes, so it is taken rarely.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "env.hpp"
#include "file_task.hpp"
#include "region.hpp"

namespace sllm {

struct JobOptions {
  unsigned threads = 0;      // 0 here and below: choose
  unsigned queue_depth = 0;  // blocks in flight over all threads, io_uring only
  uint64_t block_size = 0;
  bool huge_pages = true;
  bool register_buffers = false;  // io_uring, memory touched before; see README.md
  size_t prefetch_files = 0;      // 0: no limit
  std::shared_ptr<RegionPool> pool;
  Env* env = Env::Default();
};

struct FileStats {
  std::string method;
  std::string reason;
  double resident = 0;
  uint64_t nbytes = 0;
  double started = 0;
  double finished = 0;
  double allocate_seconds = 0;
  double read_seconds = 0;
  double verify_seconds = 0;
  bool verified = false;
};

class Job {
 public:
  using Deadline = Clock::time_point;

  // Throws std::invalid_argument on contradictory requests. Touches no file yet.
  Job(std::vector<FileRequest> requests, JobOptions options);
  // Cancels and joins.
  ~Job();
  // Destroys the job, or leaks it in a forked child: its threads live in the parent, and one of
  // them may have held the mutex.
  static void Destroy(Job* job);
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  // Throws std::logic_error when called twice.
  void Start();

  // The waiting calls return false when `deadline` passes first, throw the job's error once there
  // is one, and std::logic_error before Start.
  bool Wait(Deadline deadline);
  bool WaitRange(size_t file, uint64_t begin, uint64_t end, Deadline deadline);
  bool WaitRegion(size_t file, Deadline deadline, std::shared_ptr<Region>* region);

  void Release(size_t file);
  void Cancel();
  std::pair<uint64_t, uint64_t> Progress() const;
  std::vector<FileStats> Stats() const;
  size_t files() const { return tasks_.size(); }

 private:
  friend class Worker;
  struct Assignment {
    FileTask* task;
    size_t block;
  };

  // For workers. The next block in order; nothing when all are taken or the job stops, or at once
  // when none is ready and `wait` is false.
  std::optional<Assignment> Take(bool wait);
  void BlockRead(FileTask* task, size_t block);
  bool stopping() const { return stop_.load(std::memory_order_relaxed); }
  void Fail(std::exception_ptr error);

  void Coordinate();
  bool AwaitTurn(size_t file);
  void Publish(FileTask* task);
  void FinishFile(FileTask* task);
  void CheckStarted() const;
  FileTask& At(size_t file) const;
  double Now() const;

  const JobOptions options_;
  std::vector<std::unique_ptr<FileTask>> tasks_;
  uint64_t total_bytes_ = 0;
  int ring_error_ = 0;
  pid_t owner_ = 0;
  Clock::time_point start_{};

  mutable std::mutex mutex_;
  std::condition_variable changed_;   // progress, errors: for callers and the coordinator
  std::condition_variable has_work_;  // for workers
  std::deque<FileTask*> ready_;       // prepared files with blocks not taken yet
  bool started_ = false;
  bool all_published_ = false;
  size_t published_ = 0;
  size_t finished_ = 0;
  size_t released_ = 0;
  uint64_t done_bytes_ = 0;
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace sllm
