// Functions without state: checksums, probes, build information.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "crc32c.hpp"
#include "file_sums.hpp"
#include "fs_path.hpp"
#include "probe.hpp"
#include "uring.hpp"

#ifndef SLLM_VERSION
#define SLLM_VERSION "unknown"
#endif

#if defined(__SANITIZE_THREAD__)
#define SLLM_SANITIZER "thread"
#elif defined(__SANITIZE_ADDRESS__)
#define SLLM_SANITIZER "address"
#else
#define SLLM_SANITIZER "none"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm {
namespace {

// A C-contiguous view of any object with the buffer protocol.
class BufferView {
 public:
  explicit BufferView(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  }
  ~BufferView() { PyBuffer_Release(&view_); }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;
  const void* data() const { return view_.buf; }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

uint32_t SumBuffer(nb::handle data, uint32_t value) {
  const BufferView view(data);
  constexpr size_t kShort = 64 << 10;  // below, giving up the GIL costs more than it frees
  if (view.size() < kShort) return Crc32c(value, view.data(), view.size());
  const nb::gil_scoped_release release;
  return Crc32c(value, view.data(), view.size());
}

std::vector<uint32_t> SumFile(nb::handle path, uint64_t chunk_size, unsigned threads) {
  const std::string name = FsPath(path);
  bool interrupted = false;
  const auto check_signals = [&interrupted] {
    const nb::gil_scoped_acquire acquire;
    interrupted = PyErr_CheckSignals() != 0;
    return interrupted;
  };
  try {
    const nb::gil_scoped_release release;
    return FileChunkSums(Env::Default(), name, chunk_size, threads, check_signals);
  } catch (const std::exception&) {
    if (interrupted) throw nb::python_error();
    throw;
  }
}

nb::dict ProbeDict(nb::handle path) {
  const std::string name = FsPath(path);
  Probe probe;
  {
    const nb::gil_scoped_release release;
    probe = ProbeFile(name);
  }
  nb::dict result;
  result["direct"] = probe.direct;
  result["direct_align"] = probe.direct_align;
  result["uring"] = probe.uring;
  result["file_system"] = probe.file_system;
  result["reason"] = probe.reason;
  return result;
}

nb::dict BuildInfo() {
  nb::dict result;
  result["uring"] = UringCompiledIn();
  result["crc32c"] = Crc32cImplementation();
  result["version"] = SLLM_VERSION;
  result["sanitizer"] = SLLM_SANITIZER;
  return result;
}

}  // namespace

void BindTools(nb::module_& module) {
  module.def(
      "residency",
      [](nb::handle path) {
        const std::string name = FsPath(path);
        const nb::gil_scoped_release release;
        return FileResidency(name);
      },
      "path"_a, "Fraction of the file's pages in the page cache.");
  module.def(
      "evict",
      [](nb::handle path) {
        const std::string name = FsPath(path);
        const nb::gil_scoped_release release;
        EvictFile(name);
      },
      "path"_a, "Drop the file's clean pages from the page cache.");
  module.def("probe", &ProbeDict, "path"_a,
             "{\"direct\", \"direct_align\", \"uring\", \"file_system\", \"reason\"}");
  module.def("crc32c", &SumBuffer, "data"_a, "value"_a = 0,
             "CRC32C of a C-contiguous buffer, continuing from `value`.");
  module.def("crc32c_combine", &Crc32cCombine, "first"_a, "second"_a, "second_length"_a,
             "CRC32C of the concatenation.");
  module.def("crc32c_file", &SumFile, "path"_a, "chunk_size"_a, "threads"_a = 0,
             "CRC32C of each chunk of a file (a file of 0 bytes has none).");
  module.def("build_info", &BuildInfo,
             "{\"uring\", \"crc32c\", \"version\", \"sanitizer\"}");
}

}  // namespace sllm
