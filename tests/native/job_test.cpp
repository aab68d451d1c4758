// Whole loads of real files.
#include "job.hpp"

#include <cstring>
#include <thread>
#include <tuple>

#include "crc32c.hpp"
#include "error.hpp"
#include "file_sums.hpp"
#include "probe.hpp"
#include "support.hpp"

namespace sllm {
namespace {

constexpr uint64_t kBlock = 64 << 10;

JobOptions Small() {
  JobOptions options;
  options.threads = 3;
  options.queue_depth = 6;
  options.block_size = kBlock;
  return options;
}

std::shared_ptr<Region> RegionOf(Job* job, size_t file) {
  std::shared_ptr<Region> region;
  EXPECT_TRUE(job->WaitRegion(file, Soon(), &region));
  return region;
}

class EveryMethod : public testing::TestWithParam<Method> {};
INSTANTIATE_TEST_SUITE_P(Job, EveryMethod, testing::ValuesIn(WorkingMethods()),
                         [](const auto& info) { return MethodName(info.param); });

TEST_P(EveryMethod, ReadsEverySizeExactly) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{511}, size_t{512}, size_t{4095},
                            size_t{4096}, size_t{4097}, kBlock - 1, kBlock, kBlock + 1,
                            5 * kBlock + 12345}) {
    const auto data = RandomBytes(size);
    const TempFile file(data);
    const auto sums = FileChunkSums(Env::Default(), file.path(), 10000, 2, {});
    for (const bool cold : {false, true}) {
      if (cold) file.Evict();
      FileRequest request = Request(file.path(), size, {{0, size}}, GetParam());
      request.verify = Verify::kAlways;
      request.chunk_size = 10000;
      request.crc32c = sums;
      Job job({request}, Small());
      job.Start();
      ASSERT_TRUE(job.Wait(Soon()));
      const auto region = RegionOf(&job, 0);
      ASSERT_EQ(region->size(), size);
      ASSERT_TRUE(SameBytes(*region, data)) << size;
      EXPECT_EQ(job.Progress(), std::pair(uint64_t{size}, uint64_t{size}));
      const FileStats stats = job.Stats().at(0);
      EXPECT_TRUE(stats.verified);
      EXPECT_EQ(stats.nbytes, size);
      EXPECT_FALSE(stats.reason.empty());
      if (GetParam() != Method::kAuto) {
        EXPECT_EQ(stats.method, MethodName(GetParam()));
      }
    }
  }
}

TEST_P(EveryMethod, ReadsOnlyWhatIsAsked) {
  const uint64_t size = 20 * kBlock + 77;
  const auto data = RandomBytes(size);
  const TempFile file(data);
  const std::vector<Extent> extents{{3, 10}, {5 * kBlock - 1, 2}, {9 * kBlock, 3 * kBlock},
                                    {size - 1, 1}};
  Job job({Request(file.path(), size, extents, GetParam())}, Small());
  job.Start();
  const auto region = RegionOf(&job, 0);
  for (const Extent& extent : extents) {
    ASSERT_TRUE(job.WaitRange(0, extent.offset, extent.offset + extent.length, Soon()));
    ASSERT_EQ(std::memcmp(region->data() + extent.offset, data.data() + extent.offset,
                          extent.length),
              0);
  }
  ASSERT_TRUE(job.Wait(Soon()));
  EXPECT_LE(job.Progress().second, 3 * kBlock + 5 * kPage);
}

TEST_P(EveryMethod, ReadsManyFilesInOrder) {
  std::vector<std::unique_ptr<TempFile>> files;
  std::vector<std::vector<std::byte>> contents;
  std::vector<FileRequest> requests;
  for (uint32_t i = 0; i < 12; ++i) {
    const size_t size = (i % 4) * kBlock + i * 37;
    contents.push_back(RandomBytes(size, i));
    files.push_back(std::make_unique<TempFile>(contents.back()));
    if (i % 2 == 1) files.back()->Evict();
    requests.push_back(Request(files.back()->path(), size, {{0, size}}, GetParam()));
  }
  JobOptions options = Small();
  options.prefetch_files = 2;
  options.pool = std::make_shared<RegionPool>(10 * kBlock);
  Job job(requests, options);
  job.Start();
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(job.WaitRange(i, 0, contents[i].size(), Soon()));
    const auto region = RegionOf(&job, i);
    ASSERT_TRUE(SameBytes(*region, contents[i])) << i;
    job.Release(i);
  }
  ASSERT_TRUE(job.Wait(Soon()));
  EXPECT_THROW(RegionOf(&job, 0), std::logic_error);
}

