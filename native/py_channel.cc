// Python's `Channel`: frames out, frames in and re-joined, around channel.h. Serialised by the GIL.

#include <unistd.h>

#include <algorithm>
#include <new>

#include "py_channel.h"
#include "shm.h"

namespace miniray {
namespace {

constexpr size_t kMaxMessage = 1u << 30;  // re-joined fragments; beyond it the peer has gone wrong

PyTypeObject ChannelType = {PyVarObject_HEAD_INIT(nullptr, 0)};

ChannelObject* as_channel(PyObject* self) { return reinterpret_cast<ChannelObject*>(self); }

void close_fd(ChannelObject* self) {
  if (self->fd >= 0) ::close(self->fd);
  self->fd = -1;
}

int channel_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(as_channel(object)->mailbox);
  Py_VISIT(as_channel(object)->owner);
  return 0;
}

int channel_clear(PyObject* object) {
  ChannelObject* self = as_channel(object);
  if (self->mailbox) close_channel(self);
  Py_CLEAR(self->owner);
  return 0;
}

void channel_dealloc(PyObject* object) {
  ChannelObject* self = as_channel(object);
  PyObject_GC_UnTrack(object);
  if (self->weakrefs) PyObject_ClearWeakRefs(object);
  channel_clear(object);
  Py_CLEAR(self->mailbox);
  PyObject_GC_Del(object);
}

// An open channel in the process that opened it; false: exception set.
bool usable(ChannelObject* self) {
  if (!self->channel.is_open()) {
    PyErr_SetString(PyExc_BrokenPipeError, "the channel is closed");
    return false;
  }
  return client_in(self->mailbox) != nullptr;
}

// 1 sent, 0 no room, -1 exception set. The news is told by the caller.
int send_one(ChannelObject* self, PyObject* frame, bool more) {
  Sent sent;
  Py_ssize_t length;
  if (PyBytes_CheckExact(frame)) {
    length = PyBytes_GET_SIZE(frame);
    sent = self->channel.send(PyBytes_AS_STRING(frame), static_cast<size_t>(length), more);
  } else {
    Py_buffer view;
    if (PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE) != 0) return -1;
    length = view.len;
    sent = self->channel.is_open() ? self->channel.send(view.buf, static_cast<size_t>(length), more)
                                   : Sent::closed;
    PyBuffer_Release(&view);
  }
  if (sent == Sent::ok) return 1;
  if (sent == Sent::no_room) return 0;
  if (sent == Sent::closed)
    PyErr_SetString(PyExc_BrokenPipeError, "the peer has closed the channel");
  else
    PyErr_Format(PyExc_ValueError,
                 "a frame of %zd bytes is longer than half the channel (%u bytes): send fragments", length,
                 self->channel.capacity() / 2);
  return -1;
}

// send(frame, more=False, quiet=False). Quiet: published, but the peer is told only by ring().
PyObject* channel_send(PyObject* object, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  ChannelObject* self = as_channel(object);
  int flags[2] = {0, 0};
  if (nargs < 1 || nargs > 3) return PyErr_Format(PyExc_TypeError, "send(frame, more=False, quiet=False)");
  for (Py_ssize_t i = 1; i < nargs; ++i)
    if ((flags[i - 1] = PyObject_IsTrue(args[i])) < 0) return nullptr;
  for (Py_ssize_t i = 0; names && i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    int which = PyUnicode_CompareWithASCIIString(name, "more") == 0    ? 0
                : PyUnicode_CompareWithASCIIString(name, "quiet") == 0 ? 1
                                                                       : -1;
    if (which < 0) return PyErr_Format(PyExc_TypeError, "send() has no argument %R", name);
    if ((flags[which] = PyObject_IsTrue(args[nargs + i])) < 0) return nullptr;
  }
  if (!usable(self)) return nullptr;
  int sent = send_one(self, args[0], flags[0]);
  if (sent < 0) return nullptr;
  if (sent && self->channel.is_open()) {
    if (flags[1])
      self->channel.publish();
    else
      self->channel.tell();
  }
  return PyBool_FromLong(sent);
}

PyObject* channel_ring(PyObject* object, PyObject*) {
  ChannelObject* self = as_channel(object);
  if (self->channel.is_open() && client_in(self->mailbox)) self->channel.tell();
  PyErr_Clear();
  Py_RETURN_NONE;
}

