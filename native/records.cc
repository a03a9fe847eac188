// EntryBase and RecordBase: the storage of ObjectEntry and TaskRecord.
//
// A process holds up to millions of these, so they are structs that the collector does not look at;
// made in one C call and read from Python as fast as slots. What they form cycles with is cut by the
// machine that owns them (an entry forgets its task when it is freed); a record that an iterator of
// the user refers to, and that refers back, is given to the collector with track().

#include "records.h"

#include <structmember.h>

#include <cstring>

namespace miniray {

PyTypeObject EntryType = {PyVarObject_HEAD_INIT(nullptr, 0)};

namespace {

PyTypeObject RecordType = {PyVarObject_HEAD_INIT(nullptr, 0)};

struct RecordObject {
  PyObject_HEAD
  PyObject *id, *template_, *arguments, *dependencies, *held, *returns, *unresolved, *state, *done, *attempt,
      *retries_left, *lane, *remote, *call, *client, *parent, *name, *submitted_at, *pushed_at, *ended_at,
      *error, *cancel_requested, *stream;
};

PyObject* zero;  // the int
PyObject* no_time;  // the float
PyObject* text_name;

// ---- fields, for all types alike: one member each, in the order of the struct ----------------------

#define FIELD(type, name) {#name, T_OBJECT_EX, offsetof(type, name), 0, nullptr}

PyMemberDef entry_fields[] = {
    FIELD(EntryObject, id),    FIELD(EntryObject, state), FIELD(EntryObject, value),
    FIELD(EntryObject, size),  FIELD(EntryObject, owner), FIELD(EntryObject, local),
    FIELD(EntryObject, pins),  FIELD(EntryObject, waiters), FIELD(EntryObject, task),
    FIELD(EntryObject, rare),  {}};

PyMemberDef record_fields[] = {
    FIELD(RecordObject, id),
    {"template", T_OBJECT_EX, offsetof(RecordObject, template_), 0, nullptr},
    FIELD(RecordObject, arguments),
    FIELD(RecordObject, dependencies),
    FIELD(RecordObject, held),
    FIELD(RecordObject, returns),
    FIELD(RecordObject, unresolved),
    FIELD(RecordObject, state),
    FIELD(RecordObject, done),
    FIELD(RecordObject, attempt),
    FIELD(RecordObject, retries_left),
    FIELD(RecordObject, lane),
    FIELD(RecordObject, remote),
    FIELD(RecordObject, call),
    FIELD(RecordObject, client),
    FIELD(RecordObject, parent),
    FIELD(RecordObject, name),
    FIELD(RecordObject, submitted_at),
    FIELD(RecordObject, pushed_at),
    FIELD(RecordObject, ended_at),
    FIELD(RecordObject, error),
    FIELD(RecordObject, cancel_requested),
    FIELD(RecordObject, stream),
    {}};

#undef FIELD

PyObject*& field(PyObject* self, const PyMemberDef& member) {
  return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(self) + member.offset);
}

void clear_fields(PyObject* self, const PyMemberDef* members) {
  for (; members->name; ++members) Py_CLEAR(field(self, *members));
}

// ---- EntryBase(id, owner=None, state=PENDING) --------------------------------------------------------

EntryObject* make_entry(PyTypeObject* type, PyObject* id, PyObject* owner, PyObject* state) {
  // A class made in Python is the collector's, but an instance that is not tracked is not.
  auto* self = PyType_IS_GC(type) ? PyObject_GC_New(EntryObject, type) : PyObject_New(EntryObject, type);
  if (!self) return nullptr;
  self->id = Py_NewRef(id);
  self->owner = Py_NewRef(owner);
  self->state = Py_NewRef(state);
  self->size = Py_NewRef(zero);
  self->local = Py_NewRef(zero);
  self->pins = Py_NewRef(zero);
  self->value = Py_NewRef(Py_None);
  self->waiters = Py_NewRef(Py_None);
  self->task = Py_NewRef(Py_None);
  self->rare = Py_NewRef(Py_None);
  self->mark = 0;
  return self;
}

PyObject* entry_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  Py_ssize_t given = PyTuple_GET_SIZE(args);
  if ((kwargs && PyDict_GET_SIZE(kwargs)) || given < 1 || given > 3)
    return PyErr_Format(PyExc_TypeError, "an entry takes an id, an owner and a state, by position");
  return reinterpret_cast<PyObject*>(make_entry(type, PyTuple_GET_ITEM(args, 0),
                                                given > 1 ? PyTuple_GET_ITEM(args, 1) : Py_None,
                                                given > 2 ? PyTuple_GET_ITEM(args, 2) : zero));
}

