// Anonymous shared memory: sealed memfds and mappings of them. Nothing has a name in the file
// system, so nothing can be left behind, and the seals rule out SIGBUS by truncation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miniray {

// Grows by one in a forked child. Whoever keeps references, pins or channels remembers the value
// it was made under and does nothing in a process where it differs.
uint32_t fork_generation();

// A memfd of `bytes` zeros, sealed against shrinking and growing, close-on-exec and without the
// right to execute where the kernel knows of that. Returns the descriptor or -1 with errno.
int memfd_sealed(const char* name, size_t bytes);

// The size of a memfd that cannot shrink or grow; -1 with errno (EPERM: seals are missing).
int64_t sealed_size(int fd);

// Shared mapping or nullptr with errno. Kept out of core dumps.
void* map_shared(int fd, size_t offset, size_t bytes, bool writable);

}  // namespace miniray
