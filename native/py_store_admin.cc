// Python's `Store`, the part that is not about single objects: making, joining and closing a store,
// and what the raylet does with it.

#include <algorithm>
#include <cerrno>
#include <vector>

#include "py_store.h"

namespace miniray {
namespace {

PyObject* new_store(Segment* segment, uint32_t slot) {
  Client* client = segment ? Client::open(segment, slot) : nullptr;
  if (!client) {
    PyErr_SetFromErrno(PyExc_OSError);
    if (segment) segment->drop();
    return nullptr;
  }
  auto* self = PyObject_New(StoreObject, &StoreType);
  if (self)
    self->client = client;
  else
    client->drop();
  return reinterpret_cast<PyObject*>(self);
}

void close_client(StoreObject* self) {
  Client* client = self->client;
  self->client = nullptr;
  if (!client) return;
  client->close();
  if (client->calls)
    client->left = true;  // the last call drops it
  else
    client->drop();
}

PyObject* object_row(const ObjectInfo& info) {
  const char* state = info.state == State::sealed     ? "sealed"
                      : info.state == State::unsealed ? "unsealed"
                                                      : "deleting";
  return Py_BuildValue("(y#KsIO)", info.id, Py_ssize_t{kIdSize}, info.size, state, info.creator,
                       info.primary ? Py_True : Py_False);
}

}  // namespace

PyObject* store_create(PyObject*, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"capacity", "slots", "max_clients", nullptr};
  unsigned long long capacity;
  unsigned slots = 0, max_clients = 1024;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K|$II", const_cast<char**>(names), &capacity, &slots,
                                   &max_clients))
    return nullptr;
  return new_store(Segment::create(capacity, slots, max_clients), kRaylet);
}

PyObject* store_attach(PyObject*, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"fd", "client_slot", nullptr};
  int fd;
  unsigned slot;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iI", const_cast<char**>(names), &fd, &slot)) return nullptr;
  return new_store(Segment::attach(fd), slot);
}

PyObject* store_close(PyObject* self, PyObject*) {
  close_client(reinterpret_cast<StoreObject*>(self));
  Py_RETURN_NONE;
}

void store_dealloc(PyObject* self) {
  close_client(reinterpret_cast<StoreObject*>(self));
  PyObject_Free(self);
}

PyObject* store_set_lock_timeout(PyObject* self, PyObject* seconds) {
  StoreCall client(self);
  if (!client) return nullptr;
  double value = seconds == Py_None ? -1 : PyFloat_AsDouble(seconds);
  if (value == -1 && PyErr_Occurred()) return nullptr;
  client->lock_timeout_ns = value < 0 ? -1 : static_cast<int64_t>(value * 1e9);
  Py_RETURN_NONE;
}

PyObject* store_open_client(PyObject* self, PyObject*) {
  StoreCall client(self);
  if (!client) return nullptr;
  uint32_t slot;
  Status status = with_mutex([&](Wait wait) { return client->reserve_client(&slot, wait); });
  if (status == Status::no_slot)
    return PyErr_Format(PyExc_RuntimeError, "all %u client records of the store are taken",
                        client->segment().header().max_clients);
  if (status != Status::ok) return raise(client, status);
  return PyLong_FromUnsignedLong(slot);
}

PyObject* store_reap_client(PyObject* self, PyObject* number) {
  StoreCall client(self);
  if (!client) return nullptr;
  unsigned long slot = PyLong_AsUnsignedLong(number);
  if (slot == ~0ul && PyErr_Occurred()) return nullptr;
  if (slot == client->slot() || slot >= client->segment().header().max_clients)
    return PyErr_Format(PyExc_ValueError, "client %lu is not one to reap", slot);
  Reaped reaped;
  ObjectInfo* aborted = nullptr;
  Status status;
  Py_BEGIN_ALLOW_THREADS
  status = client->reap(static_cast<uint32_t>(slot), &reaped, &aborted, Wait::yes);
  Py_END_ALLOW_THREADS
  PyObject* ids = status == Status::ok ? PyList_New(static_cast<Py_ssize_t>(reaped.aborted)) : nullptr;
  for (uint64_t i = 0; ids && i < reaped.aborted; ++i) {
    PyObject* id = PyBytes_FromStringAndSize(reinterpret_cast<char*>(aborted[i].id), kIdSize);
    if (!id)
      Py_CLEAR(ids);
    else
      PyList_SET_ITEM(ids, static_cast<Py_ssize_t>(i), id);
  }
  free(aborted);
  if (status == Status::full) return PyErr_NoMemory();
  if (status != Status::ok) return raise(client, status);
  return ids ? Py_BuildValue("{s:K,s:N}", "pins", reaped.pins, "aborted", ids) : nullptr;
}

PyObject* store_list(PyObject* self, PyObject*) {
  StoreCall client(self);
  if (!client) return nullptr;
  std::vector<ObjectInfo> objects;
  ObjectInfo info;
  for (uint32_t slot = 0; slot < client->table().used(); ++slot)
    if (client->info(slot, &info)) objects.push_back(info);
  std::sort(objects.begin(), objects.end(),
            [](const ObjectInfo& a, const ObjectInfo& b) { return a.touched < b.touched; });
  PyObject* result = PyList_New(static_cast<Py_ssize_t>(objects.size()));
  for (size_t i = 0; result && i < objects.size(); ++i) {
    PyObject* row = object_row(objects[i]);
    if (!row)
      Py_CLEAR(result);
    else
      PyList_SET_ITEM(result, static_cast<Py_ssize_t>(i), row);
  }
  return result;
}

PyObject* store_stats(PyObject* self, PyObject*) {
  StoreCall client(self);
  if (!client) return nullptr;
  StoreStats stats;
  Status status = with_mutex([&](Wait wait) { return client->stats(&stats, wait); });
  if (status != Status::ok) return raise(client, status);
  return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I}", "capacity", stats.capacity, "used",
                       stats.used, "free", stats.free, "objects", stats.objects, "largest_free",
                       stats.largest_free, "cold", stats.cold, "pinned_bytes", client->pinned_bytes(),
                       "rebuilds", stats.rebuilds, "clients", stats.clients);
}

PyObject* store_prefault(PyObject* self, PyObject* number) {
  StoreCall client(self);
  uint64_t bytes = client ? PyLong_AsUnsignedLongLong(number) : 0;
  if (!client || (bytes == ~0ull && PyErr_Occurred())) return nullptr;
  Py_BEGIN_ALLOW_THREADS
  bytes = client->prefault(bytes);
  Py_END_ALLOW_THREADS
  return PyLong_FromUnsignedLongLong(bytes);
}

PyObject* store_punch(PyObject* self, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"keep", nullptr};
  unsigned long long keep = 0;
  StoreCall client(self);
  if (!client || !PyArg_ParseTupleAndKeywords(args, kwargs, "|K", const_cast<char**>(names), &keep))
    return nullptr;
  uint64_t bytes;
  Py_BEGIN_ALLOW_THREADS
  bytes = client->punch(keep);
  Py_END_ALLOW_THREADS
  return PyLong_FromUnsignedLongLong(bytes);
}

PyObject* store_check(PyObject* self, PyObject*) {
  StoreCall client(self);
  if (!client) return nullptr;
  std::string wrong;
  Status status = with_mutex([&](Wait wait) { return client->check(&wrong, wait); });
  if (status != Status::ok) return raise(client, status);
  if (!wrong.empty()) return PyErr_Format(PyExc_AssertionError, "%s", wrong.c_str());
  Py_RETURN_NONE;
}

}  // namespace miniray
