// Loads on a system that fails: errors arrive, nothing hangs, nothing leaks.
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "error.hpp"
#include "job.hpp"
#include "support.hpp"

namespace sllm {
namespace {

constexpr uint64_t kBlock = 64 << 10;
constexpr uint64_t kSize = 20 * kBlock + 123;

// Holds whoever enters until opened.
class Gate {
 public:
  void Enter() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void AwaitSomebody() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }
  void Open() {
    const std::scoped_lock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

std::vector<Method> Reading() {
  std::vector<Method> methods = WorkingMethods();
  std::erase_if(methods, [](Method m) { return m == Method::kMap || m == Method::kAuto; });
  return methods;
}

class Faults : public testing::TestWithParam<Method> {
 protected:
  const std::vector<std::byte> data_ = RandomBytes(kSize);
  const TempFile file_{data_};
  FaultEnv env_;

  std::unique_ptr<Job> Start(size_t files = 1) {
    JobOptions options;
    options.threads = 2;
    options.queue_depth = 6;
    options.block_size = kBlock;
    options.env = &env_;
    const FileRequest request = Request(file_.path(), kSize, {{0, kSize}}, GetParam());
    auto job = std::make_unique<Job>(std::vector<FileRequest>(files, request), options);
    job->Start();
    return job;
  }
  bool RightBytes(Job* job) {
    std::shared_ptr<Region> region;
    return job->WaitRegion(0, Soon(), &region) && SameBytes(*region, data_);
  }
  void ExpectNoLeak() {
    EXPECT_EQ(env_.open_files, 0);
    EXPECT_EQ(env_.mappings, 0);
  }
};
INSTANTIATE_TEST_SUITE_P(Job, Faults, testing::ValuesIn(Reading()),
                         [](const auto& info) { return MethodName(info.param); });

// The probe of direct reads at offset 0 must get through for the job to begin.
bool IsProbe(size_t length) { return length == kPage; }

TEST_P(Faults, InterruptionsAndShortReadsAreSurvived) {
  std::mutex mutex;
  std::mt19937 random(5);
  env_.on_read = [&](uint64_t, size_t* length) -> std::optional<int64_t> {
    const std::scoped_lock lock(mutex);
    switch (random() % 6) {
      case 0:
        return -EINTR;
      case 1:
        return -EAGAIN;
      case 2:  // direct reads come back in pages
        if (*length > kPage) *length = kPage * (1 + random() % (*length / kPage));
        break;
      default:
        break;
    }
    return std::nullopt;
  };
  auto job = Start(2);
  ASSERT_TRUE(job->Wait(Soon()));
  EXPECT_TRUE(RightBytes(job.get()));
  job.reset();
  ExpectNoLeak();
}

TEST_P(Faults, AnIoErrorEndsTheJobAndNamesThePlace) {
  env_.on_read = [&](uint64_t offset, size_t*) -> std::optional<int64_t> {
    return offset == 10 * kBlock ? std::optional<int64_t>(-EIO) : std::nullopt;
  };
  auto job = Start(3);
  try {
    job->Wait(Soon());
    FAIL();
  } catch (const IoError& error) {
    EXPECT_EQ(error.code(), EIO);
    EXPECT_EQ(error.path(), file_.path());
    EXPECT_NE(std::string(error.what()).find(std::to_string(10 * kBlock)), std::string::npos);
  }
  EXPECT_THROW(job->WaitRange(2, 0, 1, Soon()), IoError);
  job.reset();
  ExpectNoLeak();
}

TEST_P(Faults, WhatArrivedBeforeTheErrorIsThere) {
  Gate gate;
  env_.on_read = [&](uint64_t offset, size_t*) -> std::optional<int64_t> {
    if (offset != kSize / kBlock * kBlock) return std::nullopt;
    gate.Enter();
    return -EIO;
  };
  auto job = Start();
  gate.AwaitSomebody();
  gate.Open();
  EXPECT_THROW(job->Wait(Soon()), IoError);
  // Some block came before the last one; a range that is there stays readable after the error.
  const auto [done, total] = job->Progress();
  EXPECT_LT(done, total);
  if (done == total - (kSize % kBlock)) {
    EXPECT_TRUE(job->WaitRange(0, 0, kBlock, Soon()));
  }
}

TEST_P(Faults, TruncationWhileReadingIsAnError) {
  std::once_flag once;
  env_.on_read = [&](uint64_t, size_t* length) -> std::optional<int64_t> {
    if (!IsProbe(*length)) std::call_once(once, [&] { file_.Resize(3 * kBlock + 100); });
    return std::nullopt;
  };
  auto job = Start();
  EXPECT_THROW(job->Wait(Soon()), IoError);
}

TEST_P(Faults, GrowthWhileReadingIsAnError) {
  std::once_flag once;
  env_.on_read = [&](uint64_t, size_t* length) -> std::optional<int64_t> {
    if (!IsProbe(*length)) std::call_once(once, [&] { file_.Resize(kSize + 1); });
    return std::nullopt;
  };
  auto job = Start();
  EXPECT_THROW(job->Wait(Soon()), IoError);
}

TEST_P(Faults, CancelReturnsAtOnceFromAStuckRead) {
  Gate gate;
  env_.on_read = [&](uint64_t, size_t* length) -> std::optional<int64_t> {
    if (!IsProbe(*length)) gate.Enter();
    return std::nullopt;
  };
  auto job = Start();
  gate.AwaitSomebody();
  std::jthread canceller([&] {
    job->Cancel();
    job->Cancel();
  });
  EXPECT_THROW(job->Wait(Soon()), CancelledError);
  EXPECT_THROW(job->WaitRange(0, 0, kSize, Soon()), CancelledError);
  canceller.join();
  gate.Open();
  job.reset();
  ExpectNoLeak();
}

TEST_P(Faults, DestructionInMidLoadIsClean) {
  for (int i = 0; i < 20; ++i) {
    auto job = Start(4);
    if (i % 2 == 1) job->WaitRange(0, 0, kBlock, Soon());
    job.reset();
    ExpectNoLeak();
  }
}

TEST_P(Faults, NoMemoryToMap) {
  env_.anonymous_error = ENOMEM;
  EXPECT_THROW(Start()->Wait(Soon()), std::bad_alloc);
  ExpectNoLeak();
}

TEST_P(Faults, NoMemoryToTouch) {
  std::atomic<int> calls{0};
  env_.on_populate = [&](Access) { return ++calls > 1 ? -ENOMEM : 0; };
  EXPECT_THROW(Start(3)->Wait(Soon()), std::bad_alloc);
  ExpectNoLeak();
}

TEST_P(Faults, AFileThatCannotBeOpened) {
  env_.open_error = EACCES;
  try {
    Start()->Wait(Soon());
    FAIL();
  } catch (const IoError& error) {
    EXPECT_EQ(error.code(), EACCES);
  }
}

TEST(RingFaults, ARingThatRefusesReadsEndsTheJob) {
  const TempFile file(RandomBytes(kSize));
  if (!HaveUring() || !HaveDirect(file.path())) GTEST_SKIP() << "no io_uring here";
  FaultEnv env;
  env.submit_error = EBADF;
  JobOptions options;
  options.env = &env;
  Job job({Request(file.path(), kSize, {{0, kSize}}, Method::kUring)}, options);
  job.Start();
  EXPECT_THROW(job.Wait(Soon()), IoError);
}

TEST(RingFaults, WithoutIoUringAutoReadsWithThreads) {
  const auto data = RandomBytes(kSize);
  const TempFile file(data);
  if (!HaveDirect(file.path())) GTEST_SKIP() << "no direct reads here";
  FaultEnv env;
  env.ring_error = EPERM;
  env.resident = 0.0;
  JobOptions options;
  options.env = &env;
  Job job({Request(file.path(), kSize, {{0, kSize}})}, options);
  job.Start();
  ASSERT_TRUE(job.Wait(Soon()));
  EXPECT_EQ(job.Stats().at(0).method, "direct");
  std::shared_ptr<Region> region;
  ASSERT_TRUE(job.WaitRegion(0, Soon(), &region));
  EXPECT_TRUE(SameBytes(*region, data));
}

TEST(RingFaults, RegisteredBuffersAreOptional) {
  const auto data = RandomBytes(kSize);
  const TempFile file(data);
  if (!HaveUring() || !HaveDirect(file.path())) GTEST_SKIP() << "no io_uring here";
  auto pool = std::make_shared<RegionPool>(0);
  FaultEnv env;
  JobOptions options;
  options.env = &env;
  options.block_size = kBlock;
  options.register_buffers = true;
  for (const int refusal : {0, ENOMEM}) {
    env.register_error = refusal;
    std::vector<FileRequest> requests;
    for (int i = 0; i < 3; ++i) {
      requests.push_back(Request(file.path(), kSize, {{0, kSize}}, Method::kUring));
      // The second has room that nothing will have touched.
      const size_t room = i == 1 ? 4 * Memory::kSlice : 0;
      requests.back().into = pool->Allocate(kSize + room, true, /*touch=*/i != 1);
    }
    Job job(requests, options);
    job.Start();
    ASSERT_TRUE(job.Wait(Soon()));
    for (const FileRequest& request : requests) EXPECT_TRUE(SameBytes(*request.into, data));
    // Whether the kernel lets us is its business; memory not touched before must stay out of it.
    EXPECT_EQ(job.Stats()[1].reason, "asked for");
    if (refusal != 0) {
      EXPECT_EQ(job.Stats()[0].reason, "asked for");
    }
  }
}

TEST(MapFaults, PagesThatCannotBeReadAreAnError) {
  const TempFile file(RandomBytes(kSize));
  FaultEnv env;
  env.on_populate = [](Access access) { return access == Access::kRead ? -EFAULT : 0; };
  JobOptions options;
  options.env = &env;
  Job job({Request(file.path(), kSize, {{0, kSize}}, Method::kMap)}, options);
  job.Start();
  EXPECT_THROW(job.Wait(Soon()), IoError);
}

TEST(MapFaults, AFileThatLosesItsEndIsAnErrorAndNoSignal) {
  const TempFile file(RandomBytes(kSize));
  FaultEnv env;
  std::once_flag once;
  env.on_populate = [&](Access) {
    std::call_once(once, [&] { file.Resize(kPage); });
    return 0;
  };
  JobOptions options;
  options.env = &env;
  options.block_size = kBlock;
  Job job({Request(file.path(), kSize, {{0, kSize}}, Method::kMap)}, options);
  job.Start();
  try {
    job.Wait(Soon());
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("4096 bytes"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace sllm
