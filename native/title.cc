// The title that `ps` and psutil show for a process, written over the arguments it was started with.
//
// The kernel shows the memory of a process's arguments: when its last byte is not 0, only up to the first
// 0 in it. A fork has the area of its parent, so whoever is to have long titles starts with long arguments
// (runtime/launch.py). A title costs one copy, so each task can have its own. Called with the GIL.

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "python.h"

namespace miniray {

namespace {

constexpr int kArgStart = 48, kArgEnd = 49;  // fields of /proc/self/stat, counted from 1

char* area = nullptr;
size_t capacity = 0;
bool looked = false;
PyObject* shown = nullptr;  // the title in the area

// Where this process's arguments are; false when that cannot be known.
bool find_area() {
  looked = true;
  FILE* file = std::fopen("/proc/self/stat", "re");
  if (!file) return false;
  char text[2048];
  size_t length = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  text[length] = 0;
  char* at = std::strrchr(text, ')');  // the name before it may contain anything
  unsigned long start = 0, end = 0;
  int field = 2;
  for (at = at ? std::strtok(at + 1, " ") : nullptr; at; at = std::strtok(nullptr, " ")) {
    ++field;
    if (field == kArgStart) start = std::strtoul(at, nullptr, 10);
    if (field == kArgEnd) end = std::strtoul(at, nullptr, 10);
  }
  if (!start || end < start + 8) return false;
  area = reinterpret_cast<char*>(start);
  capacity = end - start;
  return true;
}

PyObject* set_process_title(PyObject*, PyObject* title) {
  if (title == shown) Py_RETURN_NONE;
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(title, &size);
  if (!text) return nullptr;
  if (!area && (looked || !find_area())) Py_RETURN_NONE;
  size_t length = std::min<size_t>(size, capacity - 2);
  std::memcpy(area, text, length);
  area[length] = 0;
  area[capacity - 1] = '.';
  Py_XSETREF(shown, Py_NewRef(title));
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"set_process_title", set_process_title, METH_O,
     "The command line that others see of this process from now on, cut to the room there is."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

int add_title_function(PyObject* module) { return PyModule_AddFunctions(module, functions); }

}  // namespace miniray
