// What statx(2) says about direct I/O on an open file (Linux 6.1).
#pragma once

#include <cstdint>

namespace sllm {

// Bytes that offset, length and buffer address of a direct read must be multiples of; 512 when the
// kernel does not say (true of every local file system on a disk with 512-byte logical blocks);
// 0 when it says that direct reads are not supported.
uint32_t DirectAlignment(int descriptor);

}  // namespace sllm