// The peer may have died between publishing and ringing: the next poll looks at this channel.
PyObject* channel_look(PyObject* object, PyObject*) {
  ChannelObject* self = as_channel(object);
  if (self->channel.is_open() && client_in(self->mailbox)) {
    uint32_t number = self->channel.number();
    ClientRecord& record = self->mailbox->client->record();
    record.ready[number / 64].fetch_or(1ull << (number % 64));
    record.summary.fetch_or(1ull << (number / 64));
  }
  PyErr_Clear();
  Py_RETURN_NONE;
}

PyObject* channel_send_many(PyObject* object, PyObject* frames) {
  ChannelObject* self = as_channel(object);
  PyObject* list = usable(self) ? PySequence_Fast(frames, "frames must be a list") : nullptr;
  if (!list) return nullptr;
  Py_ssize_t count = 0;
  int sent = 1;
  for (; count < PySequence_Fast_GET_SIZE(list); ++count)
    if ((sent = send_one(self, PySequence_Fast_GET_ITEM(list, count), false)) != 1) break;
  Py_DECREF(list);
  if (count && self->channel.is_open()) self->channel.tell();
  if (sent < 0 && count == 0) return nullptr;
  PyErr_Clear();  // the frame at fault is the next call's first, and raises there
  return PyLong_FromSsize_t(count);
}

PyObject* channel_close(PyObject* object, PyObject*) {
  close_channel(as_channel(object));
  Py_RETURN_NONE;
}

PyObject* channel_get_fd(PyObject* object, void*) {
  ChannelObject* self = as_channel(object);
  if (self->fd >= 0 && self->channel.is_open() && self->channel.peer_attached()) close_fd(self);
  return PyLong_FromLong(self->fd);
}

PyObject* channel_get_attached(PyObject* object, void*) {
  ChannelObject* self = as_channel(object);
  return PyBool_FromLong(self->channel.is_open() && self->channel.peer_attached());
}

PyObject* channel_get_peer_closed(PyObject* object, void*) {
  ChannelObject* self = as_channel(object);
  return PyBool_FromLong(!self->channel.is_open() || self->channel.peer_closed());
}

PyObject* channel_get_closed(PyObject* object, void*) {
  return PyBool_FromLong(!as_channel(object)->channel.is_open());
}

PyObject* channel_get_max_frame(PyObject* object, void*) {
  ChannelObject* self = as_channel(object);
  return PyLong_FromUnsignedLong(self->channel.is_open() ? self->channel.capacity() / 2 : 0);
}

PyObject* channel_get_owner(PyObject* object, void*) {
  PyObject* owner = as_channel(object)->owner;
  return Py_NewRef(owner ? owner : Py_None);
}

// ---- receiving ------------------------------------------------------------------------------------

// Adds (owner, item) to the list; takes over `item`. False: out of memory.
bool append(PyObject* list, PyObject* owner, PyObject* item) {
  PyObject* pair = item ? PyTuple_New(2) : nullptr;
  if (!pair) {
    Py_XDECREF(item);
    return false;
  }
  PyTuple_SET_ITEM(pair, 0, Py_NewRef(owner));
  PyTuple_SET_ITEM(pair, 1, item);
  int rc = PyList_Append(list, pair);
  Py_DECREF(pair);
  return rc == 0;
}

// Joins a fragment to the message so far. False: out of memory, or longer than any message.
bool join(ChannelObject* self, uint32_t length) {
  size_t need = self->length + length;
  if (need > kMaxMessage) return false;
  if (need > self->room) {
    size_t room = std::max(need, 2 * self->room);
    auto* more = static_cast<uint8_t*>(PyMem_Realloc(self->message, room));
    if (!more) return false;
    self->message = more;
    self->room = room;
  }
  self->channel.incoming().copy(self->message + self->length, length);
  self->length = need;
  return true;
}

