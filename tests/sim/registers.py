"""Whether the key-value store behaves like one register per key, whatever happens to the head.

Every write has a value of its own. A read may give what a write wrote that had begun when the
read ended, unless a later write was over before the read began: *later* means that it began after
the first one was over. A write that was never acknowledged may have happened, or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NEVER = float("inf")


@dataclass(slots=True)
class Write:
    """One write, of None for a deletion; `end` is `NEVER` until it is acknowledged."""

    value: Any
    start: float
    end: float = NEVER


@dataclass(slots=True)
class Registers:
    """All keys, absent in the beginning."""

    writes: dict[bytes, list[Write]] = field(default_factory=dict)
    reads: int = 0

    def writing(self, now: float, key: bytes, value: Any) -> Write:
        """A write begins; the caller sets its `end`."""
        write = Write(value, now)
        self.of(key).append(write)
        return write

    def of(self, key: bytes) -> list[Write]:
        """The writes of a key so far."""
        return self.writes.setdefault(key, [Write(None, -1.0, -1.0)])

    def read(self, key: bytes, value: Any, start: float, end: float) -> str:
        """What is wrong with a read, "" if nothing is."""
        self.reads += 1
        writes = self.of(key)
        candidates = [write for write in writes if write.value == value and write.start <= end]
        if not candidates:
            return f"key {key!r} reads {value!r}, which nobody had written"
        for one in candidates:
            if not any(later.start > one.end and later.end < start for later in writes):
                return ""
        return f"key {key!r} reads {value!r} at {start:.5f}, which had been overwritten by then"
