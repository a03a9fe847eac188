"""`wait` over a mix of references and generators: rarely used, so apart from the fast path."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from miniray.ids import ObjectRef

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker


def wait_mixed(
    worker: CoreWorker, waitables: list[Any], num_returns: int, timeout: float | None
) -> tuple[list[Any], list[Any]]:
    """(ready, rest) in input order, at most `num_returns` ready; waits up to `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    changed = threading.Event()
    for waitable in waitables:
        if isinstance(waitable, ObjectRef):
            worker.when_ready(waitable, changed.set)
    while True:
        changed.clear()
        ready = [waitable for waitable in waitables if _is_ready(waitable, changed)]
        left = None if deadline is None else deadline - time.monotonic()
        if len(ready) >= num_returns or (left is not None and left <= 0):
            break
        changed.wait(left)
    chosen = {id(waitable) for waitable in ready[:num_returns]}
    return (
        [waitable for waitable in waitables if id(waitable) in chosen],
        [waitable for waitable in waitables if id(waitable) not in chosen],
    )


def _is_ready(waitable: Any, changed: threading.Event) -> bool:
    if isinstance(waitable, ObjectRef):
        return bool(waitable.entry.ready)
    return not waitable._stream.when_more(changed.set)
