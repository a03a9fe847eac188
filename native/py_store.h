// What the files about Python's `Store` share: py_args.cc, py_store.cc, py_store_admin.cc.
#pragma once

#include "python.h"

namespace miniray {

// Turns any status but ok into an exception; `id` (or nullptr) and `bytes` go into its text.
PyObject* raise(const Client* client, Status status, const void* id = nullptr, uint64_t bytes = 0);

// Finds a live object. 1 found, 0 absent, -1 exception set.
int find(Client* client, const void* id, uint32_t* slot, uint64_t* word);

// The same for methods that need the object to be there. False: exception set (KeyError if absent,
// or what was set already when `client` is nullptr).
bool entry_for(Client* client, PyObject* id, uint32_t* slot, uint64_t* word);

// py_store_admin.cc
PyObject* store_create(PyObject*, PyObject* args, PyObject* kwargs);
PyObject* store_attach(PyObject*, PyObject* args, PyObject* kwargs);
PyObject* store_close(PyObject* self, PyObject*);
void store_dealloc(PyObject* self);
PyObject* store_set_lock_timeout(PyObject* self, PyObject* seconds);
PyObject* store_open_client(PyObject* self, PyObject*);
PyObject* store_reap_client(PyObject* self, PyObject* number);
PyObject* store_list(PyObject* self, PyObject*);
PyObject* store_stats(PyObject* self, PyObject*);
PyObject* store_prefault(PyObject* self, PyObject* number);
PyObject* store_punch(PyObject* self, PyObject* args, PyObject* kwargs);
PyObject* store_check(PyObject* self, PyObject*);

}  // namespace miniray
