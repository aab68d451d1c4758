#include "uring.hpp"

#include <cerrno>

#ifdef SLLM_HAVE_URING

#include <liburing.h>

#include <algorithm>
#include <array>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace sllm {
namespace {

// liburing maps and unmaps rings by system calls of its own, which ThreadSanitizer does not see: a
// ring at the address of an earlier one, of another thread, would look like a race. These tell it
// the order that the kernel guarantees.
#ifdef __SANITIZE_THREAD__
char ring_memory;
void RingMapped() { __tsan_acquire(&ring_memory); }
void RingGoes() { __tsan_release(&ring_memory); }
#else
void RingMapped() {}
void RingGoes() {}
#endif

// The kernel takes at most 1 GiB a buffer; so many of them hold any file we expect.
constexpr size_t kSlotBytes = size_t{1} << 30;
constexpr unsigned kSlots = 64;

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
    RingMapped();
    return code;
  }

  Uring() = default;
  ~Uring() override {
    RingGoes();
    if (ready_) io_uring_queue_exit(&ring_);
  }
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  int Submit(const RingRead& read) override {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return -EBUSY;
    if (const int slot = read.registered ? SlotOf(read.to, read.length) : -1; slot >= 0) {
      io_uring_prep_read_fixed(entry, read.descriptor, read.to, read.length, read.offset, slot);
    } else {
      io_uring_prep_read(entry, read.descriptor, read.to, read.length, read.offset);
    }
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

  int Register(std::byte* begin, size_t length) override {
    if (!slots_ready_) {
      const int code = io_uring_register_buffers_sparse(&ring_, kSlots);
      if (code != 0) return code;
      slots_ready_ = true;
    }
    std::array<iovec, kSlots> pieces{};
    std::array<__u64, kSlots> tags{};
    unsigned used = 0;
    for (size_t at = 0; at < length; at += kSlotBytes) {
      if (used == kSlots) return -ENOMEM;
      pieces[used++] = {begin + at, std::min(kSlotBytes, length - at)};
    }
    registered_ = nullptr;
    // Empty pieces clear the slots that are left over.
    const int code =
        io_uring_register_buffers_update_tag(&ring_, 0, pieces.data(), tags.data(), kSlots);
    if (code < 0) return code;
    registered_ = begin;
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

  // The slot that holds all of the bytes, or -1 when they straddle two.
  int SlotOf(const std::byte* to, size_t length) const {
    if (registered_ == nullptr) return -1;
    const auto at = static_cast<size_t>(to - registered_);
    return at / kSlotBytes == (at + length - 1) / kSlotBytes ? static_cast<int>(at / kSlotBytes)
                                                             : -1;
  }

  io_uring ring_{};
  bool ready_ = false;
  bool slots_ready_ = false;
  std::byte* registered_ = nullptr;
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
