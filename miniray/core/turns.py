"""Whose turn it is among jobs that wait for the same thing: by priority, then one after the other.

Used by the GCS for actors and placement groups; leases have `core.shares`. A job's thousandth item waits for
the first one of another job, however late that came. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

JOBS_KEPT = 4096

T = TypeVar("T")


class Turns(Generic[T]):
    """`key(item)` is (priority, job id)."""

    def __init__(self, key: Callable[[T], tuple[int, bytes]]) -> None:
        self._key = key
        self._served: dict[bytes, int] = {}
        """Jobs that were served, the latest last, with a number that grows."""
        self._serving = 0

    def serve(self, items: Iterable[T], attempt: Callable[[T], bool]) -> None:
        """Attempt items in their turns; one whose attempt is True comes again after the others' turns."""
        levels: dict[int, dict[bytes, deque[T]]] = {}
        for item in items:
            priority, job_id = self._key(item)
            levels.setdefault(priority, {}).setdefault(job_id, deque()).append(item)
        for priority in sorted(levels, reverse=True):
            jobs = sorted(levels[priority].items(), key=lambda entry: self._served.get(entry[0], 0))
            ring = deque(jobs)
            while ring:
                job_id, queue = ring.popleft()
                if self._serve_one(job_id, queue, attempt):
                    ring.append((job_id, queue))

    def _serve_one(self, job_id: bytes, queue: deque[T], attempt: Callable[[T], bool]) -> bool:
        """The job's next item for which there is something; False when the job has had all."""
        while queue:
            item = queue.popleft()
            if attempt(item):
                queue.append(item)
                self._served.pop(job_id, None)
                self._serving += 1
                self._served[job_id] = self._serving
                if len(self._served) > JOBS_KEPT:
                    del self._served[next(iter(self._served))]
                return True
        return False
