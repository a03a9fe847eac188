"""Virtual time for the hollow cluster, and a meter of the processor time that pieces of it take."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Events in order of time; nothing else moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._age = 0

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at the given time."""
        self._age += 1
        heapq.heappush(self._heap, (when, self._age, call, arguments))

    def run(self, until: Callable[[], bool] | float) -> None:
        """Events until the condition holds, or up to a time. AssertionError when none is left."""
        wanted = None if callable(until) else until
        while wanted is not None or not until():  # type: ignore[operator]
            if wanted is not None and (not self._heap or self._heap[0][0] > wanted):
                self.now = wanted
                return
            assert self._heap, "the condition never holds"
            when, _, call, arguments = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            call(*arguments)


class Meter:
    """Processor time of this thread spent inside `measured` calls: the sum and the longest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.longest = 0.0
        self.longest_call = ""

    def reset(self) -> None:
        """Begin anew."""
        self.seconds = self.longest = 0.0

    def measured(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call, and count its time; one call is one callback of the daemon's loop."""
        start = time.thread_time()
        try:
            return call(*arguments)
        finally:
            spent = time.thread_time() - start
            self.seconds += spent
            if spent > self.longest:
                self.longest, self.longest_call = spent, name
