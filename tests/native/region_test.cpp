#include "region.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "error.hpp"
#include "support.hpp"

namespace sllm {
namespace {

constexpr size_t kMega = size_t{1} << 20;

TEST(Region, HugePagesAreAlignedAndZero) {
  auto memory = Memory::Anonymous(Env::Default(), 5 * kMega, true);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % Memory::kSlice, 0U);
  EXPECT_FALSE(memory->Touched(0, kMega));
  memory->Touch(0, kMega);
  EXPECT_TRUE(memory->Touched(0, 2 * kMega));
  EXPECT_FALSE(memory->Touched(0, 2 * kMega + 1));
  memory->Touch(0, 5 * kMega);
  EXPECT_TRUE(memory->Touched(0, 5 * kMega));
  for (size_t i = 0; i < 5 * kMega; i += 999) EXPECT_EQ(memory->data()[i], std::byte{0});
}

TEST(Region, TouchChangesNoByte) {
  auto memory = Memory::Anonymous(Env::Default(), 4 * kMega, false);
  const auto data = RandomBytes(4 * kMega);
  std::memcpy(memory->data(), data.data(), data.size());
  TouchInParallel(memory.get(), 4 * kMega);
  EXPECT_EQ(std::memcmp(memory->data(), data.data(), data.size()), 0);
}

TEST(Region, TouchingByHandMakesPagesPresentAndChangesNone) {
  auto memory = Memory::Anonymous(Env::Default(), kMega, false);
  memory->data()[5 * kPage] = std::byte{7};
  TouchPages(memory->data(), kMega, Access::kWrite);
  TouchPages(memory->data(), kMega, Access::kRead);
  std::vector<unsigned char> present(kMega / kPage);
  ASSERT_EQ(mincore(memory->data(), kMega, present.data()), 0);
  for (const unsigned char page : present) EXPECT_EQ(page & 1, 1);
  EXPECT_EQ(memory->data()[5 * kPage], std::byte{7});
  EXPECT_EQ(memory->data()[6 * kPage], std::byte{0});
}

TEST(Region, EmptyHasAnAddress) {
  auto pool = std::make_shared<RegionPool>(0);
  const auto region = pool->Allocate(0, true, true);
  EXPECT_EQ(region->size(), 0U);
  EXPECT_NE(region->data(), nullptr);
}

TEST(Pool, GivesTouchedMemoryAgain) {
  auto pool = std::make_shared<RegionPool>(64 * kMega);
  auto region = pool->Allocate(8 * kMega, true, true);
  const std::byte* const data = region->data();
  EXPECT_EQ(pool->held_bytes(), 0U);
  region.reset();
  EXPECT_EQ(pool->held_bytes(), 8 * kMega);
  region = pool->Allocate(8 * kMega - 5000, true, false);
  EXPECT_EQ(region->data(), data);
  EXPECT_TRUE(region->memory().Touched(0, 8 * kMega));
  EXPECT_EQ(pool->held_bytes(), 0U);
}

TEST(Pool, TakesTheBestFitAndWastesLittle) {
  auto pool = std::make_shared<RegionPool>(100 * kMega);
  auto big = pool->Allocate(20 * kMega, true, false);
  auto fit = pool->Allocate(10 * kMega, true, false);
  const std::byte* const fit_data = fit->data();
  big.reset();
  fit.reset();
  EXPECT_EQ(pool->Allocate(9 * kMega, true, false)->data(), fit_data);
  const auto small = pool->Allocate(kMega, true, false);
  EXPECT_EQ(pool->held_bytes(), 30 * kMega);  // neither was broken into for one megabyte
}

TEST(Pool, KeepsNoMoreThanItMay) {
  auto pool = std::make_shared<RegionPool>(10 * kMega);
  pool->Allocate(11 * kMega, true, false).reset();
  EXPECT_EQ(pool->held_bytes(), 0U);
  auto a = pool->Allocate(6 * kMega, true, false);
  auto b = pool->Allocate(6 * kMega, true, false);
  const std::byte* const later = b->data();
  a.reset();
  b.reset();  // the oldest goes
  EXPECT_EQ(pool->held_bytes(), 6 * kMega);
  EXPECT_EQ(pool->Allocate(6 * kMega, true, false)->data(), later);
  pool->Clear();
  EXPECT_EQ(pool->held_bytes(), 0U);
}

TEST(Pool, RegionsOutliveIt) {
  FaultEnv env;
  auto pool = std::make_shared<RegionPool>(kMega, &env);
  auto region = pool->Allocate(1000, true, true);
  pool.reset();
  region->data()[999] = std::byte{1};
  EXPECT_EQ(env.mappings, 1);
  region.reset();
  EXPECT_EQ(env.mappings, 0);
}

TEST(Pool, NoMemoryIsAnExceptionAndLeaksNothing) {
  FaultEnv env;
  auto pool = std::make_shared<RegionPool>(kMega, &env);
  env.anonymous_error = ENOMEM;
  EXPECT_THROW(pool->Allocate(1000, true, false), std::bad_alloc);
  env.anonymous_error = 0;
  env.on_populate = [](Access) { return -ENOMEM; };
  EXPECT_THROW(pool->Allocate(1000, true, true), std::bad_alloc);
  env.on_populate = [](Access) { return -EFAULT; };
  EXPECT_THROW(pool->Allocate(1000, true, true), IoError);
  pool->Clear();
  EXPECT_EQ(env.mappings, 0);
}

TEST(Pool, IsSafeForThreads) {
  auto pool = std::make_shared<RegionPool>(16 * kMega);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 50; ++i) {
        const auto region = pool->Allocate(static_cast<size_t>(t + 1) * kMega, true, false);
        region->memory().Touch(0, kMega);
        std::memset(region->data(), t, kMega);
        ASSERT_EQ(region->data()[kMega - 1], static_cast<std::byte>(t));
      }
    });
  }
}

}  // namespace
}  // namespace sllm