void entry_dealloc(PyObject* self) {
  clear_fields(self, entry_fields);
  Py_TYPE(self)->tp_free(self);
}

// ---- RecordBase(id, template, arguments, dependencies, held, returns, retries, lane, client, parent, now)

enum : Py_ssize_t { kId, kTemplate, kArguments, kDependencies, kHeld, kReturns, kRetries, kLane, kClient,
                    kParent, kNow, kArgumentCount };

RecordObject* make_record(PyTypeObject* type, PyObject* const* args) {
  PyObject* name = PyObject_GetAttr(args[kTemplate], text_name);
  auto* self = name ? PyObject_GC_New(RecordObject, type) : nullptr;  // not tracked: see track()
  if (!self) {
    Py_XDECREF(name);
    return nullptr;
  }
  auto given = [args](Py_ssize_t index) { return Py_NewRef(args[index]); };
  self->id = given(kId);
  self->template_ = given(kTemplate);
  self->arguments = given(kArguments);
  self->dependencies = given(kDependencies);
  self->held = given(kHeld);
  self->returns = given(kReturns);
  self->retries_left = given(kRetries);
  self->lane = given(kLane);
  self->client = given(kClient);
  self->parent = given(kParent);
  self->submitted_at = given(kNow);
  self->name = name;
  self->unresolved = Py_NewRef(zero);
  self->state = Py_NewRef(zero);
  self->attempt = Py_NewRef(zero);
  self->call = Py_NewRef(zero);
  self->done = Py_NewRef(Py_False);
  self->cancel_requested = Py_NewRef(Py_False);
  self->remote = Py_NewRef(Py_None);
  self->error = Py_NewRef(Py_None);
  self->stream = Py_NewRef(Py_None);
  self->pushed_at = Py_NewRef(no_time);
  self->ended_at = Py_NewRef(no_time);
  return self;
}

PyObject* record_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  if ((kwargs && PyDict_GET_SIZE(kwargs)) || PyTuple_GET_SIZE(args) != kArgumentCount)
    return PyErr_Format(PyExc_TypeError, "a record takes %zd arguments, by position", kArgumentCount);
  return reinterpret_cast<PyObject*>(make_record(type, PySequence_Fast_ITEMS(args)));
}

PyObject* record_track(PyObject* self, PyObject*) {
  if (!PyObject_GC_IsTracked(self)) PyObject_GC_Track(self);
  Py_RETURN_NONE;
}

int record_traverse(PyObject* self, visitproc visit, void* arg) {
  for (const PyMemberDef* member = record_fields; member->name; ++member) Py_VISIT(field(self, *member));
  return 0;
}

int record_clear(PyObject* self) {
  clear_fields(self, record_fields);
  return 0;
}

void record_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  clear_fields(self, record_fields);
  Py_TYPE(self)->tp_free(self);
}

// ---- RecordMaker(objects, ObjectEntry, TaskRecord, ObjectRef) -------------------------------------------

PyTypeObject MakerType = {PyVarObject_HEAD_INIT(nullptr, 0)};

struct MakerObject {
  PyObject_HEAD
  PyObject *objects, *entry_type, *record_type, *ref_type;
};

