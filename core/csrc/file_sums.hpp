// Checksums of a file's chunks, for whoever writes them down.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "env.hpp"

namespace sllm {

// CRC32C of each `chunk_size` bytes of the file, computed by `threads` threads (0: choose). Throws
// IoError, std::invalid_argument for a chunk size of 0. `stop` is asked now and then: when it
// returns true the work ends with CancelledError; it is called on the calling thread only.
std::vector<uint32_t> FileChunkSums(Env* env, const std::string& path, uint64_t chunk_size,
                                    unsigned threads, const std::function<bool()>& stop);

}  // namespace sllm
