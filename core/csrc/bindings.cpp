#include "bindings.hpp"

namespace nb = nanobind;

NB_MODULE(_native, module) {
  module.doc() = "The native loader. Links neither torch nor CUDA; releases the GIL while it works.";
  sllm::BindErrors(module);
  sllm::BindRegion(module);
  sllm::BindJob(module);
  sllm::BindTools(module);
}
