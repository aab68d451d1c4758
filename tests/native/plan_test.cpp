// Blocks, the progress of one read, and chunk checksums: arithmetic without a file.
#include "plan.hpp"

#include <algorithm>
#include <cerrno>
#include <random>

#include "chunk_sums.hpp"
#include "crc32c.hpp"
#include "error.hpp"
#include "read_cursor.hpp"
#include "support.hpp"

namespace sllm {
namespace {

constexpr uint64_t kBlock = 64 << 10;

TEST(Plan, NothingWantedNothingRead) {
  EXPECT_TRUE(PlanBlocks({}, 1000, kBlock).empty());
  EXPECT_TRUE(PlanBlocks({{10, 0}, {20, 0}}, 1000, kBlock).empty());
  EXPECT_TRUE(PlanBlocks({{0, 0}}, 0, kBlock).empty());
}

TEST(Plan, AlignsAndStopsAtTheEnd) {
  const auto blocks = PlanBlocks({{5000, 10}}, 5050, kBlock);
  ASSERT_EQ(blocks.size(), 1U);
  EXPECT_EQ(blocks[0].offset, 4096U);
  EXPECT_EQ(blocks[0].end(), 5050U);
}

TEST(Plan, JoinsNeighboursOnly) {
  const uint64_t far = 10 * kBlock + kCoalesceGap + 3 * kPage;
  const auto blocks = PlanBlocks({{0, 10}, {9000, 10}, {far, 10}}, 100 * kBlock, kBlock);
  ASSERT_EQ(blocks.size(), 2U);
  EXPECT_EQ(blocks[0].end(), 3 * kPage);
  EXPECT_EQ(blocks[1].length, kPage);
}

TEST(Plan, RefusesNonsense) {
  EXPECT_THROW(PlanBlocks({{0, 101}}, 100, kBlock), std::invalid_argument);
  EXPECT_THROW(PlanBlocks({{101, 0}}, 100, kBlock), std::invalid_argument);
  EXPECT_THROW(PlanBlocks({{1, ~uint64_t{0}}}, 100, kBlock), std::invalid_argument);
  EXPECT_THROW(PlanBlocks({{50, 10}, {40, 5}}, 100, kBlock), std::invalid_argument);
  EXPECT_THROW(PlanBlocks({{50, 10}, {55, 10}}, 100, kBlock), std::invalid_argument);
  EXPECT_THROW(PlanBlocks({{0, 1}}, 100, 0), std::invalid_argument);
  EXPECT_THROW(PlanBlocks({{0, 1}}, 100, 1000), std::invalid_argument);
}

std::vector<Extent> RandomExtents(std::mt19937* random, uint64_t size) {
  std::vector<Extent> extents;
  uint64_t at = 0;
  while (at < size && extents.size() < 20) {
    at += (*random)() % (size / 8 + 1);
    if (at >= size) break;
    const uint64_t length = std::min<uint64_t>((*random)() % (size / 4 + 1), size - at);
    extents.push_back({at, length});
    at += length;
  }
  return extents;
}

TEST(Plan, CoversWhatIsWantedInOrderWithoutOverlap) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const uint64_t size = 1 + random() % (40 * kBlock);
    const auto extents = RandomExtents(&random, size);
    const auto blocks = PlanBlocks(extents, size, kBlock);
    uint64_t previous = 0;
    for (const Block& block : blocks) {
      ASSERT_GE(block.offset, previous);
      ASSERT_EQ(block.offset % kPage, 0U);
      ASSERT_GT(block.length, 0U);
      ASSERT_LE(block.length, kBlock);
      ASSERT_TRUE(block.end() % kPage == 0 || block.end() == size);
      previous = block.end();
    }
    for (const Extent& extent : extents) {
      ASSERT_TRUE(Covers(blocks, extent.offset, extent.offset + extent.length));
    }
  }
}

class Cursor : public testing::Test {
 protected:
  std::vector<std::byte> memory_{4 * kPage};
  ReadCursor Direct(uint64_t file_size) {
    return {memory_.data(), {kPage, std::min<uint64_t>(3 * kPage, file_size - kPage)}, file_size,
            true};
  }
  ReadCursor Buffered() { return {memory_.data(), {kPage, 3 * kPage}, 4 * kPage, false}; }
};

TEST_F(Cursor, GoesOnAfterAShortRead) {
  ReadCursor cursor = Buffered();
  EXPECT_FALSE(cursor.Advance(100, "f"));
  EXPECT_EQ(cursor.offset(), kPage + 100);
  EXPECT_EQ(cursor.to(), memory_.data() + 100);
  EXPECT_TRUE(cursor.Advance(3 * kPage - 100, "f"));
}

TEST_F(Cursor, DirectGoesOnFromAPage) {
  ReadCursor cursor = Direct(4 * kPage);
  EXPECT_FALSE(cursor.Advance(kPage + 512, "f"));
  EXPECT_EQ(cursor.offset(), 2 * kPage);
  EXPECT_EQ(cursor.length(), 2 * kPage);
}

TEST_F(Cursor, DirectTailAsksForWholePagesAndTakesTheRest) {
  ReadCursor cursor = Direct(2 * kPage + 5);
  EXPECT_EQ(cursor.length(), 2 * kPage);
  EXPECT_TRUE(cursor.Advance(kPage + 5, "f"));
}

TEST_F(Cursor, RepeatsWhatPassesAndReportsWhatStays) {
  ReadCursor cursor = Buffered();
  EXPECT_FALSE(cursor.Advance(-EINTR, "f"));
  EXPECT_FALSE(cursor.Advance(-EAGAIN, "f"));
  EXPECT_EQ(cursor.offset(), kPage);
  EXPECT_THROW(cursor.Advance(-EIO, "f"), IoError);
  ReadCursor stuck = Buffered();
  EXPECT_THROW(
      for (int i = 0; i < 1000; ++i) stuck.Advance(-EAGAIN, "f"), IoError);
}

