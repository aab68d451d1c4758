#include "uring.hpp"

#include <cerrno>

namespace sllm {

std::unique_ptr<Ring> NewUring(unsigned, int* error) {
  *error = ENOSYS;
  return nullptr;
}

bool UringCompiledIn() { return false; }

}  // namespace sllm
