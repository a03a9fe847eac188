"""A circuit: numbered batches of frames between two workers of different nodes, whatever carries them.

Two carriers can take a batch to the other end: a connection of the two workers' own, which may
break at any time, and the relay through both raylets. A circuit makes one channel of them::

    parts ─▶ pack ─▶ sequence | ack | lives | frames ─▶ either carrier ─▶ unpack ─▶ frames, once, in order
              └─ kept until acknowledged; all of it goes out again on a new carrier

Each carrier keeps order and begins with what is not acknowledged yet, so there are repeated
batches but no gaps. A gap means that one end has forgotten the other: it was told of its death,
which must have been an error. A circuit that was begun anew repeats the first numbers, so each end has
a number of its own as well, its life, and names the other's as far as it knows it. Acks ride on batches
that go the other way; an end that has none to send owes a batch of its own after `ACK_BYTES`.

The window is the credit of this pair of workers: no more than `WINDOW_BYTES` (or one larger batch)
is under way, so that a worker that does not read costs the raylets so much per sender and no more.
Pure; one per end, used under the worker's lock.
"""

from __future__ import annotations

import struct
from collections import deque

WINDOW_BYTES = 1 << 20
ACK_BYTES = 128 << 10

HEADER = struct.Struct("<QQII")
"""Sequence (0: nothing but the ack), the last sequence received, the life of the sender, and that of the
receiver as the sender knows it (0: not yet)."""

FORGOTTEN = 2**64 - 1
"""Sequence of a batch that says: I do not know you any more."""


class Forgotten(Exception):
    """The two ends do not agree on what was said: one of them has taken the other for dead."""


class Circuit:
    """One end; see the module head."""

    __slots__ = ("_life", "_other_life", "_sent", "_unacked", "_unreported", "received", "unacked_bytes")

    def __init__(self, life: int) -> None:
        """`life`: 1 to 2**32 - 1, and none that an earlier circuit of this process to that worker had."""
        self._life = life
        self._other_life = 0
        self._sent = 0
        self._unacked: deque[bytes] = deque()
        self._unreported = 0
        self.received = 0
        """Sequence of the last batch that came."""
        self.unacked_bytes = 0

    def pack(self, parts: list[bytes]) -> bytes:
        """The next batch; kept until the other end acknowledges it."""
        self._sent += 1
        header = HEADER.pack(self._sent, self.received, self._life, self._other_life)
        batch = b"".join((header, *parts))
        self._unacked.append(batch)
        self.unacked_bytes += len(batch)
        self._unreported = 0
        return batch

    def unpack(self, batch: bytes) -> bool:
        """A batch came: whether its frames (behind the header) are new. Raises Forgotten."""
        sequence, ack, life, known_life = HEADER.unpack_from(batch)
        if sequence == FORGOTTEN or ack > self._sent or known_life not in (0, self._life):
            raise Forgotten
        if life != self._other_life:
            if self._other_life:
                raise Forgotten
            self._other_life = life
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
        return HEADER.pack(0, self.received, self._life, self._other_life)

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
    return HEADER.pack(FORGOTTEN, 0, 0, 0)
