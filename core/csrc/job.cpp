#include "job.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "error.hpp"
#include "worker.hpp"

namespace sllm {
namespace {

// Defaults, measured; see README.md beside this file.
constexpr uint64_t kBlockSize = uint64_t{8} << 20;
constexpr unsigned kQueueDepth = 8;
constexpr unsigned kThreads = 4;

// The kernel reads at most 2 GiB at once and has at most 32768 entries in a ring.
constexpr uint64_t kMaxBlockSize = uint64_t{1} << 30;
constexpr unsigned kMaxQueueDepth = 4096;
constexpr unsigned kMaxThreads = 256;

// Files the coordinator opens before their turn: enough to hide opening and mapping, few enough
// for a hundred shards to stay clear of the limit on open files.
constexpr size_t kOpenAhead = 8;

JobOptions Resolve(JobOptions options) {
  if (options.block_size == 0) options.block_size = kBlockSize;
  if (options.queue_depth == 0) options.queue_depth = kQueueDepth;
  if (options.threads == 0) options.threads = kThreads;
  const auto check = [](const char* name, uint64_t value, uint64_t limit) {
    if (value <= limit) return;
    throw std::invalid_argument(std::string(name) + " " + std::to_string(value) +
                                " is beyond the limit of " + std::to_string(limit));
  };
  check("block size", options.block_size, kMaxBlockSize);
  check("queue depth", options.queue_depth, kMaxQueueDepth);
  check("threads", options.threads, kMaxThreads);
  return options;
}

void NameThread(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace

Job::Job(std::vector<FileRequest> requests, JobOptions options)
    : options_(Resolve(std::move(options))) {
  tasks_.reserve(requests.size());
  for (FileRequest& request : requests) {
    tasks_.push_back(std::make_unique<FileTask>(std::move(request), options_.block_size));
    for (const Block& block : tasks_.back()->blocks) total_bytes_ += block.length;
  }
}

Job::~Job() {
  Cancel();
  for (std::thread& thread : threads_) thread.join();
}

void Job::Destroy(Job* job) {
  if (job->owner_ == 0 || job->owner_ == getpid()) delete job;
}

void Job::Start() {
  {
    const std::scoped_lock lock(mutex_);
    if (started_) throw std::logic_error("the job was started already");
    started_ = true;
    start_ = Clock::now();
    owner_ = getpid();
  }
  try {
    threads_.emplace_back([this] {
      NameThread("sllm-open");
      Coordinate();
    });
    const unsigned depth = (options_.queue_depth + options_.threads - 1) / options_.threads;
    for (unsigned i = 0; i < options_.threads; ++i) {
      threads_.emplace_back([this, depth] {
        NameThread("sllm-read");
        Worker(this, depth).Run();
      });
    }
  } catch (const std::system_error& error) {
    // With one reader fewer the job still works; without any it does not.
    if (threads_.size() >= 2) return;
    const int code = error.code().value();
    Fail(std::make_exception_ptr(IoError(code, "", ErrnoText("cannot start a thread", code))));
  }
}

double Job::Now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

FileTask& Job::At(size_t file) const {
  if (file >= tasks_.size()) {
    throw std::out_of_range("file " + std::to_string(file) + " of a job of " +
                            std::to_string(tasks_.size()));
  }
  return *tasks_[file];
}

void Job::CheckStarted() const {
  if (!started_) throw std::logic_error("the job was not started");
}

bool Job::AwaitTurn(size_t file) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    if (stopping()) return true;
    const size_t limit = options_.prefetch_files;
    return (limit == 0 || file < released_ + limit) && file < finished_ + kOpenAhead;
  });
  return !stopping();
}

void Job::Publish(FileTask* task) {
  const std::scoped_lock lock(mutex_);
  task->prepared = true;
  ++published_;
  if (published_ == tasks_.size()) all_published_ = true;
  if (!task->blocks.empty()) ready_.push_back(task);
  has_work_.notify_all();
  changed_.notify_all();
}

void Job::Coordinate() {
  try {
    int ring_error = 0;
    if (options_.env->NewRing(1, &ring_error) == nullptr) ring_error_ = ring_error;
    for (size_t file = 0; file < tasks_.size(); ++file) {
      if (!AwaitTurn(file)) return;
      FileTask* const task = tasks_[file].get();
      task->started = Now();
      task->Prepare({options_.env, options_.pool.get(), options_.huge_pages, ring_error_});
      Publish(task);
      if (task->blocks.empty()) FinishFile(task);
    }
  } catch (...) {
    Fail(std::current_exception());
  }
}

std::optional<Job::Assignment> Job::Take(bool wait) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (stopping()) return std::nullopt;
    if (!ready_.empty()) {
      FileTask* const task = ready_.front();
      const size_t block = task->next_block++;
      if (task->next_block == task->blocks.size()) ready_.pop_front();
      return Assignment{task, block};
    }
    if (!wait || published_ == tasks_.size()) return std::nullopt;
    has_work_.wait(lock);
  }
}

