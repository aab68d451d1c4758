// How much of a file the page cache holds, in three ways, the best first. Each returns a fraction,
// or -1 when it cannot tell. `length` is not 0.
#pragma once

#include <cstdint>

namespace sllm {

// cachestat(2), Linux 6.5: exact and cheap; refused for files that we neither own nor can write.
double ResidentByCachestat(int descriptor, uint64_t offset, uint64_t length);

// mincore(2) on a mapping: exact. Says "all" for the files that cachestat refuses, so -1 for them.
double ResidentByMincore(int descriptor, uint64_t offset, uint64_t length);

// preadv2(RWF_NOWAIT) of single pages: works for every readable file, but is only a sample.
double ResidentBySample(int descriptor, uint64_t offset, uint64_t length);

}  // namespace sllm
