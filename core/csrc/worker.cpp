#include "worker.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <exception>
#include <thread>

#include "crc32c.hpp"
#include "error.hpp"

namespace sllm {
namespace {

// How long a worker sleeps on its ring before it looks whether the job was cancelled.
constexpr unsigned kRingWaitMilliseconds = 50;
// Pause before a read that gained nothing is asked for again.
constexpr std::chrono::milliseconds kStallPause{1};

}  // namespace

void Worker::Run() {
  try {
    Loop();
  } catch (...) {
    job_->Fail(std::current_exception());
  }
  Drain();
}

void Worker::Loop() {
  while (!job_->stopping()) {
    while (in_flight_ < depth_) {
      const auto next = job_->Take(/*wait=*/in_flight_ == 0);
      if (!next) break;
      Begin(next->task, next->block);
    }
    if (in_flight_ == 0) return;
    Collect();
  }
}

void Worker::Begin(FileTask* task, size_t block) {
  const Block& range = task->blocks[block];
  if (task->region->memory().is_map()) {
    Populate(task, block);
    return;
  }
  if (!task->region->memory().Touched(range.offset, range.end())) {
    const Busy busy(&task->allocate_clock);
    task->region->memory().Touch(range.offset, range.end());
  }
  const Choice& choice = task->choice;
  if (choice.mixed && task->cached->Resident(range.offset, range.length) >= 1) {
    ReadNow(task, block, false);
  } else if (choice.method == Method::kUring) {
    Enqueue(task, block);
  } else {
    ReadNow(task, block, choice.method == Method::kDirect);
  }
}

void Worker::ReadNow(FileTask* task, size_t block, bool direct) {
  File* const file = direct ? task->choice.direct.get() : task->cached.get();
  const Block& range = task->blocks[block];
  ReadCursor cursor(task->region->data() + range.offset, range, task->request.expected_size, direct);
  {
    const Busy busy(&task->read_clock);
    while (!cursor.Advance(file->Read(cursor.to(), cursor.length(), cursor.offset()),
                           task->request.path)) {
      if (job_->stopping()) return;
      if (cursor.stalls() != 0) std::this_thread::sleep_for(kStallPause);
    }
  }
  Done(task, block);
}

void Worker::Populate(FileTask* task, size_t block) {
  const Block& range = task->blocks[block];
  // A page in the cache costs its user a minor fault, in order and with neighbours mapped along;
  // doing that for gigabytes ahead of time takes longer than the faults themselves.
  const bool cached = task->choice.mixed && task->cached->Resident(range.offset, range.length) >= 1;
  if (!cached) {
    const Busy busy(&task->read_clock);
    const int code = job_->options_.env->Populate(task->region->data() + range.offset,
                                                  static_cast<size_t>(range.length), Access::kRead);
    if (code == -ENOMEM) throw std::bad_alloc();
    if (code != 0) {
      task->CheckSize();  // a file that lost its end is the likeliest cause; say so
      throw IoError(EIO, task->request.path,
                    ErrnoText("cannot read the mapped bytes at offset " +
                                  std::to_string(range.offset),
                              -code));
    }
  }
  Done(task, block);
}

void Worker::Enqueue(FileTask* task, size_t block) {
  if (!ring_) {
    int error = 0;
    ring_ = job_->options_.env->NewRing(depth_, &error);
    if (!ring_) {  // it worked when the job began, but a limit may be reached by now
      ReadNow(task, block, true);
      return;
    }
  }
  if (job_->options_.register_buffers && task != registered_) RegisterMemory(task);
  if (free_slots_.empty()) {
    free_slots_.push_back(slots_.size());
    slots_.push_back({nullptr, 0, ReadCursor(nullptr, {0, 0}, 0, true)});
  }
  const Block& range = task->blocks[block];
  const uint64_t tag = free_slots_.back();
  free_slots_.pop_back();
  slots_[tag] = {task, block,
                 ReadCursor(task->region->data() + range.offset, range,
                            task->request.expected_size, true)};
  Resubmit(tag);
}

// Only memory that is all touched: pinning would touch the rest, on this thread alone, before its
// turn and beyond what is wanted. Reads of the previous file that are still in flight keep their pages
// pinned by themselves.
void Worker::RegisterMemory(FileTask* task) {
  const Memory& memory = task->region->memory();
  if (!may_register_ || !memory.Touched(0, memory.capacity())) return;
  registered_ = nullptr;
  // Optional by nature: an unprivileged process may pin 8 MiB by default.
  may_register_ = ring_->Register(memory.data(), memory.capacity()) == 0;
  if (!may_register_) return;
  registered_ = task;
  task->registered.store(true, std::memory_order_relaxed);
}

void Worker::Resubmit(uint64_t tag) {
  const Slot& slot = slots_[tag];
  const int code = ring_->Submit({slot.task->choice.direct->descriptor(), slot.cursor.to(),
                                  static_cast<uint32_t>(slot.cursor.length()),
                                  slot.cursor.offset(), tag, slot.task == registered_});
  if (code != 0) {
    throw IoError(-code, slot.task->request.path, ErrnoText("cannot queue a read", -code));
  }
  slot.task->read_clock.Enter();
  ++in_flight_;
}

void Worker::Collect() {
  results_.clear();
  const int code = ring_->Wait(&results_, kRingWaitMilliseconds);
  if (code != 0) throw IoError(-code, "", ErrnoText("cannot wait for reads", -code));
  // All are accounted for first: an exception below must not leave a finished read in the count.
  for (const RingResult& result : results_) {
    --in_flight_;
    slots_[result.tag].task->read_clock.Leave();
  }
  for (const RingResult& result : results_) {
    Slot& slot = slots_[result.tag];
    if (!slot.cursor.Advance(result.result, slot.task->request.path)) {
      if (slot.cursor.stalls() != 0) std::this_thread::sleep_for(kStallPause);
      Resubmit(result.tag);
      continue;
    }
    free_slots_.push_back(result.tag);
    Done(slot.task, slot.block);
  }
}

void Worker::Drain() {
  // The kernel writes into the regions until every read has come back, whatever happens to us.
  if (in_flight_ != 0) ring_->CancelAll();
  while (in_flight_ != 0) {
    results_.clear();
    if (ring_->Wait(&results_, kRingWaitMilliseconds) != 0) std::this_thread::sleep_for(kStallPause);
    for (const RingResult& result : results_) {
      --in_flight_;
      slots_[result.tag].task->read_clock.Leave();
    }
  }
}

void Worker::Done(FileTask* task, size_t block) {
  if (!task->sums) {
    job_->BlockRead(task, block);
    return;
  }
  std::vector<size_t> cleared;
  {
    const Busy busy(&task->verify_clock);
    const bool map = task->region->memory().is_map();
    task->sums->Add(
        block,
        [&](uint64_t offset, uint64_t length) {
          return map ? SumMapped(task, offset, length)
                     : Crc32c(0, task->region->data() + offset, static_cast<size_t>(length));
        },
        &cleared);
  }
  for (const size_t b : cleared) job_->BlockRead(task, b);
}

// A mapping is summed by reading its file (the same pages), not through the mapping: if the file is
// truncated meanwhile that is an error here, and would be a SIGBUS there.
uint32_t Worker::SumMapped(FileTask* task, uint64_t offset, uint64_t length) {
  constexpr size_t kPiece = 256 << 10;  // stays in the L2 cache
  scratch_.resize(kPiece);
  uint32_t sum = 0;
  const uint64_t end = offset + length;
  while (offset < end) {
    const uint64_t piece = std::min<uint64_t>(kPiece, end - offset);
    ReadCursor cursor(scratch_.data(), {offset, piece}, task->request.expected_size,
                      false);
    while (!cursor.Advance(task->cached->Read(cursor.to(), cursor.length(), cursor.offset()),
                           task->request.path)) {
      if (cursor.stalls() != 0) std::this_thread::sleep_for(kStallPause);
    }
    sum = Crc32c(sum, scratch_.data(), static_cast<size_t>(piece));
    offset += piece;
  }
  return sum;
}

}  // namespace sllm
