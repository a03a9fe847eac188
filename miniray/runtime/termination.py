"""SIGTERM of an actor that runs several calls at once: what runs is finished, then the signal has its way.

An actor that runs one call at a time ends at once, and so does this one at a second signal. Calls
that come after the first are dropped: their callers learn of the actor's death.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniray.runtime.concurrency import AsyncActor, ThreadedActor
    from miniray.runtime.executor import Executor


class Finishing:
    """In the place of the actor's pools or loops: they take no more calls, and finish what they have."""

    def __init__(self, calls: ThreadedActor | AsyncActor) -> None:
        self._calls = calls
        self.running = calls.running
        self.not_begun = calls.not_begun
        self.cancel = calls.cancel
        self.begun = getattr(calls, "begun", list)

    def submit(self, peer: Any, frame: bytes) -> None:
        """The caller will learn of the actor's death."""


def install(executor: Executor) -> None:
    """Take SIGTERM over, unless the actor's constructor has. Main thread."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def terminate(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        # Whatever this thread was interrupted in may hold the worker's lock.
        threading.Thread(target=_finish, args=(executor,), name="termination", daemon=True).start()

    signal.signal(signal.SIGTERM, terminate)


def _finish(executor: Executor) -> None:
    worker = executor.worker
    with worker.lock:
        calls = executor.concurrency
        executor.concurrency = Finishing(calls)
    calls.await_end()
    executor.tell()
    worker.say_last_words()
    with worker.lock:
        worker.log.flush()
    os.kill(os.getpid(), signal.SIGTERM)
