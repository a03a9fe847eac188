// BoundBase and Binder: what `handle.method` costs.
//
// A handle's type has one Binder per method; looking the method up on a handle makes a bound object of
// the Binder's class, which names both. That happens for every call of an actor, so no Python code runs.

#include "python.h"

#include <structmember.h>

namespace miniray {
namespace {

PyTypeObject BoundType = {PyVarObject_HEAD_INIT(nullptr, 0)};
PyTypeObject BinderType = {PyVarObject_HEAD_INIT(nullptr, 0)};

// ---- BoundBase(actor, info): a pair that the collector knows --------------------------------------------

struct BoundObject {
  PyObject_HEAD
  PyObject *actor, *info;
};

PyObject* bind(PyTypeObject* type, PyObject* actor, PyObject* info) {
  auto* self = reinterpret_cast<BoundObject*>(type->tp_alloc(type, 0));
  if (!self) return nullptr;
  self->actor = Py_NewRef(actor);
  self->info = Py_NewRef(info);
  return reinterpret_cast<PyObject*>(self);
}

PyObject* bound_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  if ((kwargs && PyDict_GET_SIZE(kwargs)) || PyTuple_GET_SIZE(args) != 2)
    return PyErr_Format(PyExc_TypeError, "%s takes an actor and a method, by position", type->tp_name);
  return bind(type, PyTuple_GET_ITEM(args, 0), PyTuple_GET_ITEM(args, 1));
}

int bound_traverse(PyObject* object, visitproc visit, void* arg) {
  auto* self = reinterpret_cast<BoundObject*>(object);
  Py_VISIT(self->actor);
  Py_VISIT(self->info);
  return 0;
}

int bound_clear(PyObject* object) {
  auto* self = reinterpret_cast<BoundObject*>(object);
  Py_CLEAR(self->actor);
  Py_CLEAR(self->info);
  return 0;
}

void bound_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  bound_clear(object);
  Py_TYPE(object)->tp_free(object);
}

PyMemberDef bound_fields[] = {{"_actor", T_OBJECT_EX, offsetof(BoundObject, actor), READONLY, nullptr},
                              {"_info", T_OBJECT_EX, offsetof(BoundObject, info), READONLY, nullptr},
                              {}};

// ---- Binder(cls, info): the descriptor ------------------------------------------------------------------

struct BinderObject {
  PyObject_HEAD
  PyObject *cls, *info;
};

PyObject* binder_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *cls, *info;
  if (!PyArg_ParseTuple(args, "O!O", &PyType_Type, &cls, &info)) return nullptr;
  if (!PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(cls), &BoundType))
    return PyErr_Format(PyExc_TypeError, "Binder(a class with BoundBase below it, what is bound)");
  auto* self = reinterpret_cast<BinderObject*>(type->tp_alloc(type, 0));
  if (!self) return nullptr;
  self->cls = Py_NewRef(cls);
  self->info = Py_NewRef(info);
  return reinterpret_cast<PyObject*>(self);
}

PyObject* binder_get(PyObject* object, PyObject* instance, PyObject*) {
  auto* self = reinterpret_cast<BinderObject*>(object);
  if (!instance || instance == Py_None) return Py_NewRef(object);
  return bind(reinterpret_cast<PyTypeObject*>(self->cls), instance, self->info);
}

int binder_traverse(PyObject* object, visitproc visit, void* arg) {
  auto* self = reinterpret_cast<BinderObject*>(object);
  Py_VISIT(self->cls);
  Py_VISIT(self->info);
  return 0;
}

int binder_clear(PyObject* object) {
  auto* self = reinterpret_cast<BinderObject*>(object);
  Py_CLEAR(self->cls);
  Py_CLEAR(self->info);
  return 0;
}

void binder_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  binder_clear(object);
  Py_TYPE(object)->tp_free(object);
}

}  // namespace

int add_method_types(PyObject* module) {
  BoundType.tp_name = "miniray._native.BoundBase";
  BoundType.tp_basicsize = sizeof(BoundObject);
  BoundType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  BoundType.tp_new = bound_new;
  BoundType.tp_dealloc = bound_dealloc;
  BoundType.tp_traverse = bound_traverse;
  BoundType.tp_clear = bound_clear;
  BoundType.tp_members = bound_fields;

  BinderType.tp_name = "miniray._native.Binder";
  BinderType.tp_basicsize = sizeof(BinderObject);
  BinderType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
  BinderType.tp_new = binder_new;
  BinderType.tp_dealloc = binder_dealloc;
  BinderType.tp_traverse = binder_traverse;
  BinderType.tp_clear = binder_clear;
  BinderType.tp_descr_get = binder_get;

  if (PyType_Ready(&BoundType) || PyType_Ready(&BinderType)) return -1;
  if (PyModule_AddObjectRef(module, "BoundBase", reinterpret_cast<PyObject*>(&BoundType))) return -1;
  return PyModule_AddObjectRef(module, "Binder", reinterpret_cast<PyObject*>(&BinderType));
}

}  // namespace miniray
