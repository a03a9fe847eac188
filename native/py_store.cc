// Python's `Store` and `Buffer`: argument handling around Client (store.h). A Buffer is one pinned
// view; the pin goes back when the last memoryview or array on it dies.

#include <cerrno>
#include <cstring>

#include "copy.h"
#include "futex.h"
#include "py_store.h"
#include "shm.h"

namespace miniray {

PyTypeObject StoreType = {PyVarObject_HEAD_INIT(nullptr, 0)};

namespace {

constexpr size_t kReleaseGil = 1u << 20;  // copies from here on (100 µs) let other threads run
constexpr Py_ssize_t kInlineParts = 16;

// ---- Buffer -----------------------------------------------------------------------------------

struct BufferObject {
  PyObject_HEAD
  Client* client;  // a counted reference: keeps the mapping
  const uint8_t* data;
  uint64_t size;
  uint32_t slot;
  bool writable;
};
PyTypeObject BufferType = {PyVarObject_HEAD_INIT(nullptr, 0)};

// Takes over one pin of `slot`.
PyObject* new_buffer(Client* client, uint32_t slot, bool writable) {
  auto* self = PyObject_New(BufferObject, &BufferType);
  if (!self) {
    if (client->unpin(slot)) with_mutex([&](Wait wait) { return client->reclaim(slot, wait); });
    return nullptr;
  }
  const Entry& entry = client->table().entry(slot);
  uint64_t offset = entry.offset.load(std::memory_order_relaxed);
  client->hold();
  self->client = client;
  self->slot = slot;
  self->size = entry.size.load(std::memory_order_relaxed);
  self->writable = writable;
  self->data = (writable ? client->segment().heap() : client->segment().view()) + offset;
  return reinterpret_cast<PyObject*>(self);
}

void buffer_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<BufferObject*>(object);
  Client* client = self->client;
  uint32_t slot = self->slot;
  PyObject_Free(object);
  // A forked child inherits views, but the pin is its parent's.
  if (client->forks() == fork_generation() && client->unpin(slot))
    with_mutex([&](Wait wait) { return client->reclaim(slot, wait); });
  client->drop();
}

int buffer_get(PyObject* object, Py_buffer* view, int flags) {
  auto* self = reinterpret_cast<BufferObject*>(object);
  return PyBuffer_FillInfo(view, object, const_cast<uint8_t*>(self->data),
                           static_cast<Py_ssize_t>(self->size), !self->writable, flags);
}

Py_ssize_t buffer_length(PyObject* object) {
  return static_cast<Py_ssize_t>(reinterpret_cast<BufferObject*>(object)->size);
}

PyObject* buffer_nbytes(PyObject* object, void*) { return PyLong_FromSsize_t(buffer_length(object)); }

// ---- put ----------------------------------------------------------------------------------------

// The trailing keyword `primary` of a vectorcall; false: exception set.
bool primary_of(PyObject* const* args, Py_ssize_t nargs, PyObject* names, Py_ssize_t expected,
                bool* primary) {
  Py_ssize_t keywords = names ? PyTuple_GET_SIZE(names) : 0;
  if (nargs != expected || keywords > 1) {
    PyErr_Format(PyExc_TypeError, "expected %zd positional arguments and at most `primary`", expected);
    return false;
  }
  *primary = true;
  if (keywords == 0) return true;
  if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "primary") != 0) {
    PyErr_Format(PyExc_TypeError, "unexpected keyword argument %R", PyTuple_GET_ITEM(names, 0));
    return false;
  }
  int truth = PyObject_IsTrue(args[nargs]);
  *primary = truth > 0;
  return truth >= 0;
}

// Allocates, copies, seals. The buffers are held by the caller. 0, or -1 with an exception set.
int store_parts(Client* client, const void* id, const Part* parts, size_t count, uint64_t total,
                bool primary) {
  uint32_t slot;
  uint8_t* data;
  Id key(id);
  Status status =
      with_mutex([&](Wait wait) { return client->allocate(key, total, primary, &slot, &data, wait); });
  if (status != Status::ok) {
    raise(client, status, id, total);
    return -1;
  }
  if (total >= kReleaseGil) {
    Py_BEGIN_ALLOW_THREADS
    copy_parts(data, parts, count, total);
    Py_END_ALLOW_THREADS
  } else {
    copy_parts(data, parts, count, total);
  }
  status = client->seal(slot);
  if (status == Status::ok) return 0;
  raise(client, status, id, total);
  return -1;
}

