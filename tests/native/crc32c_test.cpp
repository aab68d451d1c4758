#include "crc32c.hpp"

#include <cstring>
#include <random>

#include "support.hpp"

namespace sllm {
namespace {

// RFC 3720, appendix B.4.
TEST(Crc32c, KnownVectors) {
  std::vector<unsigned char> data(32, 0);
  EXPECT_EQ(Crc32c(0, data.data(), 32), 0x8A9136AAU);
  std::fill(data.begin(), data.end(), 0xFF);
  EXPECT_EQ(Crc32c(0, data.data(), 32), 0x62A8AB43U);
  for (unsigned char i = 0; i < 32; ++i) data[i] = i;
  EXPECT_EQ(Crc32c(0, data.data(), 32), 0x46DD794EU);
  for (unsigned char i = 0; i < 32; ++i) data[i] = static_cast<unsigned char>(31 - i);
  EXPECT_EQ(Crc32c(0, data.data(), 32), 0x113FDB5CU);
  EXPECT_EQ(Crc32c(0, "123456789", 9), 0xE3069283U);
  EXPECT_EQ(Crc32c(0, nullptr, 0), 0U);
}

// The table is a second, independent implementation of the whole sum.
TEST(Crc32c, HardwareEqualsTableAtEveryLengthAndAlignment) {
  const auto data = RandomBytes(500000);
  for (size_t length = 0; length < 3000; length += length < 40 ? 1 : 37) {
    for (size_t start = 0; start < 9; ++start) {
      ASSERT_EQ(Crc32c(7, data.data() + start, length), Crc32cTable(7, data.data() + start, length))
          << length << " bytes from " << start;
    }
  }
  for (const size_t length : {12287, 12288, 12289, 24576, 196607, 196608, 196609, 499991}) {
    ASSERT_EQ(Crc32c(0, data.data() + 1, length), Crc32cTable(0, data.data() + 1, length));
  }
}

TEST(Crc32c, ContinuesAndCombines) {
  const auto data = RandomBytes(20000);
  const uint32_t whole = Crc32c(0, data.data(), data.size());
  std::mt19937 random(2);
  for (int i = 0; i < 50; ++i) {
    const size_t cut = random() % (data.size() + 1);
    const uint32_t a = Crc32c(0, data.data(), cut);
    const uint32_t b = Crc32c(0, data.data() + cut, data.size() - cut);
    EXPECT_EQ(Crc32c(a, data.data() + cut, data.size() - cut), whole);
    EXPECT_EQ(Crc32cCombine(a, b, data.size() - cut), whole);
  }
}

// Lengths whose bits reach past 2^31, where the powers of x do not repeat as CRC-32's do.
TEST(Crc32c, CombinesAcrossHugeLengths) {
  const uint32_t a = Crc32c(0, "a", 1);
  const uint32_t b = Crc32c(0, "b", 1);
  constexpr uint64_t kHuge = (uint64_t{1} << 40) + 12345;
  // Sums of zeros of that length, joined in two ways.
  const uint32_t left = Crc32cCombine(Crc32cCombine(a, 0, kHuge), b, 1);
  const uint32_t right = Crc32cCombine(a, Crc32cCombine(0, b, 1), kHuge + 1);
  EXPECT_EQ(left, right);
}

}  // namespace
}  // namespace sllm
