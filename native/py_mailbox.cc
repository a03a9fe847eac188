// Python's `Mailbox`: the doorbell of a process and its channels. One thread at a time polls or waits;
// all else is serialised by the GIL.

#include <bit>
#include <cerrno>
#include <new>

#include "futex.h"
#include "py_channel.h"
#include "shm.h"

namespace miniray {
namespace {

PyTypeObject MailboxType = {PyVarObject_HEAD_INIT(nullptr, 0)};

MailboxObject* as_mailbox(PyObject* self) { return reinterpret_cast<MailboxObject*>(self); }

PyObject* mailbox_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"store", nullptr};
  PyObject* store;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!", const_cast<char**>(names), &StoreType, &store))
    return nullptr;
  Client* client = client_of(store);
  if (!client) return nullptr;
  MailboxObject* self = as_mailbox(type->tp_alloc(type, 0));
  if (!self) return nullptr;
  self->channels = static_cast<ChannelObject**>(PyMem_Calloc(kMaxChannels, sizeof(ChannelObject*)));
  if (!self->channels) {
    Py_DECREF(self);
    return PyErr_NoMemory();
  }
  if (!client->take_bell()) {
    Py_DECREF(self);
    return PyErr_Format(PyExc_RuntimeError, "client %u of the store has a mailbox already", client->slot());
  }
  client->hold();
  self->client = client;
  new (&self->bell) Doorbell();
  self->bell.open(&client->record());
  return reinterpret_cast<PyObject*>(self);
}

void close_mailbox(MailboxObject* self) {
  if (!self->client) return;
  bool ours = self->client->forks() == fork_generation();
  for (uint32_t number = 0; ours && number < kMaxChannels; ++number)
    if (ChannelObject* channel = self->channels[number]) close_channel(channel);
  Client* client = self->client;
  self->client = nullptr;
  client->give_bell();
  client->drop();
}

PyObject* mailbox_close(PyObject* object, PyObject*) {
  close_mailbox(as_mailbox(object));
  Py_RETURN_NONE;
}

void mailbox_dealloc(PyObject* object) {
  close_mailbox(as_mailbox(object));
  PyMem_Free(as_mailbox(object)->channels);
  Py_TYPE(object)->tp_free(object);
}

// A number without a channel, its bit cleared (one left from the number's last channel would count
// as news of the next); kMaxChannels with an exception set.
uint32_t free_number(MailboxObject* self) {
  uint32_t number = self->hint;
  while (number < kMaxChannels && self->channels[number]) ++number;
  if (number < kMaxChannels)
    self->client->record().ready[number / 64].fetch_and(~(1ull << (number % 64)));
  else
    PyErr_Format(PyExc_RuntimeError, "all %u channels of this process are open", kMaxChannels);
  return number;
}

// Enters a channel that has been opened, or drops it and raises what `error` (an errno) says.
PyObject* finish_open(MailboxObject* self, ChannelObject* channel, uint32_t number, int error) {
  if (!error) {
    self->channels[number] = channel;
    self->hint = number + 1;
    return reinterpret_cast<PyObject*>(channel);
  }
  Py_DECREF(channel);
  errno = error;
  if (error == EINVAL || error == EPERM)
    return PyErr_Format(PyExc_ValueError, "not the sealed memfd of a channel of this version");
  if (error == EBUSY) return PyErr_Format(PyExc_ValueError, "the channel has been attached already");
  return PyErr_SetFromErrno(PyExc_OSError);
}

PyObject* mailbox_create_channel(PyObject* object, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"owner", "capacity", nullptr};
  PyObject* owner;
  unsigned capacity = 32768;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|I", const_cast<char**>(names), &owner, &capacity))
    return nullptr;
  if (capacity > kMaxCapacity)
    return PyErr_Format(PyExc_ValueError, "capacity %u is above %u", capacity, kMaxCapacity);
  MailboxObject* self = as_mailbox(object);
  ChannelObject* channel = client_in(self) ? new_channel(self, owner) : nullptr;
  if (!channel) return nullptr;
  uint32_t number = free_number(self);
  if (number == kMaxChannels) {
    Py_DECREF(channel);
    return nullptr;
  }
  int error = channel->channel.create(self->client, number, capacity, &channel->fd);
  return finish_open(self, channel, number, error);
}

