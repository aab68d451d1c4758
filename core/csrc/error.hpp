// What can go wrong, as types. Everything below the bindings throws one of these,
// std::bad_alloc (no memory) or std::invalid_argument (the caller's mistake).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sllm {

// An operating system error on a file. `code` is an errno value.
class IoError : public std::runtime_error {
 public:
  IoError(int code, std::string path, const std::string& text);
  int code() const { return code_; }
  const std::string& path() const { return path_; }

 private:
  int code_;
  std::string path_;
};

// The bytes of a chunk differ from the checksum that was given for it.
class ChecksumError : public std::runtime_error {
 public:
  ChecksumError(std::string path, uint64_t chunk, uint64_t offset, uint32_t expected,
                uint32_t actual);
  const std::string path;
  const uint64_t chunk;
  const uint64_t offset;
  const uint32_t expected;
  const uint32_t actual;
};

class CancelledError : public std::runtime_error {
 public:
  CancelledError() : std::runtime_error("the load was cancelled") {}
};

// "read 4096 bytes at offset 8192: Input/output error"
std::string ErrnoText(const std::string& what, int code);

}  // namespace sllm