PyObject* store_put(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  StoreCall client(self);
  bool primary;
  if (!client || !primary_of(args, nargs, names, 2, &primary)) return nullptr;
  const void* id = id_bytes(args[0]);
  PyObject* list = id ? PySequence_Fast(args[1], "parts must be a list of buffers") : nullptr;
  if (!list) return nullptr;
  Py_ssize_t count = PySequence_Fast_GET_SIZE(list), held = 0;
  Py_buffer few[kInlineParts], *views = few;
  Part few_parts[kInlineParts], *parts = few_parts;
  if (count > kInlineParts) {
    views = static_cast<Py_buffer*>(PyMem_Malloc(count * sizeof(Py_buffer)));
    parts = static_cast<Part*>(PyMem_Malloc(count * sizeof(Part)));
  }
  uint64_t total = 0;
  if (!views || !parts) PyErr_NoMemory();
  for (; views && parts && held < count && held < PySequence_Fast_GET_SIZE(list); ++held) {
    if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(list, held), &views[held], PyBUF_SIMPLE) != 0) break;
    parts[held] = {views[held].buf, static_cast<size_t>(views[held].len)};
    total += static_cast<uint64_t>(views[held].len);
  }
  bool stored = !PyErr_Occurred() && store_parts(client, id, parts, held, total, primary) == 0;
  while (held > 0) PyBuffer_Release(&views[--held]);
  if (views != few) PyMem_Free(views);
  if (parts != few_parts) PyMem_Free(parts);
  Py_DECREF(list);
  return stored ? PyLong_FromUnsignedLongLong(total) : nullptr;
}

PyObject* store_create_object(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  StoreCall client(self);
  bool primary;
  if (!client || !primary_of(args, nargs, names, 2, &primary)) return nullptr;
  const void* id = id_bytes(args[0]);
  if (!id) return nullptr;
  uint64_t size = PyLong_AsUnsignedLongLong(args[1]);
  if (size == ~0ull && PyErr_Occurred()) return nullptr;
  uint32_t slot;
  uint8_t* data;
  Id key(id);
  Status status =
      with_mutex([&](Wait wait) { return client->allocate(key, size, primary, &slot, &data, wait); });
  if (status != Status::ok) return raise(client, status, id, size);
  client->pin_own(slot);  // so that an abort cannot hand out the memory while the view is written
  PyObject* buffer = new_buffer(client, slot, true);
  PyObject* view = buffer ? PyMemoryView_FromObject(buffer) : nullptr;
  Py_XDECREF(buffer);
  return view;
}

PyObject* store_seal(PyObject* self, PyObject* id) {
  uint32_t slot;
  uint64_t word;
  StoreCall client(self);
  if (!entry_for(client, id, &slot, &word)) return nullptr;
  Status status = client->seal(slot);
  if (status != Status::ok) return raise(client, status, PyBytes_AS_STRING(id));
  Py_RETURN_NONE;
}

PyObject* store_abort(PyObject* self, PyObject* id) {
  uint32_t slot;
  uint64_t word;
  StoreCall client(self);
  if (!entry_for(client, id, &slot, &word)) return nullptr;
  Status status = with_mutex([&](Wait wait) { return client->abort(slot, wait); });
  if (status != Status::ok) return raise(client, status, PyBytes_AS_STRING(id));
  Py_RETURN_NONE;
}

// ---- get and wait -------------------------------------------------------------------------------

PyObject* store_get(PyObject* self, PyObject* id) {
  StoreCall client(self);
  const void* raw = client ? id_bytes(id) : nullptr;
  if (!raw) return nullptr;
  Id key(raw);
  for (;;) {
    uint32_t slot;
    Status status = with_mutex([&](Wait wait) { return client->get(key, &slot, wait); });
    if (status == Status::ok) return new_buffer(client, slot, false);
    if (status == Status::absent) Py_RETURN_NONE;
    if (status == Status::reclaim)
      status = with_mutex([&](Wait wait) { return client->reclaim(slot, wait); });
    if (status != Status::ok) return raise(client, status, raw);
  }
}

PyObject* store_contains(PyObject* self, PyObject* id) {
  StoreCall client(self);
  const void* raw = client ? id_bytes(id) : nullptr;
  uint32_t slot;
  uint64_t word;
  int found = raw ? find(client, raw, &slot, &word) : -1;
  if (found < 0) return nullptr;
  return PyBool_FromLong(found && state_of(word) == State::sealed);
}

bool is_sealed(Client* client, const uint8_t* id) {
  uint32_t slot;
  uint64_t word;
  return client->find(Id(id), &slot, &word, Wait::yes) == Status::ok && state_of(word) == State::sealed;
}