PyObject* mailbox_attach_channel(PyObject* object, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"owner", "fd", nullptr};
  PyObject* owner;
  int fd;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oi", const_cast<char**>(names), &owner, &fd))
    return nullptr;
  MailboxObject* self = as_mailbox(object);
  ChannelObject* channel = client_in(self) ? new_channel(self, owner) : nullptr;
  if (!channel) return nullptr;
  uint32_t number = free_number(self);
  if (number == kMaxChannels) {
    Py_DECREF(channel);
    return nullptr;
  }
  return finish_open(self, channel, number, channel->channel.attach(self->client, number, fd));
}

// ---- poll -----------------------------------------------------------------------------------------

// Serves those channels of one bitmap word that are in `mask`; what is not served to the end keeps
// its bit, or gets it back.
void serve(MailboxObject* self, uint32_t word, uint64_t mask, PyObject* list, Py_ssize_t* left) {
  ClientRecord& record = self->bell.record();
  uint64_t rest = 0;
  // Cleared before the rings are read, so that news from now on sets it again.
  uint64_t bits = *left > 0 ? record.ready[word].fetch_and(~mask, std::memory_order_seq_cst) & mask : 0;
  for (; bits && *left > 0; bits &= bits - 1) {
    uint32_t number = word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
    ChannelObject* channel = self->channels[number];
    if (!channel) continue;
    Py_INCREF(channel);
    Drained drained = drain(channel, list, left);
    if (drained != Drained::all) rest |= bits & -bits;
    if (drained == Drained::failed) *left = 0;
    if (*left <= 0) self->cursor = (number + 1) % kMaxChannels;
    Py_DECREF(channel);
  }
  rest |= bits;
  if (rest) record.ready[word].fetch_or(rest, std::memory_order_seq_cst);
  if (rest || *left <= 0) record.summary.fetch_or(1ull << word, std::memory_order_seq_cst);
}

// One round over all channels with news, from the cursor on: its word's upper part, the other
// words, its word's lower part.
void serve_round(MailboxObject* self, PyObject* list, Py_ssize_t* left) {
  uint32_t first = self->cursor / 64;
  uint64_t upper = ~0ull << (self->cursor % 64);
  uint64_t words = self->bell.record().summary.exchange(0, std::memory_order_seq_cst);
  if (words >> first & 1) serve(self, first, upper, list, left);
  for (uint64_t turned = std::rotr(words, static_cast<int>(first)) & ~1ull; turned; turned &= turned - 1)
    serve(self, (first + static_cast<uint32_t>(std::countr_zero(turned))) & 63, ~0ull, list, left);
  if ((words >> first & 1) && ~upper) serve(self, first, ~upper, list, left);
}

bool has_news(MailboxObject* self) {
  return self->bell.record().summary.load(std::memory_order_acquire) != 0;
}

// Spins without the GIL until there is news, somebody calls wake() or the time is over. Takes no wake
// away: that is for the thread in wait(), or the next one.
void spin_for_news(MailboxObject* self, long spin_us) {
  Py_BEGIN_ALLOW_THREADS
  self->bell.spin(spin_us * 1000);
  Py_END_ALLOW_THREADS
}