TEST(Job, BytesThatNobodyCopiesAreNotComparedUnlessAsked) {
  const uint64_t size = 2 * kBlock;
  const TempFile file(RandomBytes(size));
  for (const auto& [verify, method, compared] :
       {std::tuple{Verify::kCopied, Method::kMap, false},
        std::tuple{Verify::kCopied, Method::kBuffered, true},
        std::tuple{Verify::kAlways, Method::kMap, true},
        std::tuple{Verify::kNever, Method::kBuffered, false}}) {
    FileRequest request = Request(file.path(), size, {{0, size}}, method);
    request.verify = verify;
    request.chunk_size = kBlock;
    request.crc32c = FileChunkSums(Env::Default(), file.path(), kBlock, 1, {});
    Job job({request}, Small());
    job.Start();
    ASSERT_TRUE(job.Wait(Soon()));
    EXPECT_EQ(job.Stats()[0].verified, compared);
  }
}

TEST_P(EveryMethod, WrongBytesAreNotDelivered) {
  const uint64_t size = 8 * kBlock;
  auto data = RandomBytes(size);
  FileRequest request = Request("", size, {{0, size}}, GetParam());
  request.verify = Verify::kAlways;
  request.chunk_size = 3 * kBlock;
  {
    const TempFile good(data);
    request.crc32c = FileChunkSums(Env::Default(), good.path(), request.chunk_size, 1, {});
  }
  data[4 * kBlock + 5] ^= std::byte{2};
  const TempFile bad(data);
  request.path = bad.path();
  Job job({request}, Small());
  job.Start();
  EXPECT_THROW(job.Wait(Soon()), ChecksumError);
  EXPECT_THROW(job.WaitRange(0, 4 * kBlock, 4 * kBlock + 1, Soon()), ChecksumError);
}

TEST_P(EveryMethod, AWrongSizeIsAnError) {
  const TempFile file(RandomBytes(5000));
  for (const uint64_t expected : {uint64_t{0}, uint64_t{4999}, uint64_t{5001}}) {
    Job job({Request(file.path(), expected, {{0, expected}}, GetParam())}, Small());
    job.Start();
    try {
      job.Wait(Soon());
      FAIL() << expected;
    } catch (const IoError& error) {
      EXPECT_EQ(error.path(), file.path());
      EXPECT_NE(std::string(error.what()).find("5000 bytes"), std::string::npos);
    }
  }
}

TEST(Job, MapWithoutExtentsIsLazyAndPrivate) {
  const auto data = RandomBytes(3 * kPage);
  const TempFile file(data);
  Job job({Request(file.path(), data.size(), {}, Method::kMap)}, Small());
  job.Start();
  ASSERT_TRUE(job.Wait(Soon()));
  ASSERT_TRUE(job.WaitRange(0, 0, data.size(), Soon()));
  const auto region = RegionOf(&job, 0);
  EXPECT_TRUE(SameBytes(*region, data));
  region->data()[0] ^= std::byte{1};
  EXPECT_EQ(FileChunkSums(Env::Default(), file.path(), 1 << 20, 1, {}).at(0),
            Crc32c(0, data.data(), data.size()));
}

TEST(Job, ReadsIntoGivenMemory) {
  const auto data = RandomBytes(2 * kBlock + 1);
  const TempFile file(data);
  auto pool = std::make_shared<RegionPool>(0);
  FileRequest request = Request(file.path(), data.size(), {{0, data.size()}});
  request.into = pool->Allocate(data.size(), false, true);
  Job job({request}, Small());
  job.Start();
  ASSERT_TRUE(job.Wait(Soon()));
  EXPECT_EQ(RegionOf(&job, 0), request.into);
  EXPECT_TRUE(SameBytes(*request.into, data));
}

