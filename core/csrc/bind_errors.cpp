// C++ exceptions as Python ones.
#include <exception>

#include "bindings.hpp"
#include "error.hpp"

namespace nb = nanobind;

namespace sllm {
namespace {

PyObject* cancelled_type = nullptr;
PyObject* checksum_type = nullptr;

PyObject* NewException(nb::module_& module, const char* name, const char* doc) {
  const std::string full = "sllm._native." + std::string(name);
  PyObject* const type = PyErr_NewExceptionWithDoc(full.c_str(), doc, PyExc_Exception, nullptr);
  if (type == nullptr) throw nb::python_error();
  module.attr(name) = nb::handle(type);
  return type;  // kept for the life of the process
}

void SetError(PyObject* type, const nb::tuple& args) { PyErr_SetObject(type, args.ptr()); }

void Translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const IoError& error) {
    // OSError picks its subclass (FileNotFoundError, ...) by the code.
    if (error.path().empty()) {
      SetError(PyExc_OSError, nb::make_tuple(error.code(), error.what()));
    } else {
      // Paths are bytes to the kernel: surrogateescape brings odd ones back unharmed.
      const auto path = nb::steal<nb::object>(PyUnicode_DecodeFSDefaultAndSize(
          error.path().data(), static_cast<Py_ssize_t>(error.path().size())));
      SetError(PyExc_OSError, nb::make_tuple(error.code(), error.what(), path));
    }
  } catch (const ChecksumError& error) {
    const auto path = nb::steal<nb::object>(PyUnicode_DecodeFSDefaultAndSize(
        error.path.data(), static_cast<Py_ssize_t>(error.path.size())));
    SetError(checksum_type,
             nb::make_tuple(path, error.chunk, error.offset, error.expected, error.actual));
  } catch (const CancelledError& error) {
    SetError(cancelled_type, nb::make_tuple(error.what()));
  }
}

}  // namespace

void BindErrors(nb::module_& module) {
  cancelled_type = NewException(module, "Cancelled", "The load was cancelled.");
  checksum_type = NewException(module, "ChecksumMismatch",
                               "args: (path, chunk index, offset, expected, actual)");
  nb::register_exception_translator(Translate);
}

}  // namespace sllm