// Without the GIL: until `num` of the ids are sealed, the deadline, or a signal. True: a signal.
bool wait_sealed(Client* client, const uint8_t* ids, Py_ssize_t count, Py_ssize_t num, int64_t deadline_ns) {
  uint32_t bits = 0;
  for (Py_ssize_t i = 0; i < count; ++i) bits |= Client::seal_bit(Id(ids + i * kIdSize));
  for (;;) {
    uint32_t seen = client->seals();  // before the look, so that a seal after it ends the sleep
    Py_ssize_t sealed = 0;
    for (Py_ssize_t i = 0; i < count && sealed < num; ++i) sealed += is_sealed(client, ids + i * kIdSize);
    if (sealed >= num) return false;
    int rc = client->wait_seal(seen, bits, deadline_ns);
    if (rc == ETIMEDOUT) return false;
    if (rc == EINTR) return true;
  }
}

PyObject* sealed_of(Client* client, PyObject* ids, const uint8_t* raw, Py_ssize_t count) {
  PyObject* result = PyList_New(0);
  for (Py_ssize_t i = 0; result && i < count; ++i) {
    uint32_t slot;
    uint64_t word;
    int found = find(client, raw + i * kIdSize, &slot, &word);
    bool add = found > 0 && state_of(word) == State::sealed;
    if (found < 0 || (add && PyList_Append(result, PyTuple_GET_ITEM(ids, i)) != 0)) Py_CLEAR(result);
  }
  return result;
}

// Waits, runs signal handlers, and lists what is sealed. `raw` has the bytes of `ids`.
PyObject* wait_for(Client* client, PyObject* ids, const uint8_t* raw, Py_ssize_t num, int64_t deadline_ns) {
  Py_ssize_t count = PyTuple_GET_SIZE(ids);
  if (num > count) num = count;
  client->waiting(true);
  bool signalled = true, failed = false;
  while (signalled && !failed) {
    Py_BEGIN_ALLOW_THREADS
    signalled = wait_sealed(client, raw, count, num, deadline_ns);
    Py_END_ALLOW_THREADS
    failed = signalled && PyErr_CheckSignals() != 0;
  }
  client->waiting(false);
  return failed ? nullptr : sealed_of(client, ids, raw, count);
}

PyObject* store_wait(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 3) return PyErr_Format(PyExc_TypeError, "wait(oids, num, timeout_s) takes 3 arguments");
  StoreCall client(self);
  int64_t deadline_ns;
  Py_ssize_t num = client ? PyLong_AsSsize_t(args[1]) : -1;
  if (!client || (num == -1 && PyErr_Occurred()) || !deadline_of(args[2], &deadline_ns)) return nullptr;
  PyObject* ids = PySequence_Tuple(args[0]);
  if (!ids) return nullptr;
  Py_ssize_t count = PyTuple_GET_SIZE(ids);
  auto* raw = static_cast<uint8_t*>(PyMem_RawMalloc(count * kIdSize + 1));
  const void* id = raw;
  for (Py_ssize_t i = 0; raw && id && i < count; ++i)
    if ((id = id_bytes(PyTuple_GET_ITEM(ids, i)))) memcpy(raw + i * kIdSize, id, kIdSize);
  if (!raw) PyErr_NoMemory();
  PyObject* result = raw && id ? wait_for(client, ids, raw, num, deadline_ns) : nullptr;
  PyMem_RawFree(raw);
  Py_DECREF(ids);
  return result;
}

// ---- delete and properties ------------------------------------------------------------------------

PyObject* store_delete(PyObject* self, PyObject* id) {
  StoreCall client(self);
  const void* raw = client ? id_bytes(id) : nullptr;
  if (!raw) return nullptr;
  Id key(raw);
  Status status = with_mutex([&](Wait wait) { return client->erase(key, wait); });
  if (status != Status::ok && status != Status::absent) return raise(client, status, raw);
  return PyBool_FromLong(status == Status::ok);
}

PyObject* store_mark_secondary(PyObject* self, PyObject* id) {
  uint32_t slot;
  uint64_t word;
  StoreCall client(self);
  if (!entry_for(client, id, &slot, &word)) return nullptr;
  client->table().entry(slot).primary.store(0, std::memory_order_relaxed);
  Py_RETURN_NONE;
}

PyObject* store_is_primary(PyObject* self, PyObject* id) {
  uint32_t slot;
  uint64_t word;
  StoreCall client(self);
  if (!entry_for(client, id, &slot, &word)) return nullptr;
  return PyBool_FromLong(client->table().entry(slot).primary.load(std::memory_order_relaxed));
}

PyObject* store_size_of(PyObject* self, PyObject* id) {
  StoreCall client(self);
  const void* raw = client ? id_bytes(id) : nullptr;
  uint32_t slot;
  uint64_t word;
  int found = raw ? find(client, raw, &slot, &word) : -1;
  if (found < 0) return nullptr;
  if (found == 0) Py_RETURN_NONE;
  return PyLong_FromUnsignedLongLong(client->table().entry(slot).size.load(std::memory_order_relaxed));
}

