// FileRequest, FileStats and LoadJob.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "bindings.hpp"
#include "fs_path.hpp"
#include "job.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm {
namespace {

// Between two of these a waiting main thread answers Ctrl-C.
constexpr std::chrono::milliseconds kSignalCheck{50};

Verify ParseVerify(const std::string& name) {
  if (name == "auto") return Verify::kCopied;
  if (name == "always") return Verify::kAlways;
  if (name == "never") return Verify::kNever;
  throw std::invalid_argument("unknown verify '" + name + "'; use auto, always or never");
}

FileRequest MakeRequest(nb::handle path, uint64_t expected_size,
                        const std::vector<std::pair<uint64_t, uint64_t>>& extents,
                        const std::string& method, uint64_t chunk_size,
                        std::vector<uint32_t> crc32c, const std::string& verify,
                        std::shared_ptr<Region> into) {
  FileRequest request;
  request.path = FsPath(path);
  request.expected_size = expected_size;
  request.extents.reserve(extents.size());
  for (const auto& [offset, length] : extents) request.extents.push_back({offset, length});
  const auto parsed = ParseMethod(method);
  if (!parsed) {
    throw std::invalid_argument("unknown method '" + method +
                                "'; use auto, map, uring, direct or buffered");
  }
  request.method = *parsed;
  request.chunk_size = chunk_size;
  request.crc32c = std::move(crc32c);
  request.verify = ParseVerify(verify);
  request.into = std::move(into);
  CheckRequest(request);
  return request;
}

// Calls `step(deadline)` without the GIL until it returns true or `deadline` passes.
template <typename Step>
bool WaitFor(Job::Deadline deadline, const Step& step) {
  for (;;) {
    const auto now = Clock::now();
    bool done = false;
    {
      const nb::gil_scoped_release release;
      done = step(std::min(deadline, now + kSignalCheck));
    }
    if (done) return true;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (now >= deadline) return false;
  }
}

Job::Deadline DeadlineAfter(std::optional<double> timeout) {
  constexpr double kYear = 365.0 * 86400;
  if (!timeout || *timeout > kYear) return Job::Deadline::max();
  if (std::isnan(*timeout)) throw std::invalid_argument("timeout is not a number");
  const std::chrono::duration<double> seconds(std::max(0.0, *timeout));
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(seconds);
}

std::shared_ptr<Job> MakeJob(const std::vector<FileRequest*>& files, unsigned threads,
                             unsigned queue_depth, uint64_t block_size, bool huge_pages,
                             bool register_buffers, size_t prefetch_files, std::shared_ptr<RegionPool> pool) {
  std::vector<FileRequest> requests;
  requests.reserve(files.size());
  for (const FileRequest* file : files) requests.push_back(*file);
  JobOptions options;
  options.threads = threads;
  options.queue_depth = queue_depth;
  options.block_size = block_size;
  options.huge_pages = huge_pages;
  options.register_buffers = register_buffers;
  options.prefetch_files = prefetch_files;
  options.pool = std::move(pool);
  // The last reference may be dropped by a thread that holds the GIL, and the destructor joins.
  return {new Job(std::move(requests), options), [](Job* job) {
            const nb::gil_scoped_release release;
            Job::Destroy(job);
          }};
}

void BindRecords(nb::module_& module) {
  nb::class_<FileRequest>(module, "FileRequest", "One file of a load; see LoadJob.")
      .def(nb::new_(&MakeRequest), "path"_a, "expected_size"_a, "extents"_a, nb::kw_only(),
           "method"_a = "auto", "chunk_size"_a = 0, "crc32c"_a = nb::make_tuple(),
           "verify"_a = "auto", "into"_a = nb::none());

  nb::class_<FileStats>(module, "FileStats", "How one file was read; times in seconds.")
      .def_ro("method", &FileStats::method)
      .def_ro("reason", &FileStats::reason)
      .def_ro("resident", &FileStats::resident)
      .def_ro("nbytes", &FileStats::nbytes)
      .def_ro("started", &FileStats::started)
      .def_ro("finished", &FileStats::finished)
      .def_ro("allocate_seconds", &FileStats::allocate_seconds)
      .def_ro("read_seconds", &FileStats::read_seconds)
      .def_ro("verify_seconds", &FileStats::verify_seconds)
      .def_ro("verified", &FileStats::verified);
}

}  // namespace

void BindJob(nb::module_& module) {
  BindRecords(module);
  nb::class_<Job>(module, "LoadJob", "Reads files in order on native threads.")
      .def(nb::new_(&MakeJob), "files"_a, nb::kw_only(), "threads"_a = 0, "queue_depth"_a = 0,
           "block_size"_a = 0, "huge_pages"_a = true, "register_buffers"_a = false, "prefetch_files"_a = 0,
           "pool"_a = nb::none())
      .def("start", &Job::Start, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "wait",
          [](Job& job, std::optional<double> timeout) {
            return WaitFor(DeadlineAfter(timeout),
                           [&](Job::Deadline deadline) { return job.Wait(deadline); });
          },
          "timeout"_a = nb::none(),
          "True when all is read; False on timeout. Raises the job's error.")
      .def(
          "wait_range",
          [](Job& job, size_t file, uint64_t begin, uint64_t end) {
            WaitFor(Job::Deadline::max(), [&](Job::Deadline deadline) {
              return job.WaitRange(file, begin, end, deadline);
            });
          },
          "file"_a, "begin"_a, "end"_a,
          "Blocks until bytes [begin, end) of that file are in its region, verified if asked.")
      .def(
          "region",
          [](Job& job, size_t file) {
            std::shared_ptr<Region> region;
            WaitFor(Job::Deadline::max(), [&](Job::Deadline deadline) {
              return job.WaitRegion(file, deadline, &region);
            });
            return region;
          },
          "file"_a, "The file's region, as soon as it is allocated (blocks until then).")
      .def("release", &Job::Release, "file"_a, nb::call_guard<nb::gil_scoped_release>(),
           "The caller holds what it needs of that file: lets the next one start.")
      .def("cancel", &Job::Cancel, nb::call_guard<nb::gil_scoped_release>(),
           "At once; from any thread, any number of times.")
      .def("progress", &Job::Progress, nb::call_guard<nb::gil_scoped_release>(),
           "(bytes done, bytes in all)")
      .def("stats", &Job::Stats, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace sllm
