#include "method.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "error.hpp"
#include "probe.hpp"

namespace sllm {
namespace {

struct Named {
  Method method;
  const char* name;
};
constexpr std::array kNames{Named{Method::kAuto, "auto"}, Named{Method::kMap, "map"},
                            Named{Method::kUring, "uring"}, Named{Method::kDirect, "direct"},
                            Named{Method::kBuffered, "buffered"}};

// From this share of the wanted bytes in the page cache on, the file is mapped. What is missing
// then comes in through the cache, at worst at half the speed of a direct read, so below a share
// of one half reading all of it directly would be faster; above it the mapping also saves the
// memory, its first touch and the copy.
constexpr double kMapResident = 0.5;

// Below this share it is not worth asking, for every block, whether it is in the cache.
constexpr double kMixedResident = 0.02;

double WantedResidency(const MethodQuery& query) {
  uint64_t wanted = 0;
  double cached = 0;
  for (size_t i = 0; i < query.blocks.size();) {
    const uint64_t begin = query.blocks[i].offset;
    uint64_t end = query.blocks[i].end();
    for (++i; i < query.blocks.size() && query.blocks[i].offset == end; ++i) {
      end = query.blocks[i].end();
    }
    const double fraction = query.cached->Resident(begin, end - begin);
    if (fraction < 0) return 0;
    cached += fraction * static_cast<double>(end - begin);
    wanted += end - begin;
  }
  return wanted == 0 ? 0 : cached / static_cast<double>(wanted);
}

std::string Percent(double fraction) {
  std::array<char, 16> text{};
  // Rounded down, so that 100 % means all.
  std::snprintf(text.data(), text.size(), "%d %%", static_cast<int>(fraction * 100));
  return text.data();
}

void ChooseForced(const MethodQuery& query, Choice* choice) {
  choice->method = query.wanted;
  choice->reason = "asked for";
  const bool ring = query.wanted == Method::kUring;
  if (ring && query.ring_error != 0) {
    throw IoError(query.ring_error, query.path,
                  ErrnoText("method uring: io_uring is not available", query.ring_error) +
                      "; use method auto or direct");
  }
  if (ring || query.wanted == Method::kDirect) {
    const std::string refusal = DirectRefusal(query.env, query.path, &choice->direct);
    if (!refusal.empty()) {
      throw IoError(EINVAL, query.path,
                    std::string("method ") + MethodName(query.wanted) + ": " + refusal +
                        "; use method auto or buffered");
    }
  }
}

void ChooseAutomatic(const MethodQuery& query, Choice* choice) {
  const std::string cached = Percent(choice->resident) + " in the page cache";
  if (choice->resident >= kMapResident) {
    choice->method = query.may_map ? Method::kMap : Method::kBuffered;
    choice->mixed = query.may_map;
    choice->reason = cached;
    return;
  }
  const std::string refusal = DirectRefusal(query.env, query.path, &choice->direct);
  if (!refusal.empty()) {
    choice->method = Method::kBuffered;
    choice->reason = cached + ", " + refusal;
    return;
  }
  choice->mixed = choice->resident >= kMixedResident;
  choice->reason = cached;
  if (choice->mixed) choice->reason += " (copied from there)";
  if (query.ring_error == 0) {
    choice->method = Method::kUring;
  } else {
    choice->method = Method::kDirect;
    choice->reason += ", " + ErrnoText("no io_uring", query.ring_error);
  }
}

}  // namespace

const char* MethodName(Method method) {
  const auto* it = std::find_if(kNames.begin(), kNames.end(),
                                [method](const Named& n) { return n.method == method; });
  return it->name;
}

std::optional<Method> ParseMethod(const std::string& name) {
  for (const Named& known : kNames) {
    if (known.name == name) return known.method;
  }
  return std::nullopt;
}

Choice ChooseMethod(const MethodQuery& query) {
  Choice choice;
  choice.resident = WantedResidency(query);
  if (query.wanted != Method::kAuto) {
    ChooseForced(query, &choice);
  } else {
    ChooseAutomatic(query, &choice);
  }
  return choice;
}

}  // namespace sllm
