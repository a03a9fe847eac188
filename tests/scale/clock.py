"""Virtual time for the hollow cluster, and a meter of the processor time that pieces of it take."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from cProfile import Profile
from types import CodeType
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
    """Processor time of this thread inside `measured` calls, by kind, and the longest of them.

    A call within another one counts for its own kind only. With `counting` it is function calls that are
    counted, which no cache and no other process changes; the times are of no use then.
    """

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.spent = dict.fromkeys(kinds, 0.0)
        self.longest = 0.0
        self.longest_call = ""
        self.counting = False
        self._profiles = {kind: Profile() for kind in kinds}
        self._kinds: list[str] = []
        self._inside = 0.0
        """Seconds of the calls within the one that runs."""

    def reset(self) -> None:
        """Begin anew."""
        self.spent = dict.fromkeys(self.spent, 0.0)
        self.longest = 0.0
        self._profiles = {kind: Profile() for kind in self.spent}

    def calls(self, kind: str) -> int:
        """Functions that were called while `counting`, the meter's own left out."""
        entries = self._profiles[kind].getstats()
        return sum(entry.callcount for entry in entries if not _is_of_the_meter(entry.code))

    def turns_out(self, kind: str) -> None:
        """The call that runs is of this kind after all."""
        self._switch(None)
        self._switch(kind)

    def measured(self, kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call, and count its time; one that is not within another is one callback of the daemon's loop."""
        outer, self._inside = self._inside, 0.0
        self._switch(kind)
        start = time.thread_time()
        try:
            return call(*arguments)
        finally:
            whole = time.thread_time() - start
            kind = self._kinds[-1]
            self._switch(None)
            self.spent[kind] += whole - self._inside
            self._inside = outer + whole if self._kinds else 0.0
            if not self._kinds and whole > self.longest:
                self.longest, self.longest_call = whole, getattr(call, "__name__", "")

    def _switch(self, kind: str | None) -> None:
        """Count for this kind from now on; None: for that of the call around."""
        if self.counting and self._kinds:
            self._profiles[self._kinds[-1]].disable()
        if kind is None:
            self._kinds.pop()
        else:
            self._kinds.append(kind)
        if self.counting and self._kinds:
            self._profiles[self._kinds[-1]].enable()


def _is_of_the_meter(code: CodeType | str) -> bool:
    if isinstance(code, str):
        return "thread_time" in code or "_lsprof" in code
    return code.co_filename == __file__
