// The three frames of nearly every call, packed and unpacked in one step each: the push of a call whose
// arguments are plain bytes, the reply with one small value, and what that reply says. The layouts are
// those of runtime/frames.py, which has the others; tests hold the two against one another.

#include <bit>
#include <cstring>

#include "python.h"

namespace miniray {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are little endian");

constexpr uint8_t kPush = 1, kReplyOne = 2;
constexpr Py_ssize_t kTaskIdSize = 24;

struct PushHeader {
  uint8_t kind, flags;
  uint16_t attempt;
  uint32_t call, number;
  int32_t returns;
  uint8_t task_id[kTaskIdSize];
};
static_assert(sizeof(PushHeader) == 40);

struct ReplyHeader {
  uint8_t kind, unused;
  uint16_t values;
  uint32_t call, spent_us;
};
static_assert(sizeof(ReplyHeader) == 12);

// Reads an integer of a field's type; false with ValueError set when it does not fit.
template <class Field>
bool fits(PyObject* number, Field* field) {
  long long value = PyLong_AsLongLong(number);
  if (value == -1 && PyErr_Occurred()) return false;
  *field = static_cast<Field>(value);
  if (static_cast<long long>(*field) == value) return true;
  PyErr_Format(PyExc_ValueError, "%lld does not fit into a field of %zd bytes", value, sizeof(Field));
  return false;
}

// The frame of a header and the bytes behind it.
template <class Header>
PyObject* frame_of(const Header& header, PyObject* payload) {
  Py_ssize_t size = PyBytes_GET_SIZE(payload);
  PyObject* frame = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(sizeof(Header)) + size);
  if (!frame) return nullptr;
  char* bytes = PyBytes_AS_STRING(frame);
  std::memcpy(bytes, &header, sizeof(Header));
  std::memcpy(bytes + sizeof(Header), PyBytes_AS_STRING(payload), static_cast<size_t>(size));
  return frame;
}

// push_frame(flags, attempt, call, number, returns, task_id, payload)
PyObject* push_frame(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 7 || !PyBytes_Check(args[5]) || PyBytes_GET_SIZE(args[5]) != kTaskIdSize || !PyBytes_Check(args[6]))
    return PyErr_Format(PyExc_TypeError, "push_frame(flags, attempt, call, number, returns, task_id, payload)");
  PushHeader header;
  header.kind = kPush;
  if (!fits(args[0], &header.flags) || !fits(args[1], &header.attempt) || !fits(args[2], &header.call) ||
      !fits(args[3], &header.number) || !fits(args[4], &header.returns))
    return nullptr;
  std::memcpy(header.task_id, PyBytes_AS_STRING(args[5]), kTaskIdSize);
  return frame_of(header, args[6]);
}

// reply_frame(call, spent_us, payload)
PyObject* reply_frame(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 3 || !PyBytes_Check(args[2]))
    return PyErr_Format(PyExc_TypeError, "reply_frame(call, spent_us, payload)");
  ReplyHeader header{kReplyOne, 0, 1, 0, 0};
  if (!fits(args[0], &header.call) || !fits(args[1], &header.spent_us)) return nullptr;
  return frame_of(header, args[2]);
}

// reply_in(frame) -> (call, spent_us, payload)
PyObject* reply_in(PyObject*, PyObject* frame) {
  if (!PyBytes_Check(frame)) return PyErr_Format(PyExc_TypeError, "a frame is bytes");
  Py_ssize_t size = PyBytes_GET_SIZE(frame) - static_cast<Py_ssize_t>(sizeof(ReplyHeader));
  if (size < 0) return PyErr_Format(PyExc_ValueError, "a reply of %zd bytes", PyBytes_GET_SIZE(frame));
  ReplyHeader header;
  std::memcpy(&header, PyBytes_AS_STRING(frame), sizeof(header));
  PyObject* call = PyLong_FromUnsignedLong(header.call);
  PyObject* spent = PyLong_FromUnsignedLong(header.spent_us);
  PyObject* payload = PyBytes_FromStringAndSize(PyBytes_AS_STRING(frame) + sizeof(header), size);
  PyObject* all = call && spent && payload ? PyTuple_New(3) : nullptr;
  if (!all) {
    Py_XDECREF(call);
    Py_XDECREF(spent);
    Py_XDECREF(payload);
    return nullptr;
  }
  PyTuple_SET_ITEM(all, 0, call);
  PyTuple_SET_ITEM(all, 1, spent);
  PyTuple_SET_ITEM(all, 2, payload);
  return all;
}

PyMethodDef functions[] = {{"push_frame", method(push_frame), METH_FASTCALL, nullptr},
                           {"reply_frame", method(reply_frame), METH_FASTCALL, nullptr},
                           {"reply_in", method(reply_in), METH_O, nullptr},
                           {}};

}  // namespace

int add_frame_functions(PyObject* module) { return PyModule_AddFunctions(module, functions); }

}  // namespace miniray
