#include "bindings.hpp"

namespace nb = nanobind;

NB_MODULE(_native, module) {
  module.doc() = "The native loader. Links neither torch nor CUDA; releases the GIL while it works.";
  // A program may end with its model still in a global: its tensors then outlive the interpreter's
  // teardown on purpose. That is no leak to tell its user about.
  nb::set_leak_warnings(false);
  sllm::BindErrors(module);
  sllm::BindRegion(module);
  sllm::BindJob(module);
  sllm::BindTools(module);
}
