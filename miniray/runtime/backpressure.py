"""Back-pressure: `remote()` of a driver waits while too many of its tasks are unfinished.

Each queued task is memory of its owner. A driver's threads may wait for room; a worker never does,
for its own tasks may be what others wait for. Neither does a callback: it runs on the thread that
makes the room. The limit is `submit_limit` of the configuration.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from miniray import config
from miniray.runtime.waiting import Waiter

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

logger = logging.getLogger("miniray")

LOOK_AGAIN_S = 0.1
"""Tasks also end by messages of the raylet, which wake nobody here."""


class Backpressure:
    """One per CoreWorker. Whoever submits looks at `limit` and comes here only beyond it."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self.limit: int = config.get("submit_limit") if worker.is_driver else sys.maxsize
        self.waiting: list[Waiter] = []
        self._exempt = threading.local()
        self._told = False

    def await_room(self) -> None:
        """Return when fewer than `limit` tasks are unfinished. Without the lock."""
        if getattr(self._exempt, "depth", 0):
            return
        self._tell()
        worker = self._worker
        while worker.owner.unfinished >= self.limit:
            waiter = Waiter(1)
            self.waiting.append(waiter)
            try:
                worker.pump.wait(waiter, time.monotonic() + LOOK_AGAIN_S)
            finally:
                self.waiting.remove(waiter)

    def turn(self) -> None:
        """The drainer has handled frames and somebody waits: is there room now? Under the lock."""
        if self._worker.owner.unfinished < self.limit:
            for waiter in self.waiting:
                waiter.notify(None)
                self._worker.pump.kick(waiter)

    @contextlib.contextmanager
    def exemption(self) -> Iterator[None]:
        """What this thread submits meanwhile never waits."""
        depth = getattr(self._exempt, "depth", 0)
        self._exempt.depth = depth + 1
        try:
            yield
        finally:
            self._exempt.depth = depth

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.info(
                "%d tasks of this driver are unfinished: remote() waits until some have ended "
                "(MINIRAY_SUBMIT_LIMIT sets the limit).", self.limit)
