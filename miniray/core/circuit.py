"""A circuit: numbered batches of frames between two workers of different nodes, whatever carries them.

Two carriers can take a batch to the other end: a connection of the two workers' own, which may
break at any time, and the relay through both raylets. A circuit makes one channel of them::

    parts ─▶ pack ─▶ sequence | ack | frames ─▶ either carrier ─▶ unpack ─▶ frames, once, in order
              └─ kept until acknowledged; all of it goes out again on a new carrier

Each carrier keeps order and begins with what is not acknowledged yet, so there are repeated
batches but no gaps. A gap means that one end has forgotten the other: it was told of its death,
which must have been an error. Acks ride on batches that go the other way; an end that has none to
send owes a batch of its own after `ACK_BYTES`.

The window is the credit of this pair of workers: no more than `WINDOW_BYTES` (or one larger batch)
is under way, so that a worker that does not read costs the raylets so much per sender and no more.
Pure; one per end, used under the worker's lock.
"""

from __future__ import annotations

import struct
from collections import deque

WINDOW_BYTES = 1 << 20
ACK_BYTES = 128 << 10

HEADER = struct.Struct("<QQ")
"""Sequence (0: nothing but the ack) and the last sequence received."""

FORGOTTEN = 2**64 - 1
"""Sequence of a batch that says: I do not know you any more."""


class Forgotten(Exception):
    """The two ends do not agree on what was said: one of them has taken the other for dead."""


class Circuit:
    """One end; see the module head."""

    __slots__ = ("_sent", "_unacked", "_unreported", "received", "unacked_bytes")

    def __init__(self) -> None:
        self._sent = 0
        self._unacked: deque[bytes] = deque()
        self._unreported = 0
        self.received = 0
        """Sequence of the last batch that came."""
        self.unacked_bytes = 0

    def pack(self, parts: list[bytes]) -> bytes:
        """The next batch; kept until the other end acknowledges it."""
        self._sent += 1
        batch = b"".join((HEADER.pack(self._sent, self.received), *parts))
        self._unacked.append(batch)
        self.unacked_bytes += len(batch)
        self._unreported = 0
        return batch

    def unpack(self, batch: bytes) -> bool:
        """A batch came: whether its frames (behind the header) are new. Raises Forgotten."""
        sequence, ack = HEADER.unpack_from(batch)
        if sequence == FORGOTTEN or ack > self._sent:
            raise Forgotten
        while ack > self._sent - len(self._unacked):
            self.unacked_bytes -= len(self._unacked.popleft())
        if sequence <= self.received:
            return False
        if sequence != self.received + 1:
            raise Forgotten
        self.received = sequence
        self._unreported += len(batch)
        return True

    def ack(self) -> bytes:
        """A batch with nothing but the ack; it is not kept."""
        self._unreported = 0
        return HEADER.pack(0, self.received)

    @property
    def owes_ack(self) -> bool:
        """So much came without anything going back that the other end may wait for room."""
        return self._unreported >= ACK_BYTES

    @property
    def is_full(self) -> bool:
        """The window is closed: keep parts back until an ack comes."""
        return self.unacked_bytes >= WINDOW_BYTES

    def unacknowledged(self) -> list[bytes]:
        """What a new carrier must begin with."""
        return list(self._unacked)

    def check(self) -> None:
        """Assert every invariant."""
        assert self.unacked_bytes == sum(len(batch) for batch in self._unacked)
        assert len(self._unacked) <= self._sent


def goodbye() -> bytes:
    """What an end that has forgotten the other answers."""
    return HEADER.pack(FORGOTTEN, 0)
