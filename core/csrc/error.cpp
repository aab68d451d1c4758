#include "error.hpp"

#include <system_error>
#include <utility>

namespace sllm {

IoError::IoError(int code, std::string path, const std::string& text)
    : std::runtime_error(text), code_(code), path_(std::move(path)) {}

ChecksumError::ChecksumError(std::string path_in, uint64_t chunk_in, uint64_t offset_in,
                             uint32_t expected_in, uint32_t actual_in)
    : std::runtime_error("checksum mismatch in chunk " + std::to_string(chunk_in) + " of " +
                         path_in),
      path(std::move(path_in)),
      chunk(chunk_in),
      offset(offset_in),
      expected(expected_in),
      actual(actual_in) {}

std::string ErrnoText(const std::string& what, int code) {
  return what + ": " + std::generic_category().message(code);
}

}  // namespace sllm
