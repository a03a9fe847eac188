"""Objects: in and out of the store, and back from tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from .measuring import Case, Settings


def cases(ray: Any, settings: Settings) -> Iterator[Case]:
    """All about objects. `ray` is connected."""
    small = b"x" * 1_000

    @ray.remote
    def references(count: int) -> Any:
        return [ray.put(i) for i in range(count)]

    yield Case("put 1 KB", "/s", 1, lambda: ray.put(small))
    if settings.only in (name := "get an object of 10,000 references"):
        holder = references.remote(settings.sized(10_000))
        ray.wait([holder])
        yield Case(name, "/s", 1, lambda: ray.get(holder))
    yield from _arrays(ray, settings)


def _arrays(ray: Any, settings: Settings) -> Iterator[Case]:
    try:
        import numpy as np
    except ImportError:
        print("numpy is not installed: the rows of arrays are left out", file=sys.stderr)
        return
    large_bytes = settings.sized(100_000_000)
    array, large = np.zeros(25_000), np.ones(large_bytes, np.uint8)
    kept = ray.put(array)

    @ray.remote
    def make(nbytes: int) -> Any:
        return np.ones(nbytes, np.uint8)

    def returned(nbytes: int = large_bytes // 2) -> None:
        assert ray.get(make.remote(nbytes)).nbytes == nbytes

    yield Case("put 200 KB array", "/s", 1, lambda: ray.put(array))
    yield Case("get 200 KB array", "/s", 1, lambda: ray.get(kept))
    yield Case("put 100 MB", "GB/s", large_bytes / 1e9, lambda: ray.put(large))
    yield Case("task returns 50 MB", "GB/s", large_bytes // 2 / 1e9, returned)
