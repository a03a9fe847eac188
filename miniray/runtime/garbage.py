"""Garbage in cycles, collected because the node's store fills: see `core.memory`.

In a thread of its own: a collection runs finalizers, which may be anybody's code, and the I/O thread must
not wait for them. One at a time.
"""

from __future__ import annotations

import gc
import threading

_running = threading.Lock()


def collect_soon() -> None:
    """Collect in the background, unless that goes on already."""
    if _running.acquire(blocking=False):
        threading.Thread(target=_collect, name="miniray-garbage", daemon=True).start()


def _collect() -> None:
    try:
        gc.collect()
    finally:
        _running.release()