PyObject* store_pins(PyObject* self, PyObject* id) {
  StoreCall client(self);
  const void* raw = client ? id_bytes(id) : nullptr;
  uint32_t slot;
  uint64_t word;
  int found = raw ? find(client, raw, &slot, &word) : -1;
  PyObject* result = found >= 0 ? PyList_New(0) : nullptr;
  for (uint32_t c = 0; result && found > 0 && c < client->segment().header().max_clients; ++c) {
    if (!client->table().has_pin(slot, c)) continue;
    PyObject* number = PyLong_FromUnsignedLong(c);
    if (!number || PyList_Append(result, number) != 0) Py_CLEAR(result);
    Py_XDECREF(number);
  }
  return result;
}

PyObject* store_fd(PyObject* self, void*) {
  StoreCall client(self);
  return client ? PyLong_FromLong(client->segment().fd()) : nullptr;
}

PyObject* store_capacity(PyObject* self, void*) {
  StoreCall client(self);
  return client ? PyLong_FromUnsignedLongLong(client->segment().header().capacity) : nullptr;
}

PyObject* store_client_slot(PyObject* self, void*) {
  StoreCall client(self);
  return client ? PyLong_FromUnsignedLong(client->slot()) : nullptr;
}

PyMethodDef store_methods[] = {
    {"create", method(store_create), METH_VARARGS | METH_KEYWORDS | METH_STATIC, nullptr},
    {"attach", method(store_attach), METH_VARARGS | METH_KEYWORDS | METH_STATIC, nullptr},
    {"put", method(store_put), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"create_object", method(store_create_object), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"seal", method(store_seal), METH_O, nullptr},
    {"abort", method(store_abort), METH_O, nullptr},
    {"get", method(store_get), METH_O, nullptr},
    {"contains", method(store_contains), METH_O, nullptr},
    {"wait", method(store_wait), METH_FASTCALL, nullptr},
    {"delete", method(store_delete), METH_O, nullptr},
    {"mark_secondary", method(store_mark_secondary), METH_O, nullptr},
    {"is_primary", method(store_is_primary), METH_O, nullptr},
    {"size_of", method(store_size_of), METH_O, nullptr},
    {"pins", method(store_pins), METH_O, nullptr},
    {"list", method(store_list), METH_NOARGS, nullptr},
    {"stats", method(store_stats), METH_NOARGS, nullptr},
    {"open_client", method(store_open_client), METH_NOARGS, nullptr},
    {"reap_client", method(store_reap_client), METH_O, nullptr},
    {"set_lock_timeout", method(store_set_lock_timeout), METH_O, nullptr},
    {"prefault", method(store_prefault), METH_O, nullptr},
    {"punch", method(store_punch), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"check", method(store_check), METH_NOARGS, nullptr},
    {"close", method(store_close), METH_NOARGS, nullptr},
    {}};

PyGetSetDef store_fields[] = {{"fd", store_fd, nullptr, nullptr, nullptr},
                              {"capacity", store_capacity, nullptr, nullptr, nullptr},
                              {"client_slot", store_client_slot, nullptr, nullptr, nullptr},
                              {}};

PyGetSetDef buffer_fields[] = {{"nbytes", buffer_nbytes, nullptr, nullptr, nullptr}, {}};

PyBufferProcs buffer_procs = {buffer_get, nullptr};
PySequenceMethods buffer_sequence = {.sq_length = buffer_length};

}  // namespace

int add_store_types(PyObject* module) {
  BufferType.tp_name = "miniray._native.Buffer";
  BufferType.tp_basicsize = sizeof(BufferObject);
  BufferType.tp_flags = Py_TPFLAGS_DEFAULT;
  BufferType.tp_dealloc = buffer_dealloc;
  BufferType.tp_as_buffer = &buffer_procs;
  BufferType.tp_as_sequence = &buffer_sequence;
  BufferType.tp_getset = buffer_fields;
  StoreType.tp_name = "miniray._native.Store";
  StoreType.tp_basicsize = sizeof(StoreObject);
  StoreType.tp_flags = Py_TPFLAGS_DEFAULT;
  StoreType.tp_dealloc = store_dealloc;
  StoreType.tp_methods = store_methods;
  StoreType.tp_getset = store_fields;
  if (PyType_Ready(&BufferType) || PyType_Ready(&StoreType)) return -1;
  if (PyModule_AddObjectRef(module, "Buffer", reinterpret_cast<PyObject*>(&BufferType))) return -1;
  return PyModule_AddObjectRef(module, "Store", reinterpret_cast<PyObject*>(&StoreType));
}

}  // namespace miniray
