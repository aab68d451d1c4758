// How long at least one of several threads was busy with something.
#pragma once

#include <chrono>
#include <mutex>

namespace sllm {

using Clock = std::chrono::steady_clock;

class BusyClock {
 public:
  void Enter() {
    const std::scoped_lock lock(mutex_);
    if (busy_++ == 0) since_ = Clock::now();
  }
  void Leave() {
    const std::scoped_lock lock(mutex_);
    if (--busy_ == 0) total_ += Clock::now() - since_;
  }
  double seconds() const {
    const std::scoped_lock lock(mutex_);
    const auto total = busy_ == 0 ? total_ : total_ + (Clock::now() - since_);
    return std::chrono::duration<double>(total).count();
  }

 private:
  mutable std::mutex mutex_;
  unsigned busy_ = 0;
  Clock::time_point since_{};
  Clock::duration total_{};
};

class Busy {
 public:
  explicit Busy(BusyClock* clock) : clock_(clock) { clock_->Enter(); }
  ~Busy() { clock_->Leave(); }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  BusyClock* const clock_;
};

}  // namespace sllm