// The whole message that the frame at the head ends.
PyObject* whole(ChannelObject* self, uint32_t length) {
  if (self->length == 0) {
    PyObject* frame = PyBytes_FromStringAndSize(nullptr, length);
    if (frame) self->channel.incoming().copy(PyBytes_AS_STRING(frame), length);
    return frame;
  }
  if (!join(self, length)) return nullptr;
  auto* message = PyBytes_FromStringAndSize(reinterpret_cast<char*>(self->message),
                                            static_cast<Py_ssize_t>(self->length));
  PyMem_Free(self->message);
  self->message = nullptr;
  self->length = self->room = 0;
  return message;
}

PyMethodDef channel_methods[] = {{"send", method(channel_send), METH_FASTCALL | METH_KEYWORDS, nullptr},
                                 {"send_many", method(channel_send_many), METH_O, nullptr},
                                 {"ring", method(channel_ring), METH_NOARGS, nullptr},
                                 {"look", method(channel_look), METH_NOARGS, nullptr},
                                 {"close", method(channel_close), METH_NOARGS, nullptr},
                                 {}};

PyGetSetDef channel_fields[] = {{"fd", channel_get_fd, nullptr, nullptr, nullptr},
                                {"attached", channel_get_attached, nullptr, nullptr, nullptr},
                                {"peer_closed", channel_get_peer_closed, nullptr, nullptr, nullptr},
                                {"closed", channel_get_closed, nullptr, nullptr, nullptr},
                                {"max_frame", channel_get_max_frame, nullptr, nullptr, nullptr},
                                {"owner", channel_get_owner, nullptr, nullptr, nullptr},
                                {}};

}  // namespace

ChannelObject* new_channel(MailboxObject* mailbox, PyObject* owner) {
  auto* self = PyObject_GC_New(ChannelObject, &ChannelType);
  if (!self) return nullptr;
  new (&self->channel) Channel();
  self->mailbox = mailbox;
  Py_INCREF(mailbox);
  self->owner = Py_NewRef(owner);
  self->fd = -1;
  self->message = nullptr;
  self->length = self->room = 0;
  self->weakrefs = nullptr;
  PyObject_GC_Track(reinterpret_cast<PyObject*>(self));
  return self;
}

void close_channel(ChannelObject* self) {
  close_fd(self);
  if (!self->channel.is_open()) return;
  Client* client = self->mailbox->client;
  if (!client || client->forks() != fork_generation()) return;  // a child must not close its parent's
  uint32_t number = self->channel.number();
  self->mailbox->channels[number] = nullptr;
  if (number < self->mailbox->hint) self->mailbox->hint = number;
  self->channel.close();
  PyMem_Free(self->message);
  self->message = nullptr;
  self->length = self->room = 0;
}

Drained drain(ChannelObject* self, PyObject* list, Py_ssize_t* left) {
  Channel& channel = self->channel;
  if (channel.take_room() && !append(list, self->owner, Py_NewRef(Py_None))) return Drained::failed;
  while (channel.is_open()) {
    FrameHeader header;
    Consumer::Next next = channel.incoming().next(&header);
    if (next == Consumer::Next::frame && *left <= 0) {
      channel.finish();
      return Drained::more;
    }
    if (next == Consumer::Next::empty) {
      channel.finish();
      return Drained::all;
    }
    bool bad = next == Consumer::Next::corrupt;
    if (!bad && header.more) {
      bad = !join(self, header.length);
      if (!bad) channel.incoming().skip(header.length);
    } else if (!bad) {
      PyObject* frame = whole(self, header.length);
      if (!frame) return Drained::failed;
      channel.incoming().skip(header.length);
      --*left;
      if (!append(list, self->owner, frame)) return Drained::failed;
    }
    if (bad) close_channel(self);
  }
  return Drained::all;
}

int add_channel_type(PyObject* module) {
  ChannelType.tp_name = "miniray._native.Channel";
  ChannelType.tp_basicsize = sizeof(ChannelObject);
  ChannelType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
  ChannelType.tp_dealloc = channel_dealloc;
  ChannelType.tp_traverse = channel_traverse;
  ChannelType.tp_clear = channel_clear;
  ChannelType.tp_methods = channel_methods;
  ChannelType.tp_getset = channel_fields;
  ChannelType.tp_weaklistoffset = offsetof(ChannelObject, weakrefs);
  if (PyType_Ready(&ChannelType)) return -1;
  return PyModule_AddObjectRef(module, "Channel", reinterpret_cast<PyObject*>(&ChannelType));
}

}  // namespace miniray