// poll(limit=512, spin_us=0); only the limit may be given by its name.
PyObject* mailbox_poll(PyObject* object, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  MailboxObject* self = as_mailbox(object);
  Client* client = client_in(self);
  if (!client) return nullptr;
  Py_ssize_t left = 512;
  long spin_us = 0;
  Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
  bool only_limit = named == 1 && nargs == 0 && !PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "limit");
  if (nargs > 2 || (named && !only_limit))
    return PyErr_Format(PyExc_TypeError, "poll(limit=512, spin_us=0) takes no other arguments");
  if (nargs + named > 0 && (left = PyLong_AsSsize_t(args[0])) == -1 && PyErr_Occurred()) return nullptr;
  if (nargs > 1 && (spin_us = PyLong_AsLong(args[1])) == -1 && PyErr_Occurred()) return nullptr;
  client->hold();  // another thread, or the collector, may close this mailbox
  if (spin_us > 0 && !has_news(self)) spin_for_news(self, spin_us);
  PyObject* list = PyList_New(0);
  if (!list || !has_news(self)) return client->drop(), list;
  serve_round(self, list, &left);
  client->drop();
  if (PyErr_Occurred()) {
    if (PyList_GET_SIZE(list) == 0)
      Py_CLEAR(list);
    else
      PyErr_Clear();  // what was taken out of the rings must not be lost
  }
  return list;
}

// ---- wait and wake ----------------------------------------------------------------------------------

PyObject* mailbox_wait(PyObject* object, PyObject* const* args, Py_ssize_t nargs) {
  MailboxObject* self = as_mailbox(object);
  Client* client = client_in(self);
  if (!client) return nullptr;
  if (nargs != 2) return PyErr_Format(PyExc_TypeError, "wait(timeout_s, spin_us) takes 2 arguments");
  if (self->bell.rung()) {
    self->bell.take_wake();
    Py_RETURN_TRUE;
  }
  int64_t deadline_ns;
  long spin_us = PyLong_AsLong(args[1]);
  if ((spin_us == -1 && PyErr_Occurred()) || !deadline_of(args[0], &deadline_ns)) return nullptr;
  client->hold();
  bool failed = false;
  for (;;) {
    int rc;
    Py_BEGIN_ALLOW_THREADS
    rc = self->bell.wait(spin_us * 1000, deadline_ns);
    Py_END_ALLOW_THREADS
    if (rc == EINTR && (failed = PyErr_CheckSignals() != 0)) break;
    if (self->bell.rung() || rc == ETIMEDOUT) break;
    spin_us = 0;
  }
  bool rung = self->bell.rung();
  self->bell.take_wake();
  client->drop();  // the last use of the segment: another thread may have closed mailbox and store
  return failed ? nullptr : PyBool_FromLong(rung);
}

PyObject* mailbox_wake(PyObject* object, PyObject*) {
  MailboxObject* self = as_mailbox(object);
  if (!client_in(self)) return nullptr;
  self->bell.wake();
  Py_RETURN_NONE;
}

PyMethodDef mailbox_methods[] = {
    {"create_channel", method(mailbox_create_channel), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"attach_channel", method(mailbox_attach_channel), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"poll", method(mailbox_poll), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"wait", method(mailbox_wait), METH_FASTCALL, nullptr},
    {"wake", method(mailbox_wake), METH_NOARGS, nullptr},
    {"close", method(mailbox_close), METH_NOARGS, nullptr},
    {}};

}  // namespace

Client* client_in(MailboxObject* self) {
  if (!self->client) {
    PyErr_SetString(PyExc_RuntimeError, "the mailbox is closed");
    return nullptr;
  }
  if (self->client->forks() == fork_generation()) return self->client;
  PyErr_SetString(PyExc_RuntimeError, "this process was forked: the mailbox belongs to its parent");
  return nullptr;
}

int add_mailbox_type(PyObject* module) {
  MailboxType.tp_name = "miniray._native.Mailbox";
  MailboxType.tp_basicsize = sizeof(MailboxObject);
  MailboxType.tp_flags = Py_TPFLAGS_DEFAULT;
  MailboxType.tp_new = mailbox_new;
  MailboxType.tp_dealloc = mailbox_dealloc;
  MailboxType.tp_methods = mailbox_methods;
  if (PyType_Ready(&MailboxType)) return -1;
  return PyModule_AddObjectRef(module, "Mailbox", reinterpret_cast<PyObject*>(&MailboxType));
}

}  // namespace miniray
