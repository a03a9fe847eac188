"""Channels: ordered frames from this worker to another, without ever blocking the sender.

The port has two implementations: a shared-memory ring to a worker of the same node and a relay
through the raylets to any other. Frames that do not fit into the ring now wait in the channel's
own backlog; `flush` is called when there is room again. Frames larger than half a ring travel in
fragments that the receiver's native side joins.

Called under the worker's lock. A channel whose peer died drops what it is given: the machine
learns of the death from the raylet.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Protocol

from miniray._proto.worker_pb2 import RelayBatch, ToRaylet
from miniray.core.directory import Address

RING_BYTES = 64 * 1024
"""Capacity of one direction of a ring."""

_LENGTH = struct.Struct("<I")


class Channel(Protocol):
    """What a worker needs of its connection to another."""

    def send(self, frame: bytes, quiet: bool = False) -> None:
        """Queue one frame, in order. `quiet`: the peer need not wake for it yet."""

    def flush(self) -> None:
        """There may be room again, or the turn is over: move what waits, wake the peer."""

    @property
    def backlog(self) -> int:
        """Frames that wait in this process."""

    def close(self) -> None:
        """No more frames in either direction."""


class RingChannel:
    """A ring in shared memory."""

    __slots__ = ("native", "_waiting", "_limit")

    def __init__(self, native: Any) -> None:
        self.native = native
        self._waiting: deque[tuple[bytes | memoryview, bool]] = deque()
        self._limit = RING_BYTES // 4

    def send(self, frame: bytes, quiet: bool = False) -> None:
        """Write the frame, or queue it behind those that wait."""
        waiting = self._waiting
        if len(frame) <= self._limit:
            if waiting:
                waiting.append((frame, False))
                return
            try:
                if not self.native.send(frame, False, quiet):
                    waiting.append((frame, False))
            except BrokenPipeError:
                pass
            return
        view = memoryview(frame)
        for at in range(0, len(frame), self._limit):
            piece = view[at : at + self._limit]
            waiting.append((piece, at + self._limit < len(frame)))
        self.flush()

    def flush(self) -> None:
        """Write what waits as far as there is room."""
        waiting = self._waiting
        try:
            while waiting:
                frame, more = waiting[0]
                if not self.native.send(frame, more, False):
                    return
                waiting.popleft()
        except BrokenPipeError:
            waiting.clear()
        self.native.ring()

    @property
    def backlog(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        self._waiting.clear()
        self.native.close()


class RelayChannel:
    """Frames that both raylets pass on; gathered into one batch per turn."""

    __slots__ = ("_send", "_source", "_destination", "_parts", "_bytes", "closed", "_turn")

    BATCH_BYTES = 256 * 1024

    def __init__(self, send: Any, turn: list[Any], source: Address, destination: Address) -> None:
        self._send = send
        self._turn = turn  # channels to flush at the end of the worker's turn
        self._source = source
        self._destination = destination
        self._parts: list[bytes] = []
        self._bytes = 0
        self.closed = False

    def send(self, frame: bytes, quiet: bool = False) -> None:
        """Add the frame to the turn's batch."""
        if self.closed:
            return
        if not self._parts:
            self._turn.append(self)
        self._parts.append(_LENGTH.pack(len(frame)))
        self._parts.append(frame)
        self._bytes += len(frame)
        if self._bytes >= self.BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand the batch to the raylet."""
        if not self._parts or self.closed:
            return
        batch = RelayBatch(frames=b"".join(self._parts))
        batch.source.node_id, batch.source.worker_id = self._source
        batch.destination.node_id, batch.destination.worker_id = self._destination
        self._parts = []
        self._bytes = 0
        self._send(ToRaylet(relay=batch))

    @property
    def backlog(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True
        self._parts = []


def split_batch(frames: bytes) -> list[bytes]:
    """The frames of a relayed batch, in order."""
    out = []
    at = 0
    while at < len(frames):
        (length,) = _LENGTH.unpack_from(frames, at)
        at += 4
        out.append(frames[at : at + length])
        at += length
    return out
