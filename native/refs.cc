// ObjectRefBase: the native part of ObjectRef, and the list of what died.
//
// A process holds millions of these, makes one per task and drops them at any moment, in any thread,
// also inside the collector. So the type is not tracked by the collector, and its death runs no
// Python code: it counts itself off its entry, and the last one moves the entry to a list that the
// worker library drains.
//
// CPython gives every class made in Python to the collector; instances of a subclass with
// `__slots__ = ()` are made untracked all the same. The list is per process and guarded by the GIL; a
// forked child starts with an empty one, and references made before the fork release nothing in the
// child (their entries are leaked there: the counts are the parent's).

#include <algorithm>
#include <cstring>

#include "records.h"
#include "shm.h"

namespace miniray {

PyTypeObject RefType = {PyVarObject_HEAD_INIT(nullptr, 0)};

namespace {

RefObject* as_ref(PyObject* self) { return reinterpret_cast<RefObject*>(self); }

// ---- released entries -----------------------------------------------------------------------------

struct Released {
  PyObject** entries;  // a ring of `room` places, a power of two
  size_t first, count, room;
  uint32_t forks;
} released;

void forget_parents() {
  if (released.forks == fork_generation()) return;
  released.first = released.count = 0;  // leaked on purpose, see above
  released.forks = fork_generation();
}

void push_released(PyObject* entry) {
  forget_parents();
  if (released.count == released.room) {
    size_t room = released.room ? 2 * released.room : 1024;
    auto** entries = static_cast<PyObject**>(PyMem_RawMalloc(room * sizeof(PyObject*)));
    if (!entries) return;  // leaked: better than code that runs here
    for (size_t i = 0; i < released.count; ++i)
      entries[i] = released.entries[(released.first + i) & (released.room - 1)];
    PyMem_RawFree(released.entries);
    released.entries = entries;
    released.first = 0;
    released.room = room;
  }
  released.entries[(released.first + released.count++) & (released.room - 1)] = entry;
}

PyObject* drain_released(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  Py_ssize_t limit = 4096;
  Py_ssize_t given = nargs + (names ? PyTuple_GET_SIZE(names) : 0);
  if (given > 1) return PyErr_Format(PyExc_TypeError, "drain_released(limit=4096) takes no other arguments");
  if (given == 1 && (limit = PyLong_AsSsize_t(args[0])) == -1 && PyErr_Occurred()) return nullptr;
  forget_parents();
  size_t count = std::min(released.count, static_cast<size_t>(std::max<Py_ssize_t>(limit, 0)));
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(count));  // may collect: more may be released
  if (!list) return nullptr;
  for (size_t i = 0; i < count; ++i) {
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), released.entries[released.first]);
    released.first = (released.first + 1) & (released.room - 1);
  }
  released.count -= count;
  return list;
}

PyObject* released_pending(PyObject*, PyObject*) {
  forget_parents();
  return PyBool_FromLong(released.count != 0);
}

// ---- ObjectRefBase ----------------------------------------------------------------------------------

// An instance that the collector does not know, unless the class adds fields that may form cycles.
RefObject* new_ref(PyTypeObject* type) {
  if (type->tp_basicsize != sizeof(RefObject) || type->tp_dictoffset != 0)
    return as_ref(type->tp_alloc(type, 0));
  RefObject* self = PyType_IS_GC(type) ? PyObject_GC_New(RefObject, type) : PyObject_New(RefObject, type);
  if (self) self->weakrefs = nullptr;
  return self;
}

}  // namespace

PyObject* make_ref(PyTypeObject* type, PyObject* id, PyObject* owner, PyObject* entry) {
  const void* raw = id_bytes(id);
  RefObject* self = raw ? new_ref(type) : nullptr;
  if (!self) return nullptr;
  std::memcpy(self->id, raw, kIdSize);
  self->forks = fork_generation();
  self->owner = Py_NewRef(owner);
  self->entry = Py_NewRef(entry);
  if (EntryObject* known = as_entry(entry)) count_local(known, 1);
  return reinterpret_cast<PyObject*>(self);
}

namespace {

PyObject* ref_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  if ((kwargs == nullptr || PyDict_GET_SIZE(kwargs) == 0) && PyTuple_GET_SIZE(args) == 3)
    return make_ref(type, PyTuple_GET_ITEM(args, 0), PyTuple_GET_ITEM(args, 1), PyTuple_GET_ITEM(args, 2));
  static const char* names[] = {"id", "owner", "entry", nullptr};
  PyObject *id, *owner = Py_None, *entry = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OO", const_cast<char**>(names), &id, &owner, &entry))
    return nullptr;
  return make_ref(type, id, owner, entry);
}

