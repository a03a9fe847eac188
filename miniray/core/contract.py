"""The contract between the state machines of `core` and the shells of `runtime`.

A machine is a plain object. A *stimulus* is a method named in the past tense; `now` (seconds,
monotonic) is an argument wherever time matters. A machine never acts: it appends *effects* to
`self.out`, and the shell drains them once per turn, in order::

    stimulus ──▶ machine ──▶ out: [Persist…, Send…, …] ──▶ shell: persist, then send

Rules every machine keeps:
- no I/O, clock, thread, lock, environment or randomness inside (a seeded generator is handed in);
- time is `next_deadline()` and `tick(now)`;
- dicts, not sets, wherever iteration order can reach an effect: same input, same output;
- a bad peer is answered, a bad caller is an `AssertionError`;
- `check()` asserts every invariant, `dump()` shows the state, `story(key)` the bounded history
  of one task, actor, object or lease.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

STORY_LENGTH = 32
"""Lines of history kept per key."""

STORY_KEYS = 4096
"""Keys whose history is kept; the oldest are dropped first."""


@dataclass(slots=True)
class Persist:
    """Write one row before any later effect of the same turn is carried out.

    `value` None deletes the row. A shell may group all rows of a turn into one transaction.
    """

    table: str
    key: bytes
    value: bytes | None


@dataclass(slots=True)
class Send:
    """Deliver `message` (a protobuf message) to `peer`; the link keeps order per peer.

    `peer` is a node id, a worker id or `HEAD`, depending on the machine; the machine's module
    head says which.
    """

    peer: bytes
    message: Any


HEAD = b"head"
"""The peer name of the GCS in a raylet's effects."""


class Machine(Protocol):
    """What every machine offers to its shell, to tests and to the simulator."""

    out: list[Any]

    def next_deadline(self) -> float | None:
        """When `tick` is due (seconds, the clock of `now`), or None."""

    def tick(self, now: float) -> None:
        """Time has reached `now`."""

    def check(self) -> None:
        """Assert every invariant; raises AssertionError naming the broken one."""

    def dump(self) -> dict[str, Any]:
        """The state as plain values, for people."""

    def story(self, key: bytes) -> list[str]:
        """What happened to one task, actor, object or lease, oldest first."""


class Stories:
    """Bounded histories, one per key: the memory behind `story()`."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[bytes, deque[str]] = {}

    def note(self, now: float, key: bytes, text: str) -> None:
        """Append one line to the history of `key`."""
        lines = self._lines.get(key)
        if lines is None:
            if len(self._lines) >= STORY_KEYS:
                del self._lines[next(iter(self._lines))]
            lines = self._lines[key] = deque(maxlen=STORY_LENGTH)
        lines.append(f"{now:.3f} {text}")

    def of(self, key: bytes) -> list[str]:
        """The history of `key`, oldest first; empty when nothing is known."""
        return list(self._lines.get(key, ()))