TEST_F(Cursor, AnInterruptionIsNoEnd) {
  ReadCursor cursor = Direct(4 * kPage);
  EXPECT_FALSE(cursor.Advance(-EINTR, "f"));
  EXPECT_FALSE(cursor.Advance(512, "f"));  // a signal cut it below a page
  EXPECT_FALSE(cursor.Advance(kPage, "f"));
  EXPECT_TRUE(cursor.Advance(2 * kPage, "f"));
}

TEST_F(Cursor, AnEarlyEndIsAnErrorThatSaysWhere) {
  for (const bool direct : {false, true}) {
    ReadCursor cursor = direct ? Direct(4 * kPage) : Buffered();
    EXPECT_FALSE(cursor.Advance(kPage, "f"));
    EXPECT_FALSE(cursor.Advance(0, "f"));
    try {
      cursor.Advance(0, "the-file");
      FAIL();
    } catch (const IoError& error) {
      EXPECT_EQ(error.path(), "the-file");
      EXPECT_EQ(error.code(), EIO);
      EXPECT_NE(std::string(error.what()).find("offset 8192"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("16384"), std::string::npos) << error.what();
    }
  }
}

class Sums : public testing::Test {
 protected:
  static constexpr uint64_t kChunk = 10000;  // on purpose no multiple of a page
  const std::vector<std::byte> data_ = RandomBytes(123456);

  std::vector<uint32_t> Expected() const {
    std::vector<uint32_t> sums;
    for (uint64_t at = 0; at < data_.size(); at += kChunk) {
      sums.push_back(Crc32c(0, data_.data() + at, std::min<uint64_t>(kChunk, data_.size() - at)));
    }
    return sums;
  }
  ChunkSums::Sum Summer(const std::vector<std::byte>& data) const {
    return [&data](uint64_t offset, uint64_t length) {
      return Crc32c(0, data.data() + offset, length);
    };
  }
};

TEST_F(Sums, EveryOrderClearsEveryBlockOnce) {
  const auto blocks = PlanBlocks({{0, data_.size()}}, data_.size(), 2 * kPage);
  std::vector<size_t> order(blocks.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::mt19937 random(4);
  for (int round = 0; round < 20; ++round) {
    ChunkSums sums("f", data_.size(), kChunk, Expected(), blocks);
    EXPECT_TRUE(sums.complete());
    std::vector<size_t> cleared;
    for (const size_t block : order) sums.Add(block, Summer(data_), &cleared);
    std::sort(cleared.begin(), cleared.end());
    ASSERT_EQ(cleared.size(), blocks.size());
    EXPECT_EQ(std::unique(cleared.begin(), cleared.end()), cleared.end());
    std::shuffle(order.begin(), order.end(), random);
  }
}

TEST_F(Sums, ABlockIsClearedOnlyWhenItsChunksAre) {
  const auto blocks = PlanBlocks({{0, data_.size()}}, data_.size(), kPage);
  ChunkSums sums("f", data_.size(), kChunk, Expected(), blocks);
  std::vector<size_t> cleared;
  sums.Add(0, Summer(data_), &cleared);
  sums.Add(1, Summer(data_), &cleared);
  EXPECT_TRUE(cleared.empty());
  sums.Add(2, Summer(data_), &cleared);  // ends chunk 0, and begins chunk 1
  EXPECT_EQ(cleared, (std::vector<size_t>{0, 1}));
}

TEST_F(Sums, AnyFlippedBitIsFound) {
  const auto blocks = PlanBlocks({{0, data_.size()}}, data_.size(), 4 * kPage);
  for (const size_t at : {size_t{0}, size_t{9999}, size_t{10000}, data_.size() - 1}) {
    auto bad = data_;
    bad[at] ^= std::byte{0x10};
    ChunkSums sums("f", data_.size(), kChunk, Expected(), blocks);
    std::vector<size_t> cleared;
    try {
      for (size_t block = 0; block < blocks.size(); ++block) {
        sums.Add(block, Summer(bad), &cleared);
      }
      FAIL() << "byte " << at;
    } catch (const ChecksumError& error) {
      EXPECT_EQ(error.chunk, at / kChunk);
      EXPECT_EQ(error.offset, at / kChunk * kChunk);
      EXPECT_EQ(error.expected, Expected()[at / kChunk]);
      EXPECT_NE(error.actual, error.expected);
    }
  }
}

TEST_F(Sums, ChunksReadInPartAreLeftOut) {
  const auto blocks = PlanBlocks({{0, 100}, {kChunk * 8, kChunk}}, data_.size(), kPage);
  auto bad = data_;
  bad[50] ^= std::byte{1};
  ChunkSums sums("f", data_.size(), kChunk, Expected(), blocks);
  EXPECT_FALSE(sums.complete());
  std::vector<size_t> cleared;
  for (size_t block = 0; block < blocks.size(); ++block) sums.Add(block, Summer(bad), &cleared);
  EXPECT_EQ(cleared.size(), blocks.size());
}

TEST_F(Sums, RefusesNonsense) {
  const std::vector<Block> none;
  EXPECT_THROW(ChunkSums("f", 100, 0, {1}, none), std::invalid_argument);
  EXPECT_THROW(ChunkSums("f", 100, 10, {1}, none), std::invalid_argument);
  EXPECT_NO_THROW(ChunkSums("f", 0, 10, {}, none));
}

}  // namespace
}  // namespace sllm
