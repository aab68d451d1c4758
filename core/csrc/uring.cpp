#include "uring.hpp"

#include <cerrno>

#ifdef SLLM_HAVE_URING

#include <liburing.h>

#include <array>

namespace sllm {
namespace {

// Marks completions that nobody waits for.
constexpr uint64_t kIgnored = ~uint64_t{0};

class Uring final : public Ring {
 public:
  // 0 or -errno.
  int Init(unsigned depth) {
    // One thread submits and reaps, so completions can wait for it instead of interrupting it.
    // Kernels before 6.1 refuse the flags and get a plain ring.
    constexpr std::array<unsigned, 2> kFlags{IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                                             0};
    int code = 0;
    for (const unsigned flags : kFlags) {
      code = io_uring_queue_init(depth, &ring_, flags);
      if (code == 0) break;
    }
    ready_ = code == 0;
    return code;
  }

  Uring() = default;
  ~Uring() override {
    if (ready_) io_uring_queue_exit(&ring_);
  }
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  int Submit(const RingRead& read) override {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return -EBUSY;
    io_uring_prep_read(entry, read.descriptor, read.to, read.length, read.offset);
    io_uring_sqe_set_data64(entry, read.tag);
    const int code = Flush();
    if (code != 0) {
      // The entry stays in the queue and would go out with the next one: make it harmless.
      io_uring_prep_nop(entry);
      io_uring_sqe_set_data64(entry, kIgnored);
    }
    return code;
  }

  int Wait(std::vector<RingResult>* results, unsigned milliseconds) override {
    __kernel_timespec timeout{};
    timeout.tv_sec = milliseconds / 1000;
    timeout.tv_nsec = static_cast<long long>(milliseconds % 1000) * 1000000;
    io_uring_cqe* first = nullptr;
    const int code = io_uring_wait_cqe_timeout(&ring_, &first, &timeout);
    if (code == -ETIME || code == -EINTR || code == -EAGAIN) return 0;
    if (code < 0) return code;
    unsigned head = 0;
    unsigned seen = 0;
    io_uring_cqe* entry = nullptr;
    io_uring_for_each_cqe(&ring_, head, entry) {
      ++seen;
      if (entry->user_data != kIgnored) results->push_back({entry->user_data, entry->res});
    }
    io_uring_cq_advance(&ring_, seen);
    return 0;
  }

  void CancelAll() override {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return;
    io_uring_prep_cancel(entry, nullptr, IORING_ASYNC_CANCEL_ANY);
    io_uring_sqe_set_data64(entry, kIgnored);
    Flush();
  }

 private:
  int Flush() {
    for (;;) {
      const int code = io_uring_submit(&ring_);
      if (code >= 0) return 0;
      if (code != -EINTR && code != -EAGAIN) return code;
    }
  }

  io_uring ring_{};
  bool ready_ = false;
};

}  // namespace

std::unique_ptr<Ring> NewUring(unsigned depth, int* error) {
  auto ring = std::make_unique<Uring>();
  const int code = ring->Init(depth);
  if (code != 0) {
    *error = -code;
    return nullptr;
  }
  return ring;
}

bool UringCompiledIn() { return true; }

}  // namespace sllm

#else

namespace sllm {

std::unique_ptr<Ring> NewUring(unsigned, int* error) {
  *error = ENOSYS;
  return nullptr;
}

bool UringCompiledIn() { return false; }

}  // namespace sllm

#endif
