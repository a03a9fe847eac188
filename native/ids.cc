// IdGenerator: TaskIDs of one process and one parent, as 5-byte prefix + 3-byte counter + 16-byte
// actor or job suffix (see core/ids.py). The prefix is random per process; when the counter's 16 M
// are used up the caller takes a new one. Serialised by the GIL.

#include <cstring>

#include "python.h"

namespace miniray {
namespace {

constexpr Py_ssize_t kPrefix = 5, kSuffix = 16, kTaskId = 24;
constexpr uint32_t kCounterEnd = 1u << 24;

PyTypeObject IdGeneratorType = {PyVarObject_HEAD_INIT(nullptr, 0)};

struct IdGeneratorObject {
  PyObject_HEAD
  uint8_t id[kTaskId];
  uint32_t counter;
};

PyObject* generator_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"prefix5", "suffix16", nullptr};
  const char *prefix, *suffix;
  Py_ssize_t prefix_bytes, suffix_bytes;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#y#", const_cast<char**>(names), &prefix, &prefix_bytes,
                                   &suffix, &suffix_bytes))
    return nullptr;
  if (prefix_bytes != kPrefix || suffix_bytes != kSuffix)
    return PyErr_Format(PyExc_ValueError, "prefix and suffix have 5 and 16 bytes, not %zd and %zd",
                        prefix_bytes, suffix_bytes);
  auto* self = reinterpret_cast<IdGeneratorObject*>(type->tp_alloc(type, 0));
  if (!self) return nullptr;
  std::memcpy(self->id, prefix, kPrefix);
  std::memcpy(self->id + kTaskId - kSuffix, suffix, kSuffix);
  return reinterpret_cast<PyObject*>(self);
}

PyObject* generator_next(PyObject* object, PyObject* const* args, Py_ssize_t nargs) {
  auto* self = reinterpret_cast<IdGeneratorObject*>(object);
  PyObject* suffix = nargs ? args[0] : Py_None;
  if (nargs > 1 || (suffix != Py_None && (!PyBytes_Check(suffix) || PyBytes_GET_SIZE(suffix) != kSuffix)))
    return PyErr_Format(PyExc_ValueError, "next() takes a suffix of %zd bytes", kSuffix);
  if (self->counter == kCounterEnd)
    return PyErr_Format(PyExc_OverflowError, "all %u ids of this prefix are used: take a new prefix",
                        kCounterEnd);
  uint32_t n = self->counter++;
  for (int i = 0; i < 3; ++i) self->id[kPrefix + i] = static_cast<uint8_t>(n >> (8 * (2 - i)));
  PyObject* id = PyBytes_FromStringAndSize(reinterpret_cast<char*>(self->id), kTaskId);
  if (id && suffix != Py_None)
    std::memcpy(PyBytes_AS_STRING(id) + kTaskId - kSuffix, PyBytes_AS_STRING(suffix), kSuffix);
  return id;
}

void generator_dealloc(PyObject* object) { Py_TYPE(object)->tp_free(object); }

PyMethodDef generator_methods[] = {{"next", method(generator_next), METH_FASTCALL, nullptr}, {}};

}  // namespace

int add_id_types(PyObject* module) {
  IdGeneratorType.tp_name = "miniray._native.IdGenerator";
  IdGeneratorType.tp_basicsize = sizeof(IdGeneratorObject);
  IdGeneratorType.tp_flags = Py_TPFLAGS_DEFAULT;
  IdGeneratorType.tp_new = generator_new;
  IdGeneratorType.tp_dealloc = generator_dealloc;
  IdGeneratorType.tp_methods = generator_methods;
  if (PyType_Ready(&IdGeneratorType)) return -1;
  return PyModule_AddObjectRef(module, "IdGenerator", reinterpret_cast<PyObject*>(&IdGeneratorType));
}

}  // namespace miniray
