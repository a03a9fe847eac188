// The owner's records as the native side sees them: plain structs of Python references, so that one
// pass over a list of references needs no Python code. Decisions about them are in miniray/core.
#pragma once

#include "python.h"

namespace miniray {

// As in core/directory.py.
enum EntryState : long { kPending = 0, kInline = 1, kStored = 2, kFailed = 3, kFreed = 4, kUnknown = 5, kEnded = 6 };

// An ObjectEntry (core/directory.py has the meaning of the fields).
struct EntryObject {
  PyObject_HEAD
  PyObject *id, *state, *value, *size, *owner, *local, *pins, *waiters, *task, *rare;
  uint64_t mark;  // of the last pass that met this entry: finds an object that is named twice
};
extern PyTypeObject EntryType;

// An ObjectRef, see refs.cc.
struct RefObject {
  PyObject_HEAD
  uint8_t id[kIdSize];
  uint32_t forks;
  PyObject* owner;
  PyObject* entry;
  PyObject* weakrefs;
};
extern PyTypeObject RefType;

// A new reference of this class; nullptr with an exception set. Counts itself on its entry.
PyObject* make_ref(PyTypeObject* type, PyObject* id, PyObject* owner, PyObject* entry);

// The entry, if `object` is one; else nullptr without an exception.
inline EntryObject* as_entry(PyObject* object) {
  return PyObject_TypeCheck(object, &EntryType) ? reinterpret_cast<EntryObject*>(object) : nullptr;
}

inline long state_of(const EntryObject* entry) { return entry->state ? PyLong_AsLong(entry->state) : kPending; }

// Adds to the count of live references and returns it. Guarded by the GIL: no Python code between.
inline long count_local(EntryObject* entry, long change) {
  long count = (entry->local ? PyLong_AsLong(entry->local) : 0) + change;
  PyObject* number = PyLong_FromLong(count);  // cached in all but odd cases
  if (!number) return PyErr_Clear(), count - change;
  Py_XSETREF(entry->local, number);
  return count;
}

int add_record_types(PyObject* module);
int add_list_functions(PyObject* module);

}  // namespace miniray
