// The Python module, one function per concern. See core/sllm/_native.pyi for the contract.
#pragma once

#include <nanobind/nanobind.h>

namespace sllm {

void BindErrors(nanobind::module_& module);
void BindRegion(nanobind::module_& module);
void BindJob(nanobind::module_& module);
void BindTools(nanobind::module_& module);

}  // namespace sllm
