// Arguments and errors of the Python types: ids, deadlines, and a Status as an exception that names
// the object, the figure and the limit.

#include <cstdio>

#include "futex.h"
#include "py_store.h"
#include "shm.h"

namespace miniray {

Errors errors;

namespace {

void set_long(PyObject* object, const char* name, unsigned long long value) {
  PyObject* number = PyLong_FromUnsignedLongLong(value);
  if (number) PyObject_SetAttrString(object, name, number);
  Py_XDECREF(number);
}

void raise_full(const Client* client, Status status, const char* id, uint64_t needed) {
  const Header& header = client->segment().header();
  uint64_t used = header.arena.used, capacity = header.capacity;
  PyObject* text =
      status == Status::no_slot
          ? PyUnicode_FromFormat("object %s: the store's table is full (%u objects)", id, header.slots)
          : PyUnicode_FromFormat(
                "object %s needs %llu bytes: %s (%llu of %llu bytes are in use)", id,
                static_cast<unsigned long long>(needed),
                needed > capacity ? "more than the whole store has" : "no free block is large enough",
                static_cast<unsigned long long>(used), static_cast<unsigned long long>(capacity));
  PyObject* error = text ? PyObject_CallOneArg(errors.store_full, text) : nullptr;
  Py_XDECREF(text);
  if (!error) return;
  set_long(error, "needed", needed);
  set_long(error, "capacity", capacity);
  PyErr_SetObject(errors.store_full, error);
  Py_DECREF(error);
}

void raise_busy(const Client* client) {
  uint32_t holder = client->holder();
  uint32_t pid = holder ? client->segment().client(holder - 1).pid.load() : 0;
  PyObject* text = PyUnicode_FromFormat("the store's mutex is held by client %d (pid %u)",
                                        static_cast<int>(holder) - 1, pid);
  PyObject* error = text ? PyObject_CallOneArg(errors.store_busy, text) : nullptr;
  Py_XDECREF(text);
  if (!error) return;
  PyObject* slot = PyLong_FromLong(static_cast<long>(holder) - 1);
  if (slot) PyObject_SetAttrString(error, "holder", slot);
  Py_XDECREF(slot);
  set_long(error, "pid", pid);
  PyErr_SetObject(errors.store_busy, error);
  Py_DECREF(error);
}

}  // namespace

PyObject* raise(const Client* client, Status status, const void* id, uint64_t bytes) {
  char hex[2 * kIdSize + 1] = "";
  for (uint32_t i = 0; id && i < kIdSize; ++i)
    snprintf(hex + 2 * i, 3, "%02x", static_cast<const uint8_t*>(id)[i]);
  switch (status) {
    case Status::exists: PyErr_Format(errors.object_exists, "object %s is already in the store", hex); break;
    case Status::full:
    case Status::no_slot: raise_full(client, status, hex, bytes); break;
    case Status::stuck: raise_busy(client); break;
    case Status::absent: PyErr_Format(PyExc_KeyError, "object %s is not in the store", hex); break;
    case Status::refused:
      PyErr_Format(PyExc_ValueError, "object %s is not an unsealed object of this client", hex);
      break;
    case Status::reaped:
      PyErr_SetString(PyExc_RuntimeError, "the raylet has taken this client's record back");
      break;
    default: PyErr_SetString(PyExc_RuntimeError, "the store segment is damaged: objects overlap"); break;
  }
  return nullptr;
}

int find(Client* client, const void* id, uint32_t* slot, uint64_t* word) {
  Id key(id);
  Status status = with_mutex([&](Wait wait) { return client->find(key, slot, word, wait); });
  if (status == Status::ok) return 1;
  if (status == Status::absent) return 0;
  raise(client, status, id);
  return -1;
}

bool entry_for(Client* client, PyObject* id, uint32_t* slot, uint64_t* word) {
  const void* raw = client ? id_bytes(id) : nullptr;
  if (!raw) return false;
  int found = find(client, raw, slot, word);
  if (found == 0) raise(client, Status::absent, raw);
  return found > 0;
}

Client* client_of(PyObject* store) {
  Client* client = reinterpret_cast<StoreObject*>(store)->client;
  if (!client) {
    PyErr_SetString(PyExc_RuntimeError, "the store is closed");
    return nullptr;
  }
  if (client->forks() == fork_generation()) return client;
  PyErr_SetString(PyExc_RuntimeError, "this process was forked: the store belongs to its parent");
  return nullptr;
}

const void* id_bytes(PyObject* id) {
  if (!PyBytes_Check(id)) {
    PyErr_Format(PyExc_TypeError, "an object id is bytes, not %s", Py_TYPE(id)->tp_name);
    return nullptr;
  }
  if (PyBytes_GET_SIZE(id) == kIdSize) return PyBytes_AS_STRING(id);
  PyErr_Format(PyExc_ValueError, "an object id needs to have length %u, not %zd", kIdSize, PyBytes_GET_SIZE(id));
  return nullptr;
}

bool deadline_of(PyObject* seconds, int64_t* deadline_ns) {
  *deadline_ns = -1;
  if (seconds == Py_None) return true;
  double value = PyFloat_AsDouble(seconds);
  if (value == -1 && PyErr_Occurred()) return false;
  if (value >= 1e9) return true;  // 30 years, or inf
  *deadline_ns = monotonic_ns() + (value > 0 ? static_cast<int64_t>(value * 1e9) : 0);
  return true;
}

}  // namespace miniray