PyObject* maker_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *objects, *entry_type, *record_type, *ref_type;
  if (!PyArg_ParseTuple(args, "O!O!O!O!", &PyDict_Type, &objects, &PyType_Type, &entry_type, &PyType_Type,
                        &record_type, &PyType_Type, &ref_type))
    return nullptr;
  auto base = [](PyObject* given) { return reinterpret_cast<PyTypeObject*>(given); };
  if (!PyType_IsSubtype(base(entry_type), &EntryType) || !PyType_IsSubtype(base(record_type), &RecordType) ||
      !PyType_IsSubtype(base(ref_type), &RefType))
    return PyErr_Format(PyExc_TypeError, "RecordMaker(objects, an entry type, a record type, a reference type)");
  auto* self = reinterpret_cast<MakerObject*>(type->tp_alloc(type, 0));
  if (!self) return nullptr;
  self->objects = Py_NewRef(objects);
  self->entry_type = Py_NewRef(entry_type);
  self->record_type = Py_NewRef(record_type);
  self->ref_type = Py_NewRef(ref_type);
  return reinterpret_cast<PyObject*>(self);
}

void maker_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<MakerObject*>(object);
  Py_DECREF(self->objects);
  Py_DECREF(self->entry_type);
  Py_DECREF(self->record_type);
  Py_DECREF(self->ref_type);
  Py_TYPE(object)->tp_free(object);
}

constexpr Py_ssize_t kTaskIdSize = 24;

// The id of a task's first return: see core/ids.py.
PyObject* first_return(PyObject* task_id) {
  if (!PyBytes_CheckExact(task_id) || PyBytes_GET_SIZE(task_id) != kTaskIdSize)
    return PyErr_Format(PyExc_ValueError, "a task id has %zd bytes", kTaskIdSize);
  PyObject* id = PyBytes_FromStringAndSize(nullptr, kIdSize);
  if (!id) return nullptr;
  char* bytes = PyBytes_AS_STRING(id);
  std::memcpy(bytes, PyBytes_AS_STRING(task_id), kTaskIdSize);
  std::memcpy(bytes + kTaskIdSize, "\1\0\0\0", kIdSize - kTaskIdSize);
  return id;
}

// task(the arguments of a record, `returns` left out) -> (record, reference of its one return)
PyObject* maker_task(PyObject* object, PyObject* const* args, Py_ssize_t nargs) {
  auto* self = reinterpret_cast<MakerObject*>(object);
  if (nargs != kArgumentCount - 1)
    return PyErr_Format(PyExc_TypeError, "task() takes %zd arguments", kArgumentCount - 1);
  PyObject* id = first_return(args[kId]);
  if (!id) return nullptr;
  auto* entry = make_entry(reinterpret_cast<PyTypeObject*>(self->entry_type), id, Py_None, zero);
  PyObject* as_object = reinterpret_cast<PyObject*>(entry);
  PyObject* returns = entry ? PyList_New(1) : nullptr;
  PyObject *record = nullptr, *ref = nullptr, *both = nullptr;
  if (returns) {
    PyList_SET_ITEM(returns, 0, Py_NewRef(as_object));
    PyObject* all[kArgumentCount];
    for (Py_ssize_t i = 0; i < kArgumentCount; ++i)
      all[i] = i < kReturns ? args[i] : i == kReturns ? returns : args[i - 1];
    record = reinterpret_cast<PyObject*>(make_record(reinterpret_cast<PyTypeObject*>(self->record_type), all));
  }
  if (record && !PyDict_SetItem(self->objects, id, as_object))
    ref = make_ref(reinterpret_cast<PyTypeObject*>(self->ref_type), id, Py_None, as_object);
  if (ref) Py_SETREF(entry->task, Py_NewRef(record));
  if (ref) both = PyTuple_Pack(2, record, ref);
  Py_DECREF(id);
  Py_XDECREF(as_object);
  Py_XDECREF(returns);
  Py_XDECREF(record);
  Py_XDECREF(ref);
  return both;
}

// known(id) -> a new reference to an object with an entry, or None
PyObject* maker_known(PyObject* object, PyObject* id) {
  auto* self = reinterpret_cast<MakerObject*>(object);
  PyObject* found = PyDict_GetItemWithError(self->objects, id);
  EntryObject* entry = found ? as_entry(found) : nullptr;
  if (!entry) return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
  Py_INCREF(found);
  PyObject* owner = Py_NewRef(entry->owner ? entry->owner : Py_None);
  PyObject* ref = make_ref(reinterpret_cast<PyTypeObject*>(self->ref_type), id, owner, found);
  Py_DECREF(owner);
  Py_DECREF(found);
  return ref;
}