// cls._make(id, owner, entry): the same without the argument tuple of a call to the class.
PyObject* ref_make(PyObject* type, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 3) return PyErr_Format(PyExc_TypeError, "_make(id, owner, entry) takes 3 arguments");
  return make_ref(reinterpret_cast<PyTypeObject*>(type), args[0], args[1], args[2]);
}

// Takes over the reference to the entry. One that other references still point at is only counted off.
void let_go(PyObject* entry) {
  EntryObject* known = as_entry(entry);
  if (entry == Py_None || (known && count_local(known, -1) > 0))
    Py_DECREF(entry);
  else
    push_released(entry);
}

void ref_dealloc(PyObject* object) {
  RefObject* self = as_ref(object);
  if (self->weakrefs) PyObject_ClearWeakRefs(object);
  if (self->entry && self->forks == fork_generation()) let_go(self->entry);
  Py_XDECREF(self->owner);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
}

Py_hash_t ref_hash(PyObject* object) {
  auto hash = static_cast<Py_hash_t>(Id(as_ref(object)->id).hash());
  return hash == -1 ? -2 : hash;
}

PyObject* ref_compare(PyObject* a, PyObject* b, int op) {
  if ((op != Py_EQ && op != Py_NE) || !PyObject_TypeCheck(b, &RefType)) Py_RETURN_NOTIMPLEMENTED;
  bool equal = std::memcmp(as_ref(a)->id, as_ref(b)->id, kIdSize) == 0;
  return PyBool_FromLong(equal == (op == Py_EQ));
}

PyObject* ref_binary(PyObject* object, PyObject*) {
  return PyBytes_FromStringAndSize(reinterpret_cast<char*>(as_ref(object)->id), kIdSize);
}

PyObject* ref_hex(PyObject* object, PyObject*) {
  char text[2 * kIdSize];
  for (uint32_t i = 0; i < kIdSize; ++i) {
    text[2 * i] = "0123456789abcdef"[as_ref(object)->id[i] >> 4];
    text[2 * i + 1] = "0123456789abcdef"[as_ref(object)->id[i] & 15];
  }
  return PyUnicode_FromStringAndSize(text, sizeof(text));
}

PyObject* ref_repr(PyObject* object) {
  PyObject* hex = ref_hex(object, nullptr);
  PyObject* text = hex ? PyUnicode_FromFormat("ObjectRef(%U)", hex) : nullptr;
  Py_XDECREF(hex);
  return text;
}

PyObject* ref_entry(PyObject* object, void*) { return Py_NewRef(as_ref(object)->entry); }
PyObject* ref_owner(PyObject* object, void*) { return Py_NewRef(as_ref(object)->owner); }

PyMethodDef ref_methods[] = {{"binary", method(ref_binary), METH_NOARGS, nullptr},
                             {"hex", method(ref_hex), METH_NOARGS, nullptr},
                             {"_make", method(ref_make), METH_FASTCALL | METH_CLASS, nullptr},
                             {}};

PyGetSetDef ref_fields[] = {{"entry", ref_entry, nullptr, nullptr, nullptr},
                            {"owner_address", ref_owner, nullptr, nullptr, nullptr},
                            {}};

PyMethodDef functions[] = {{"drain_released", method(drain_released), METH_FASTCALL | METH_KEYWORDS, nullptr},
                           {"released_pending", method(released_pending), METH_NOARGS, nullptr},
                           {}};

}  // namespace

int add_reference_types(PyObject* module) {
  RefType.tp_name = "miniray._native.ObjectRefBase";
  RefType.tp_basicsize = sizeof(RefObject);
  RefType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
  RefType.tp_new = ref_new;
  RefType.tp_dealloc = ref_dealloc;
  RefType.tp_hash = ref_hash;
  RefType.tp_richcompare = ref_compare;
  RefType.tp_repr = ref_repr;
  RefType.tp_methods = ref_methods;
  RefType.tp_getset = ref_fields;
  RefType.tp_weaklistoffset = offsetof(RefObject, weakrefs);
  if (PyType_Ready(&RefType) || PyModule_AddFunctions(module, functions)) return -1;
  return PyModule_AddObjectRef(module, "ObjectRefBase", reinterpret_cast<PyObject*>(&RefType));
}

}  // namespace miniray
