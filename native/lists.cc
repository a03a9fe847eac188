// Passes over lists of references: what `get` and `wait` ask about thousands of objects at once.
//
// Nothing here runs Python code while it reads, so the GIL makes each pass a snapshot.

#include "records.h"

namespace miniray {
namespace {

bool is_ready(const EntryObject* entry) {
  long state = state_of(entry);
  return state >= kInline && state <= kFreed;
}

// The references of a list or tuple, without copies. `ok()` is false when an exception is set.
class Refs {
 public:
  Refs(PyObject* sequence) : fast_(PySequence_Fast(sequence, "references must be a list or tuple")) {}
  Refs(const Refs&) = delete;
  ~Refs() { Py_XDECREF(fast_); }
  bool ok() const { return fast_ != nullptr; }
  Py_ssize_t size() const { return PySequence_Fast_GET_SIZE(fast_); }
  PyObject* ref(Py_ssize_t index) const { return PySequence_Fast_GET_ITEM(fast_, index); }
  // nullptr with an exception set when the item is no reference with an entry
  EntryObject* entry(Py_ssize_t index) const {
    PyObject* item = ref(index);
    if (PyObject_TypeCheck(item, &RefType))
      if (EntryObject* entry = as_entry(reinterpret_cast<RefObject*>(item)->entry)) return entry;
    PyErr_Format(PyExc_TypeError, "%R is not a reference with an entry", item);
    return nullptr;
  }

 private:
  PyObject* fast_;
};

bool index_of(PyObject* const* args, Py_ssize_t nargs, Py_ssize_t which, Py_ssize_t* value) {
  if (nargs <= which) return true;
  *value = PyLong_AsSsize_t(args[which]);
  return *value != -1 || !PyErr_Occurred();
}

PyObject* first_pending(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  Py_ssize_t at = 0;
  if (nargs < 1 || nargs > 2) return PyErr_Format(PyExc_TypeError, "first_pending(refs, start=0)");
  Refs refs(args[0]);
  if (!refs.ok() || !index_of(args, nargs, 1, &at)) return nullptr;
  for (at = at < 0 ? 0 : at; at < refs.size(); ++at) {
    EntryObject* entry = refs.entry(at);
    if (!entry) return nullptr;
    if (!is_ready(entry)) return PyLong_FromSsize_t(at);
  }
  return PyLong_FromLong(-1);
}

PyObject* first_failed(PyObject*, PyObject* sequence) {
  Refs refs(sequence);
  if (!refs.ok()) return nullptr;
  for (Py_ssize_t at = 0; at < refs.size(); ++at) {
    EntryObject* entry = refs.entry(at);
    if (!entry) return nullptr;
    if (state_of(entry) == kFailed) return PyLong_FromSsize_t(at);
  }
  return PyLong_FromLong(-1);
}

PyObject* unknown(PyObject*, PyObject* sequence) {
  Refs refs(sequence);
  PyObject* list = refs.ok() ? PyList_New(0) : nullptr;
  for (Py_ssize_t i = 0; list && i < refs.size(); ++i) {
    EntryObject* entry = refs.entry(i);
    if (!entry || (state_of(entry) >= kUnknown && PyList_Append(list, reinterpret_cast<PyObject*>(entry))))
      Py_CLEAR(list);
  }
  return list;
}

PyObject* count_ready(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  Py_ssize_t enough, count = 0;
  if (nargs != 2) return PyErr_Format(PyExc_TypeError, "count_ready(refs, enough)");
  Refs refs(args[0]);
  if (!refs.ok() || !index_of(args, nargs, 1, &enough)) return nullptr;
  for (Py_ssize_t i = 0; i < refs.size() && count < enough; ++i) {
    EntryObject* entry = refs.entry(i);
    if (!entry) return nullptr;
    count += is_ready(entry);
  }
  return PyLong_FromSsize_t(count);
}

PyObject* split_ready(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  Py_ssize_t limit;
  if (nargs != 2) return PyErr_Format(PyExc_TypeError, "split_ready(refs, limit)");
  Refs refs(args[0]);
  if (!refs.ok() || !index_of(args, nargs, 1, &limit)) return nullptr;
  PyObject* ready = PyList_New(0);
  PyObject* rest = ready ? PyList_New(0) : nullptr;
  for (Py_ssize_t i = 0; rest && i < refs.size(); ++i) {
    EntryObject* entry = refs.entry(i);
    bool taken = entry && PyList_GET_SIZE(ready) < limit && is_ready(entry);
    if (!entry || PyList_Append(taken ? ready : rest, refs.ref(i))) Py_CLEAR(rest);
  }
  PyObject* both = rest ? PyTuple_Pack(2, ready, rest) : nullptr;
  Py_XDECREF(ready);
  Py_XDECREF(rest);
  return both;
}

PyObject* check_refs(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  static uint64_t passes = 0;
  if (nargs != 2 || !PyList_Check(args[0])) return PyErr_Format(PyExc_TypeError, "check_refs(list, cls)");
  uint64_t mark = ++passes;
  bool distinct = true;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); ++i) {
    PyObject* item = PyList_GET_ITEM(args[0], i);
    bool ref = Py_IS_TYPE(item, reinterpret_cast<PyTypeObject*>(args[1])) && PyObject_TypeCheck(item, &RefType);
    EntryObject* entry = ref ? as_entry(reinterpret_cast<RefObject*>(item)->entry) : nullptr;
    if (!entry) Py_RETURN_NONE;
    distinct = distinct && entry->mark != mark;
    entry->mark = mark;
  }
  return PyBool_FromLong(distinct);
}

PyMethodDef functions[] = {{"first_pending", method(first_pending), METH_FASTCALL, nullptr},
                           {"first_failed", method(first_failed), METH_O, nullptr},
                           {"unknown", method(unknown), METH_O, nullptr},
                           {"count_ready", method(count_ready), METH_FASTCALL, nullptr},
                           {"split_ready", method(split_ready), METH_FASTCALL, nullptr},
                           {"check_refs", method(check_refs), METH_FASTCALL, nullptr},
                           {}};

}  // namespace

int add_list_functions(PyObject* module) { return PyModule_AddFunctions(module, functions); }

}  // namespace miniray