void Job::BlockRead(FileTask* task, size_t block) {
  bool last = false;
  {
    const std::scoped_lock lock(mutex_);
    task->block_done[block] = true;
    done_bytes_ += task->blocks[block].length;
    last = ++task->blocks_done == task->blocks.size();
    if (!last) changed_.notify_all();
  }
  if (last) FinishFile(task);
}

void Job::FinishFile(FileTask* task) {
  task->CheckSize();
  task->cached.reset();
  task->choice.direct.reset();
  std::shared_ptr<Region> unneeded;
  const std::scoped_lock lock(mutex_);
  task->finished = true;
  task->finished_at = Now();
  if (task->released) unneeded.swap(task->region);
  ++finished_;
  changed_.notify_all();
}

void Job::Fail(std::exception_ptr error) {
  const std::scoped_lock lock(mutex_);
  if (finished_ == tasks_.size()) return;
  if (!error_) error_ = std::move(error);
  stop_.store(true, std::memory_order_relaxed);
  has_work_.notify_all();
  changed_.notify_all();
}

void Job::Cancel() { Fail(std::make_exception_ptr(CancelledError())); }

bool Job::Wait(Deadline deadline) {
  std::unique_lock lock(mutex_);
  CheckStarted();
  const bool ended = changed_.wait_until(
      lock, deadline, [&] { return error_ != nullptr || finished_ == tasks_.size(); });
  if (error_) std::rethrow_exception(error_);
  return ended;
}

bool Job::WaitRegion(size_t file, Deadline deadline, std::shared_ptr<Region>* region) {
  FileTask& task = At(file);
  std::unique_lock lock(mutex_);
  CheckStarted();
  const bool ended =
      changed_.wait_until(lock, deadline, [&] { return error_ != nullptr || task.prepared; });
  if (!ended) return false;
  if (!task.prepared) std::rethrow_exception(error_);
  if (!task.region) {
    throw std::logic_error("the region of file " + std::to_string(file) + " was released");
  }
  *region = task.region;
  return true;
}

bool Job::WaitRange(size_t file, uint64_t begin, uint64_t end, Deadline deadline) {
  FileTask& task = At(file);
  if (begin > end || end > task.request.expected_size) {
    throw std::invalid_argument("range " + std::to_string(begin) + ".." + std::to_string(end) +
                                " is not within the file's " +
                                std::to_string(task.request.expected_size) + " bytes");
  }
  size_t next = FirstBlockAfter(task.blocks, begin);
  const auto there = [&] {
    if (!task.prepared) return false;
    // What is done stays done: each look goes on where the last one ended.
    for (; next < task.blocks.size() && task.blocks[next].offset < end; ++next) {
      if (!task.block_done[next]) return false;
    }
    return true;
  };
  std::unique_lock lock(mutex_);
  CheckStarted();
  changed_.wait_until(lock, deadline, [&] { return error_ != nullptr || there(); });
  if (!there()) {
    if (error_) std::rethrow_exception(error_);
    return false;
  }
  // Mapped bytes are there without having been asked for; others would be garbage.
  const bool map = task.choice.method == Method::kMap;
  if (!map && !Covers(task.blocks, begin, end)) {
    throw std::invalid_argument("range " + std::to_string(begin) + ".." + std::to_string(end) +
                                " is not within the extents asked for");
  }
  return true;
}

void Job::Release(size_t file) {
  FileTask& task = At(file);
  std::shared_ptr<Region> unneeded;  // freed after the lock: unmapping is slow
  const std::scoped_lock lock(mutex_);
  if (task.released) return;
  task.released = true;
  ++released_;
  if (task.finished) unneeded.swap(task.region);
  changed_.notify_all();
}

std::pair<uint64_t, uint64_t> Job::Progress() const {
  const std::scoped_lock lock(mutex_);
  return {done_bytes_, total_bytes_};
}

std::vector<FileStats> Job::Stats() const {
  const std::scoped_lock lock(mutex_);
  std::vector<FileStats> all;
  all.reserve(tasks_.size());
  for (const auto& task : tasks_) {
    FileStats stats;
    if (task->prepared) {
      stats.method = MethodName(task->choice.method);
      stats.reason = task->choice.reason;
      if (task->registered.load(std::memory_order_relaxed)) stats.reason += ", registered buffers";
      stats.resident = task->choice.resident;
      stats.started = task->started;
      stats.finished = task->finished_at;
      for (size_t i = 0; i < task->blocks.size(); ++i) {
        if (task->block_done[i]) stats.nbytes += task->blocks[i].length;
      }
      stats.allocate_seconds = task->allocate_clock.seconds();
      stats.read_seconds = task->read_clock.seconds();
      stats.verify_seconds = task->verify_clock.seconds();
      stats.verified = task->finished && task->request.verify != Verify::kNever &&
                       (task->request.expected_size == 0 ||
                        (task->sums && task->sums->complete()));
    }
    all.push_back(std::move(stats));
  }
  return all;
}

}  // namespace sllm
