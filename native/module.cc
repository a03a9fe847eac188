// The extension module `miniray._native`: exceptions, small process helpers, and the types of the
// py_*.cc, refs.cc and ids.cc files. The only file that knows pybind11; what is hot or may block is
// written against the C API there (see python.h). Contracts for Python: miniray/_native.pyi.

#include <pybind11/pybind11.h>
#include <sys/prctl.h>

#include <cerrno>

#include "python.h"
#include "records.h"
#include "shm.h"

namespace py = pybind11;

namespace {

PyObject* new_error(py::module_& module, const char* name, PyObject* base) {
  std::string full = std::string("miniray._native.") + name;
  PyObject* error = PyErr_NewException(full.c_str(), base, nullptr);
  if (!error) throw py::error_already_set();
  module.add_object(name, py::handle(error));
  return error;
}

void check(int rc) {
  if (rc == 0) return;
  if (!PyErr_Occurred()) PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

int memfd_create(const std::string& name, size_t bytes) {
  int fd = miniray::memfd_sealed(name.c_str(), bytes);
  check(fd < 0 ? -1 : 0);
  return fd;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Shared-memory object store, channels and references of miniray.";
  miniray::errors.store_full = new_error(module, "StoreFull", PyExc_Exception);
  miniray::errors.object_exists = new_error(module, "ObjectExists", PyExc_Exception);
  miniray::errors.store_busy = new_error(module, "StoreBusy", PyExc_TimeoutError);
  check(miniray::add_store_types(module.ptr()));
  check(miniray::add_channel_type(module.ptr()));
  check(miniray::add_mailbox_type(module.ptr()));
  check(miniray::add_record_types(module.ptr()));
  check(miniray::add_list_functions(module.ptr()));
  check(miniray::add_reference_types(module.ptr()));
  check(miniray::add_id_types(module.ptr()));
  check(miniray::add_frame_functions(module.ptr()));
  check(miniray::add_method_types(module.ptr()));
  check(miniray::add_title_function(module.ptr()));
  module.def("fork_generation", &miniray::fork_generation);
  module.def("memfd_create", &memfd_create, py::arg("name"), py::arg("size"));
  module.def("set_pdeathsig", [](int sig) { check(prctl(PR_SET_PDEATHSIG, sig)); }, py::arg("sig"));
  module.def(
      "set_subreaper", [](bool on) { check(prctl(PR_SET_CHILD_SUBREAPER, on)); }, py::arg("on") = true);
  module.def(
      "set_process_name", [](const std::string& name) { check(prctl(PR_SET_NAME, name.c_str())); },
      py::arg("name"));
}
