// Paths from Python: str, bytes or os.PathLike, in the file system's encoding.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

namespace sllm {

inline std::string FsPath(nanobind::handle path) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), &bytes) == 0) throw nanobind::python_error();
  const auto owned = nanobind::steal<nanobind::bytes>(bytes);
  return {owned.c_str(), owned.size()};
}

}  // namespace sllm
