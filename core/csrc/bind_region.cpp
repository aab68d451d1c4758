// Region and RegionPool: memory that Python sees through DLPack and the buffer protocol.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>

#include "bindings.hpp"
#include "region.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm {
namespace {

int GetBuffer(PyObject* self, Py_buffer* view, int flags) {
  const Region* const region = nb::inst_ptr<Region>(self);
  return PyBuffer_FillInfo(view, self, region->data(), static_cast<Py_ssize_t>(region->size()), 0,
                           flags);
}

constexpr int kDlpackCpu = 1;

PyType_Slot kRegionSlots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(GetBuffer)},
                              {0, nullptr}};

// An array that keeps the Region, and thereby the memory, alive.
nb::object Dlpack(nb::handle self, const nb::args& args, const nb::kwargs& kwargs) {
  const Region* const region = nb::inst_ptr<Region>(self);
  const nb::ndarray<nb::array_api, uint8_t, nb::ndim<1>, nb::device::cpu> array(
      region->data(), {region->size()}, self);
  const nb::object exporter = nb::cast(array);
  return exporter.attr("__dlpack__")(*args, **kwargs);
}

}  // namespace

void BindRegion(nb::module_& module) {
  nb::class_<Region>(module, "Region", nb::type_slots(kRegionSlots),
                     "Page-aligned host memory; exported by DLPack as a writable 1-D uint8 CPU "
                     "array and by the buffer protocol.")
      .def_prop_ro("nbytes", &Region::size, "Bytes meant; the memory itself ends on a page.")
      .def_prop_ro(
          "address",
          [](const Region& region) { return reinterpret_cast<uintptr_t>(region.data()); },
          "Where the first byte lies.")
      .def_prop_ro(
          "kind",
          [](const Region& region) { return region.memory().is_map() ? "map" : "anonymous"; },
          "\"anonymous\" or \"map\" (private, copy-on-write mapping of a file).")
      .def("__len__", &Region::size)
      .def("__dlpack__", &Dlpack, "args"_a, "kwargs"_a)
      .def("__dlpack_device__", [](const Region&) { return std::pair(kDlpackCpu, 0); });

  nb::class_<RegionPool>(module, "RegionPool",
                         "Keeps freed anonymous regions, already touched, for the next "
                         "allocation that fits.")
      .def(nb::new_([](size_t keep_bytes) { return std::make_shared<RegionPool>(keep_bytes); }),
           "keep_bytes"_a)
      .def("allocate", &RegionPool::Allocate, "nbytes"_a, nb::kw_only(), "huge_pages"_a = true,
           "touch"_a = false, nb::call_guard<nb::gil_scoped_release>(),
           "A region of `nbytes`; with `touch` every page of it is present.")
      .def("clear", &RegionPool::Clear, nb::call_guard<nb::gil_scoped_release>(),
           "Free what is held.")
      .def_prop_ro("held_bytes", &RegionPool::held_bytes, "Bytes held for later allocations.");
}

}  // namespace sllm
