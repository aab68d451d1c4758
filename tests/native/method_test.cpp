#include "method.hpp"

#include <fcntl.h>

#include <cerrno>

#include "error.hpp"
#include "probe.hpp"
#include "residency.hpp"
#include "support.hpp"

namespace sllm {
namespace {

class Choosing : public testing::Test {
 protected:
  const TempFile temp_{RandomBytes(100000)};
  FaultEnv env_;
  std::unique_ptr<File> file_;
  const std::vector<Block> blocks_ = PlanBlocks({{0, 100000}}, 100000, 4 * kPage);

  void SetUp() override {
    if (!HaveDirect(temp_.path())) GTEST_SKIP() << "no direct reads on this file system";
    ASSERT_EQ(env_.Open(temp_.path(), OpenMode::kBuffered, &file_), 0);
  }
  Choice Choose(Method wanted, int ring_error = 0, bool may_map = true) {
    return ChooseMethod({&env_, temp_.path(), file_.get(), blocks_, wanted, may_map, ring_error});
  }
};

TEST_F(Choosing, CachedFilesAreMapped) {
  env_.resident = 1.0;
  const Choice choice = Choose(Method::kAuto);
  EXPECT_EQ(choice.method, Method::kMap);
  EXPECT_EQ(choice.reason, "100 % in the page cache");
  EXPECT_EQ(choice.direct, nullptr);
  EXPECT_EQ(Choose(Method::kAuto, 0, false).method, Method::kBuffered);
}

TEST_F(Choosing, ColdFilesAreReadDirectly) {
  env_.resident = 0.0;
  const Choice ring = Choose(Method::kAuto);
  EXPECT_EQ(ring.method, Method::kUring);
  EXPECT_FALSE(ring.mixed);
  EXPECT_NE(ring.direct, nullptr);
  const Choice threads = Choose(Method::kAuto, EPERM);
  EXPECT_EQ(threads.method, Method::kDirect);
  EXPECT_NE(threads.reason.find("no io_uring"), std::string::npos);
}

TEST_F(Choosing, PartlyCachedFilesAreMixed) {
  env_.resident = 0.3;
  const Choice choice = Choose(Method::kAuto);
  EXPECT_EQ(choice.method, Method::kUring);
  EXPECT_TRUE(choice.mixed);
}

TEST_F(Choosing, UnknownResidencyCountsAsCold) {
  env_.resident = -1.0;
  const Choice choice = Choose(Method::kAuto);
  EXPECT_EQ(choice.method, Method::kUring);
  EXPECT_EQ(choice.resident, 0);
}

TEST_F(Choosing, RefusedDirectReadsFallBack) {
  env_.resident = 0.0;
  env_.direct_error = EINVAL;
  const Choice at_open = Choose(Method::kAuto);
  EXPECT_EQ(at_open.method, Method::kBuffered);
  EXPECT_NE(at_open.reason.find("O_DIRECT refused"), std::string::npos);
  env_.direct_error = 0;
  env_.on_read = [](uint64_t, size_t*) { return -EINVAL; };
  EXPECT_EQ(Choose(Method::kAuto).method, Method::kBuffered);
}

TEST_F(Choosing, ForcedMethodsFailLoudly) {
  EXPECT_EQ(Choose(Method::kBuffered).reason, "asked for");
  EXPECT_THROW(Choose(Method::kUring, ENOSYS), IoError);
  env_.direct_error = EINVAL;
  EXPECT_THROW(Choose(Method::kUring), IoError);
  try {
    Choose(Method::kDirect);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_EQ(error.code(), EINVAL);
    EXPECT_NE(std::string(error.what()).find("use method auto or buffered"), std::string::npos);
  }
}

TEST(Methods, NamesRoundTrip) {
  for (const char* name : {"auto", "map", "uring", "direct", "buffered"}) {
    EXPECT_STREQ(MethodName(ParseMethod(name).value()), name);
  }
  EXPECT_FALSE(ParseMethod("mmap"));
}

TEST(Probing, ResidencyFollowsTheCache) {
  const TempFile file(RandomBytes(1 << 20));
  EXPECT_EQ(FileResidency(file.path()), 1.0);
  if (ProbeFile(file.path()).file_system == "tmpfs") GTEST_SKIP() << "tmpfs is the page cache";
  file.Evict();
  EXPECT_EQ(FileResidency(file.path()), 0.0);
}

// The fallbacks for kernels or files where the first way is refused agree with it.
TEST(Probing, ThreeWaysToAskAgree) {
  constexpr size_t kSize = size_t{16} << 20;
  const TempFile file(RandomBytes(kSize));
  if (ProbeFile(file.path()).file_system == "tmpfs") GTEST_SKIP() << "tmpfs is the page cache";
  std::unique_ptr<File> opened;
  ASSERT_EQ(Env::Default()->Open(file.path(), OpenMode::kBuffered, &opened), 0);
  const int descriptor = opened->descriptor();
  const auto expect_all = [&](double fraction) {
    const double exact = ResidentByCachestat(descriptor, 0, kSize);
    if (exact >= 0) {  // else the kernel is older than the call
      EXPECT_EQ(exact, fraction);
    }
    EXPECT_EQ(ResidentByMincore(descriptor, 0, kSize), fraction);
    const double sample = ResidentBySample(descriptor, 0, kSize);
    if (sample >= 0) {  // else the file system cannot
      EXPECT_EQ(sample, fraction);
    }
  };
  expect_all(1.0);
  file.Evict();
  expect_all(0.0);
  std::vector<std::byte> all(kSize);
  ASSERT_EQ(opened->Read(all.data(), kSize, 0), static_cast<int64_t>(kSize));
  posix_fadvise(descriptor, kSize / 2, 0, POSIX_FADV_DONTNEED);
  expect_all(0.5);
}

TEST(Probing, TellsWhatIsWrongWithAPath) {
  EXPECT_THROW(ProbeFile("/nonexistent/file"), IoError);
  try {
    FileResidency("/");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_EQ(error.code(), EISDIR);
  }
}

}  // namespace
}  // namespace sllm
