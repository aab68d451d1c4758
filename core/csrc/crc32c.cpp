#include "crc32c.hpp"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define SLLM_CRC_HARDWARE "sse4.2"
#define SLLM_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define SLLM_CRC_HARDWARE "armv8"
#define SLLM_CRC_TARGET __attribute__((target("+crc")))
#endif

namespace sllm {
namespace {

static_assert(std::endian::native == std::endian::little, "written for little-endian machines");

constexpr uint32_t kPolynomial = 0x82F63B78U;

// Arithmetic on polynomials modulo kPolynomial, reflected: bit 31 is x^0.

constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 1U << 31; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// x^(2^i). All 64 + 3 are kept: unlike CRC-32's, this polynomial is not primitive, so the
// powers do not repeat with period 32.
constexpr std::array<uint32_t, 67> MakePowers() {
  std::array<uint32_t, 67> powers{};
  powers[0] = 1U << 30;
  for (size_t i = 1; i < powers.size(); ++i) powers[i] = Multiply(powers[i - 1], powers[i - 1]);
  return powers;
}
constexpr auto kPowers = MakePowers();

// x^(8 * bytes): multiplying by it appends that many zero bytes.
constexpr uint32_t ShiftBy(uint64_t bytes) {
  uint32_t result = 1U << 31;
  for (size_t i = 3; bytes != 0; bytes >>= 1, ++i) {
    if ((bytes & 1) != 0) result = Multiply(kPowers[i], result);
  }
  return result;
}

using Table = std::array<std::array<uint32_t, 256>, 8>;

constexpr Table MakeSlicingTable() {
  Table table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ kPolynomial : crc >> 1;
    table[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = table[k - 1][byte];
      table[k][byte] = table[0][crc & 255] ^ (crc >> 8);
    }
  }
  return table;
}
constexpr Table kSlicing = MakeSlicingTable();

uint64_t Load64(const unsigned char* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

#ifdef SLLM_CRC_HARDWARE

#if defined(__x86_64__)
SLLM_CRC_TARGET inline uint64_t Step8(uint64_t crc, uint64_t word) {
  return _mm_crc32_u64(crc, word);
}
SLLM_CRC_TARGET inline uint32_t Step1(uint32_t crc, unsigned char byte) {
  return _mm_crc32_u8(crc, byte);
}
bool HasHardware() { return __builtin_cpu_supports("sse4.2") != 0; }
#else
SLLM_CRC_TARGET inline uint64_t Step8(uint64_t crc, uint64_t word) {
  return __crc32cd(static_cast<uint32_t>(crc), word);
}
SLLM_CRC_TARGET inline uint32_t Step1(uint32_t crc, unsigned char byte) {
  return __crc32cb(crc, byte);
}
bool HasHardware() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

// "Append `bytes` zeros", a linear map, as four look-ups of a byte.
constexpr std::array<std::array<uint32_t, 256>, 4> MakeShiftTable(uint64_t bytes) {
  std::array<std::array<uint32_t, 256>, 4> table{};
  const uint32_t shift = ShiftBy(bytes);
  for (uint32_t k = 0; k < 4; ++k) {
    std::array<uint32_t, 8> basis{};
    for (uint32_t bit = 0; bit < 8; ++bit) basis[bit] = Multiply(shift, 1U << (8 * k + bit));
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t sum = 0;
      for (uint32_t bit = 0; bit < 8; ++bit) {
        if ((byte >> bit & 1) != 0) sum ^= basis[bit];
      }
      table[k][byte] = sum;
    }
  }
  return table;
}

// The instruction takes three cycles but one can start every cycle: three streams of kLane bytes
// keep it busy. The shorter lanes serve what the longer ones leave. 64 KiB for the longest, because
// each change of place costs the prefetcher a start: from memory (not cache) lanes of 4, 16 and
// 64 KiB ran at 9.5, 20 and 26 GB/s where touching every cache line ran at 36.
constexpr size_t kHugeLane = 65536;
constexpr size_t kLongLane = 4096;
constexpr size_t kShortLane = 256;
constexpr auto kHugeShift = MakeShiftTable(kHugeLane);
constexpr auto kLongShift = MakeShiftTable(kLongLane);
constexpr auto kShortShift = MakeShiftTable(kShortLane);

template <size_t kLane>
SLLM_CRC_TARGET const unsigned char* ThreeLanes(
    uint64_t* crc, const unsigned char* p, const unsigned char* end,
    const std::array<std::array<uint32_t, 256>, 4>& shift) {
  const auto append_lane = [&shift](uint64_t value) {
    const auto v = static_cast<uint32_t>(value);
    return shift[0][v & 255] ^ shift[1][v >> 8 & 255] ^ shift[2][v >> 16 & 255] ^
           shift[3][v >> 24];
  };
  uint64_t a = *crc;
  while (static_cast<size_t>(end - p) >= 3 * kLane) {
    uint64_t b = 0;
    uint64_t c = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      a = Step8(a, Load64(p + i));
      b = Step8(b, Load64(p + i + kLane));
      c = Step8(c, Load64(p + i + 2 * kLane));
    }
    a = append_lane(append_lane(a) ^ b) ^ c;
    p += 3 * kLane;
  }
  *crc = a;
  return p;
}

SLLM_CRC_TARGET uint32_t Crc32cHardware(uint32_t crc, const void* data, size_t length) {
  const auto* p = static_cast<const unsigned char*>(data);
  const unsigned char* const end = p + length;
  uint64_t state = ~crc;
  p = ThreeLanes<kHugeLane>(&state, p, end, kHugeShift);
  p = ThreeLanes<kLongLane>(&state, p, end, kLongShift);
  p = ThreeLanes<kShortLane>(&state, p, end, kShortShift);
  for (; end - p >= 8; p += 8) state = Step8(state, Load64(p));
  auto last = static_cast<uint32_t>(state);
  for (; p != end; ++p) last = Step1(last, *p);
  return ~last;
}

#else
constexpr const char* SLLM_CRC_HARDWARE = "table";
bool HasHardware() { return false; }
uint32_t Crc32cHardware(uint32_t crc, const void* data, size_t length) {
  return Crc32cTable(crc, data, length);
}
#endif

bool UseHardware() {
  static const bool use = HasHardware();
  return use;
}

}  // namespace

uint32_t Crc32cTable(uint32_t crc, const void* data, size_t length) {
  const auto* p = static_cast<const unsigned char*>(data);
  uint32_t state = ~crc;
  for (; length >= 8; p += 8, length -= 8) {
    const uint64_t word = Load64(p) ^ state;
    state = 0;
    for (size_t k = 0; k < 8; ++k) state ^= kSlicing[7 - k][word >> (8 * k) & 255];
  }
  for (; length != 0; ++p, --length) state = kSlicing[0][(state ^ *p) & 255] ^ (state >> 8);
  return ~state;
}

uint32_t Crc32c(uint32_t crc, const void* data, size_t length) {
  return UseHardware() ? Crc32cHardware(crc, data, length) : Crc32cTable(crc, data, length);
}

uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b) {
  return Multiply(ShiftBy(length_b), crc_a) ^ crc_b;
}

const char* Crc32cImplementation() { return UseHardware() ? SLLM_CRC_HARDWARE : "table"; }

}  // namespace sllm
