// Ring on io_uring(7).
#pragma once

#include <memory>

#include "env.hpp"

namespace sllm {

// Null, and *error set to an errno, when it was not compiled in (ENOSYS) or the kernel, a seccomp
// filter or a limit refuses.
std::unique_ptr<Ring> NewUring(unsigned depth, int* error);

bool UringCompiledIn();

}  // namespace sllm
