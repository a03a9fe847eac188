"""Have the allocator keep what a training step frees, as the next step asks for the same again.

glibc gives freed memory at the end of its heaps back to the kernel above a threshold that follows the largest
block it has seen; a thread's heaps it gives back whole. A worker that has its data from the object store
has allocated nothing large itself, so every step would give back and fault in what lies between: thousands of
page faults, some hundredths of a step. Other allocators and C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEPT_BYTES = 1 << 30
_HEAP_BYTES = 64 << 20
"""A thread's arena is made of heaps of this size; padded by as much, none of them is given back."""
_LARGEST_IN_HEAP_BYTES = 32 << 20
"""What glibc allows at most."""
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """From now on this process keeps up to a GiB of freed memory. False where that is not for us to say:
    the user has set the allocator up, or it is not glibc's."""
    if any(os.environ.get(name) for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        is_glibc = "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, OSError, ValueError):
        return False
    if not is_glibc:
        return False
    asked = (
        (_TRIM_THRESHOLD, _KEPT_BYTES),
        (_TOP_PAD, _HEAP_BYTES),
        (_MMAP_THRESHOLD, _LARGEST_IN_HEAP_BYTES),
    )
    return all(mallopt(what, value) == 1 for what, value in asked)
