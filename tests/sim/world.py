"""Virtual time, one seeded generator, the trace, and coroutines that wait in virtual time.

Everything that happens is an event of one heap, ordered by time and then by age. Nothing else
moves time, nothing else draws random numbers: the same seed gives the same trace, line by line.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Generator
from random import Random
from typing import Any

Coroutine = Generator[Any, Any, Any]
"""What programs are: they yield a `Future` or a number of seconds, and are resumed after it."""


AT_ONCE_LIMIT = 20_000
"""More events than this without any time between them are a loop."""


class Violation(AssertionError):
    """A promise of the system was broken."""


class Timer:
    """One callback that can be moved and stopped."""

    __slots__ = ("_call", "_due", "_version", "_world")

    def __init__(self, world: World, call: Callable[[], None]) -> None:
        self._world = world
        self._call = call
        self._due: float | None = None
        self._version = 0

    def set(self, due: float | None) -> None:
        """Call at `due`, at once if that is past; None: not at all."""
        if due is not None and due < self._world.now:
            due = self._world.now
        if due == self._due:
            return
        self._due = due
        self._version += 1
        if due is not None:
            self._world.at(due, self._fire, self._version)

    def _fire(self, version: int) -> None:
        if version == self._version:
            self._due = None
            self._call()


class Future:
    """A value that coroutines and callbacks wait for; set once."""

    __slots__ = ("_callbacks", "is_set", "value")

    def __init__(self) -> None:
        self.is_set = False
        self.value: Any = None
        self._callbacks: list[Callable[[Any], None]] = []

    def set(self, value: Any = None) -> None:
        """Later calls are ignored."""
        if self.is_set:
            return
        self.is_set = True
        self.value = value
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(value)

    def then(self, callback: Callable[[Any], None]) -> None:
        """Call with the value, now or later."""
        if self.is_set:
            callback(self.value)
        else:
            self._callbacks.append(callback)


class World:
    """See the module head."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now = 0.0
        self.lines: list[str] = []
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._age = 0
        self._at_once = 0
        self._names: dict[bytes, str] = {}

    # ---- events

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at the given time."""
        self._age += 1
        heapq.heappush(self._heap, (when, self._age, call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call after the given time."""
        self.at(self.now + seconds, call, *arguments)

    def step(self) -> bool:
        """The next event; False when there is none."""
        if not self._heap:
            return False
        when, _, call, arguments = heapq.heappop(self._heap)
        self.events += 1
        self._at_once = self._at_once + 1 if when == self.now else 0
        if self._at_once > AT_ONCE_LIMIT:
            raise Violation(f"time stands still: {AT_ONCE_LIMIT} events in one instant, the last is {call}")
        self.now = when
        call(*arguments)
        return True

    def run(self, until: Callable[[], bool], deadline: float) -> bool:
        """Events until the condition holds; False if it does not by `deadline`."""
        while not until():
            if not self._heap or self._heap[0][0] > deadline:
                self.now = deadline
                return until()
            self.step()
        return True

    # ---- randomness

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def id(self, size: int, name: str) -> bytes:
        """A fresh id; the trace calls it `name`."""
        fresh = self.rng.randbytes(size)
        self._names[fresh] = name
        return fresh

    # ---- the trace

    def call_it(self, key: bytes, name: str) -> bytes:
        """From now on the trace calls `key` by this name."""
        self._names[key] = name
        return key

    def name(self, key: bytes) -> str:
        """How the trace calls an id. Objects are named after their task."""
        name = self._names.get(key)
        if name is not None:
            return name
        if len(key) == 28:
            task = self._names.get(key[:24])
            if task is not None:
                index = int.from_bytes(key[24:], "little")
                return f"{task}#{index}" if index < 1 << 31 else f"{task}#put{index & 0x7FFFFFFF}"
        return key.hex()[:8] or "-"

    def note(self, who: str, text: str) -> None:
        """One line of the trace."""
        self.lines.append(f"{self.now:10.5f} {who:8} {text}")

    def trace_hash(self) -> str:
        """What two runs of one seed have in common."""
        return hashlib.blake2b("\n".join(self.lines).encode(), digest_size=12).hexdigest()

    # ---- coroutines

    def spawn(self, coroutine: Coroutine, alive: Callable[[], bool]) -> Future:
        """Run a coroutine; it is abandoned, at the next wait, once `alive` says no."""
        done = Future()
        self._advance(coroutine, alive, done, None)
        return done

    def _advance(self, coroutine: Coroutine, alive: Callable[[], bool], done: Future, value: Any) -> None:
        if not alive():
            return
        try:
            wanted = coroutine.send(value)
        except StopIteration as stop:
            done.set(stop.value)
            return
        if isinstance(wanted, Future):  # never resumed inside the call that sets it
            wanted.then(lambda result: self.after(0.0, self._advance, coroutine, alive, done, result))
        else:
            self.after(wanted, self._advance, coroutine, alive, done, None)
