// How a file's bytes are fetched, and how `auto` decides.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "env.hpp"
#include "plan.hpp"

namespace sllm {

enum class Method { kAuto, kMap, kUring, kDirect, kBuffered };

const char* MethodName(Method method);
std::optional<Method> ParseMethod(const std::string& name);

struct Choice {
  Method method = Method::kBuffered;
  std::string reason;
  double resident = 0;           // of the wanted bytes, before the read
  bool mixed = false;            // blocks that are in the page cache are treated as such
  std::unique_ptr<File> direct;  // opened for direct reads, when the method uses them
};

struct MethodQuery {
  Env* env;
  const std::string& path;
  File* cached;  // the file, opened through the page cache
  const std::vector<Block>& blocks;
  Method wanted;
  bool may_map;    // false when the caller brought the memory
  int ring_error;  // why there is no io_uring, as an errno; 0 when there is
};

// Throws IoError when a method was asked for by name and cannot work.
Choice ChooseMethod(const MethodQuery& query);

}  // namespace sllm
