// Questions about a file and the file system under it, asked of the kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "env.hpp"

namespace sllm {

struct Probe {
  bool direct = false;        // O_DIRECT reads work
  uint32_t direct_align = 0;  // bytes; 0 when direct reads do not work
  bool uring = false;         // io_uring can be used by this process
  std::string file_system;    // "ext4", "tmpfs", ... or the magic number in hexadecimal
  std::string reason;         // why direct or uring is false; empty when both work
};

// Throws IoError when the file cannot be opened.
Probe ProbeFile(const std::string& path);

// Fraction of [offset, offset + length) in the page cache; -1 when the kernel will not say.
double ResidentFraction(int descriptor, uint64_t offset, uint64_t length);

// Opens `path` for direct reads and tries one; empty text and *file on success, else the reason.
std::string DirectRefusal(Env* env, const std::string& path, std::unique_ptr<File>* file);

// The same for a whole file; 0 when the kernel will not say. Throws IoError.
double FileResidency(const std::string& path);

// Drops the file's clean pages from the page cache. Throws IoError.
void EvictFile(const std::string& path);

}  // namespace sllm