// known_all(table, stride) -> (references or None for each id in the table, the indices of the Nones)
PyObject* maker_known_all(PyObject* object, PyObject* const* args, Py_ssize_t nargs) {
  Py_ssize_t stride = nargs == 2 ? PyLong_AsSsize_t(args[1]) : -1;
  if (nargs != 2 || !PyBytes_Check(args[0]) || stride < static_cast<Py_ssize_t>(kIdSize) ||
      PyBytes_GET_SIZE(args[0]) % stride)
    return PyErr_Format(PyExc_ValueError, "known_all(table, stride): a table of whole rows, each with an id");
  Py_ssize_t count = PyBytes_GET_SIZE(args[0]) / stride;
  PyObject* refs = PyList_New(count);
  PyObject* missing = refs ? PyList_New(0) : nullptr;
  bool failed = !missing;
  for (Py_ssize_t i = 0; i < count && !failed; ++i) {
    PyObject* id = PyBytes_FromStringAndSize(PyBytes_AS_STRING(args[0]) + i * stride, kIdSize);
    PyObject* ref = id ? maker_known(object, id) : nullptr;
    if (ref == Py_None) {
      PyObject* index = PyLong_FromSsize_t(i);
      failed = !index || PyList_Append(missing, index);
      Py_XDECREF(index);
    }
    failed = failed || !ref;
    if (ref) PyList_SET_ITEM(refs, i, ref);
    Py_XDECREF(id);
  }
  PyObject* both = failed ? nullptr : PyTuple_Pack(2, refs, missing);
  Py_XDECREF(refs);
  Py_XDECREF(missing);
  return both;
}

PyMethodDef maker_methods[] = {{"task", method(maker_task), METH_FASTCALL, nullptr},
                               {"known", method(maker_known), METH_O, nullptr},
                               {"known_all", method(maker_known_all), METH_FASTCALL, nullptr},
                               {}};

PyMethodDef record_methods[] = {{"track", method(record_track), METH_NOARGS, nullptr}, {}};

}  // namespace

int add_record_types(PyObject* module) {
  zero = PyLong_FromLong(0);
  no_time = PyFloat_FromDouble(0.0);
  text_name = PyUnicode_InternFromString("name");
  if (!zero || !no_time || !text_name) return -1;

  EntryType.tp_name = "miniray._native.EntryBase";
  EntryType.tp_basicsize = sizeof(EntryObject);
  EntryType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
  EntryType.tp_new = entry_new;
  EntryType.tp_dealloc = entry_dealloc;
  EntryType.tp_members = entry_fields;

  RecordType.tp_name = "miniray._native.RecordBase";
  RecordType.tp_basicsize = sizeof(RecordObject);
  RecordType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  RecordType.tp_new = record_new;
  RecordType.tp_dealloc = record_dealloc;
  RecordType.tp_traverse = record_traverse;
  RecordType.tp_clear = record_clear;
  RecordType.tp_methods = record_methods;
  RecordType.tp_members = record_fields;

  MakerType.tp_name = "miniray._native.RecordMaker";
  MakerType.tp_basicsize = sizeof(MakerObject);
  MakerType.tp_flags = Py_TPFLAGS_DEFAULT;
  MakerType.tp_new = maker_new;
  MakerType.tp_dealloc = maker_dealloc;
  MakerType.tp_methods = maker_methods;

  if (PyType_Ready(&EntryType) || PyType_Ready(&RecordType) || PyType_Ready(&MakerType)) return -1;
  if (PyModule_AddObjectRef(module, "RecordMaker", reinterpret_cast<PyObject*>(&MakerType))) return -1;
  if (PyModule_AddObjectRef(module, "EntryBase", reinterpret_cast<PyObject*>(&EntryType))) return -1;
  return PyModule_AddObjectRef(module, "RecordBase", reinterpret_cast<PyObject*>(&RecordType));
}

}  // namespace miniray
