// CRC32C (Castagnoli polynomial, reflected, as in RFC 3720): the checksum of a chunk.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sllm {

// Continues from `crc` (0 to begin), so that Crc32c(Crc32c(0, a), b) is the checksum of ab.
uint32_t Crc32c(uint32_t crc, const void* data, size_t length);

// Checksum of ab from those of a and b, in O(log length_b).
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b);

// What Crc32c runs on: "sse4.2", "armv8" or "table".
const char* Crc32cImplementation();

// The portable implementation, whatever the machine has; for tests and as the fallback.
uint32_t Crc32cTable(uint32_t crc, const void* data, size_t length);

}  // namespace sllm