TEST(Job, RefusesContradictions) {
  auto pool = std::make_shared<RegionPool>(0);
  FileRequest request = Request("f", 5000, {{0, 5000}});
  request.into = pool->Allocate(4096, false, false);
  EXPECT_THROW(Job({request}, Small()), std::invalid_argument);
  request.into = pool->Allocate(5000, false, false);
  request.method = Method::kMap;
  EXPECT_THROW(Job({request}, Small()), std::invalid_argument);
  JobOptions options = Small();
  options.block_size = 1000;
  EXPECT_THROW(Job({Request("f", 1, {{0, 1}})}, options), std::invalid_argument);
  options.block_size = uint64_t{1} << 40;
  EXPECT_THROW(Job({Request("f", 1, {{0, 1}})}, options), std::invalid_argument);
}

TEST(Job, IsUsedInOrder) {
  Job job({}, Small());
  EXPECT_THROW(job.Wait(Soon()), std::logic_error);
  job.Start();
  EXPECT_THROW(job.Start(), std::logic_error);
  EXPECT_TRUE(job.Wait(Soon()));
  EXPECT_THROW(job.Release(0), std::out_of_range);
  job.Cancel();
  EXPECT_TRUE(job.Wait(Soon()));  // it was done already
}

TEST(Job, UnreleasedFilesHoldBackTheNext) {
  const TempFile file(RandomBytes(1000));
  JobOptions options = Small();
  options.prefetch_files = 1;
  Job job({Request(file.path(), 1000, {{0, 1000}}), Request(file.path(), 1000, {{0, 1000}})},
          options);
  job.Start();
  ASSERT_TRUE(job.WaitRange(0, 0, 1000, Soon()));
  // The second cannot have begun: its turn only comes with the release.
  std::shared_ptr<Region> region;
  EXPECT_FALSE(job.WaitRegion(1, Clock::now(), &region));
  job.Release(0);
  job.Release(0);  // once counts
  ASSERT_TRUE(job.Wait(Soon()));
}

TEST(Job, BytesNobodyAskedForAreNotWaitedFor) {
  const TempFile file(RandomBytes(10 * kBlock));
  Job job({Request(file.path(), 10 * kBlock, {{0, 10}}, Method::kBuffered)}, Small());
  job.Start();
  EXPECT_TRUE(job.WaitRange(0, 0, 10, Soon()));
  EXPECT_THROW(job.WaitRange(0, 5 * kBlock, 6 * kBlock, Soon()), std::invalid_argument);
  EXPECT_THROW(job.WaitRange(0, 0, 10 * kBlock + 1, Soon()), std::invalid_argument);
}

TEST(Job, ManyAtOnce) {
  const auto data = RandomBytes(6 * kBlock);
  const TempFile file(data);
  auto pool = std::make_shared<RegionPool>(100 * kBlock);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (const Method method : WorkingMethods()) {
        JobOptions options = Small();
        options.pool = pool;
        Job job({Request(file.path(), data.size(), {{0, data.size()}}, method)}, options);
        job.Start();
        ASSERT_TRUE(job.Wait(Soon()));
        ASSERT_TRUE(SameBytes(*RegionOf(&job, 0), data));
      }
    });
  }
}

TEST(FileSums, StopWhenAsked) {
  const TempFile file(RandomBytes(100000));
  EXPECT_THROW(FileChunkSums(Env::Default(), file.path(), 1000, 1, [] { return true; }),
               CancelledError);
  EXPECT_THROW(FileChunkSums(Env::Default(), file.path(), 0, 2, {}), std::invalid_argument);
  EXPECT_THROW(FileChunkSums(Env::Default(), "/nonexistent", 1, 2, {}), IoError);
}

}  // namespace
}  // namespace sllm
