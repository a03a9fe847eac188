// What the files with Python types share. They use the plain C API: a call costs a quarter of
// pybind11's, and Py_BEGIN_ALLOW_THREADS lets a daemon thread end at interpreter exit where
// pybind11's gil_scoped_release would abort the process. Frames that drop the GIL keep no object
// whose destructor takes it.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "layout.h"
#include "store.h"

namespace miniray {

// Raised by Store; made by module.cc.
struct Errors {
  PyObject* store_full;
  PyObject* object_exists;
  PyObject* store_busy;
};
extern Errors errors;

struct StoreObject {
  PyObject_HEAD
  Client* client;  // nullptr: closed
};
extern PyTypeObject StoreType;

// The open client of a Store in the process that opened it; nullptr with an exception set.
Client* client_of(PyObject* store);

// The same for the length of one call: another thread may close the store while this one is without
// the GIL. Guarded by the GIL.
class StoreCall {
 public:
  explicit StoreCall(PyObject* store) : client_(client_of(store)) {
    if (client_) ++client_->calls;
  }
  StoreCall(const StoreCall&) = delete;
  ~StoreCall() {
    if (client_ && --client_->calls == 0 && client_->left) client_->drop();
  }
  operator Client*() const { return client_; }
  Client* operator->() const { return client_; }

 private:
  Client* client_;
};

// 28 bytes of a `bytes` object; nullptr with TypeError or ValueError set.
const void* id_bytes(PyObject* id);

// Seconds (None or inf: no deadline, -1) to a deadline on the monotonic clock; false: exception set.
bool deadline_of(PyObject* seconds, int64_t* deadline_ns);

// Each readies its types and puts them in the module; -1 with an exception set.
int add_store_types(PyObject* module);
int add_channel_type(PyObject* module);
int add_mailbox_type(PyObject* module);
int add_reference_types(PyObject* module);
int add_title_function(PyObject* module);
int add_id_types(PyObject* module);
int add_frame_functions(PyObject* module);
int add_method_types(PyObject* module);

// Calls op(Wait::no), and if the mutex is taken op(Wait::yes) without the GIL.
template <class Op>
Status with_mutex(Op&& op) {
  Status status = op(Wait::no);
  if (status == Status::busy) {
    Py_BEGIN_ALLOW_THREADS
    status = op(Wait::yes);
    Py_END_ALLOW_THREADS
  }
  return status;
}

// METH_* entries take functions of several shapes through one pointer type.
template <class F>
PyCFunction method(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace miniray
