"""Channels: ordered frames from this worker to another, without ever blocking the sender.

The port has two implementations: a shared-memory ring to a worker of the same node and a circuit
to any other. Frames that there is no room for now wait in the channel's own backlog; `flush` is
called when there is room again. Frames larger than half a ring travel in fragments that the
receiver's native side joins.

Called under the worker's lock. A channel whose peer died drops what it is given: the machine
learns of the death from the raylet.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from miniray.core.circuit import HEADER, Circuit

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


class Connection(Protocol):
    """A connection of two workers; see `runtime.connections`."""

    def write(self, batch: bytes, quiet: bool = False) -> None:
        """Send a batch, in order; a connection that breaks on it is found out by its reader.

        `quiet`: it outlives this process from now on, but the peer need not wake for it yet.
        """

    def push(self) -> None:
        """Wake the peer for what was sent quietly."""

    def close(self) -> None:
        """Nothing more in either direction."""


_lives = itertools.count(1)
"""Numbers of this process's circuits."""


class CircuitChannel:
    """Frames to a worker of another node: relayed at first, then over a connection of the two.

    The batches are those of a `core.circuit.Circuit`, so a connection may come, break and come
    again. `relay(batch)` hands one to the raylet, `connect()` asks it for a connection.
    """

    __slots__ = (
        "_bytes", "_connect", "_connected_at", "_connections", "_held", "_in_turn", "_parts", "_relay",
        "_turn", "_untold", "_waiting", "_written_at", "circuit", "closed", "connection",
    )  # fmt: skip

    BATCH_BYTES = 256 * 1024
    GATHER_BYTES = 16 * 1024
    GATHER_S = 0.0001
    """Calls made so soon after a batch has left wait for more to leave with them."""
    CONNECT_AGAIN_S = 5.0

    def __init__(
        self, relay: Callable[[bytes], None], connect: Callable[[], None], turn: list[Any], now: float
    ) -> None:
        """`now`: the other end has spoken first, and has asked for a connection; else minus infinity."""
        self._relay = relay
        self._connect = connect
        self._connected_at = now
        self._turn = turn  # channels to flush at the end of the worker's turn
        self._parts: list[bytes] = []
        self._bytes = 0
        self._waiting: deque[list[bytes]] = deque()
        self._in_turn = False
        self._held = False
        self._untold = False
        self._written_at = 0.0
        self._connections: list[Connection] = []
        self.circuit = Circuit(next(_lives))
        self.connection: Connection | None = None
        self.closed = False

    # ---- frames out

    def send(self, frame: bytes, quiet: bool = False) -> None:
        """Add the frame to the turn's batch; a quiet one leaves at once, so that it outlives this process."""
        if self.closed:
            return
        self._parts.append(_LENGTH.pack(len(frame)))
        self._parts.append(frame)
        self._bytes += len(frame)
        if quiet and self.connection is not None:
            self._write(quiet=True)
            return
        if not self._in_turn:
            self._in_turn = True
            self._turn.append(self)
        if self._bytes >= self.BATCH_BYTES:
            self._write()

    def flush(self) -> None:
        """Send what was gathered, and wake the peer."""
        self._in_turn = False
        if self._parts or self._waiting:
            self._write()
        if self._untold and self.connection is not None:
            self._untold = False
            self.connection.push()

    def gathers(self) -> bool:
        """A burst of calls is being made: let it grow before it leaves (it stays in the turn)."""
        return self._bytes < self.GATHER_BYTES and time.monotonic() - self._written_at < self.GATHER_S

    def _write(self, quiet: bool = False) -> None:
        """Batches as far as the window and the raylet allow."""
        if self._parts:
            self._waiting.append(self._parts)
            self._parts = []
            self._bytes = 0
        if not self._waiting or self.closed:
            return
        while self._waiting and not self.circuit.is_full and (self.connection is not None or not self._held):
            self._carry(self.circuit.pack(self._waiting.popleft()), quiet)
        self._untold = quiet
        self._written_at = now = time.monotonic()
        if self.connection is None and now - self._connected_at >= self.CONNECT_AGAIN_S:
            self._connected_at = now
            self._connect()

    def _carry(self, batch: bytes, quiet: bool = False) -> None:
        if self.connection is not None:
            self.connection.write(batch, quiet)
        else:
            self._relay(batch)

    def hold(self, held: bool) -> None:
        """The raylets have, or no longer have, too much for this worker already."""
        self._held = held
        self._write()

    @property
    def backlog(self) -> int:
        return len(self._waiting) + bool(self._parts)

    # ---- carriers

    def connected(self, connection: Connection) -> None:
        """A connection is there: it begins with what may not have come over."""
        self._connections.append(connection)
        if not self.closed:
            self.connection = connection
            self._carry_again()

    def disconnected(self, connection: Connection) -> None:
        """It has ended: back to another one, or the relay."""
        if connection in self._connections:
            self._connections.remove(connection)
        if connection is self.connection and not self.closed:
            self.connection = self._connections[-1] if self._connections else None
            self._carry_again()

    def _carry_again(self) -> None:
        for batch in self.circuit.unacknowledged():
            self._carry(batch)
        self._write()

    @property
    def is_connected(self) -> bool:
        """Frames may still come over a connection."""
        return bool(self._connections)

    def close(self) -> None:
        self.closed = True
        self._parts = []
        self._waiting.clear()
        for connection in self._connections:
            connection.close()

    # ---- frames in

    def unpack(self, batch: bytes, frames: list[bytes]) -> None:
        """Append the frames of a batch that came by either carrier. Raises `core.circuit.Forgotten`."""
        if self.circuit.unpack(batch):
            split_batch(batch, frames)
        if self._waiting:
            self._write()  # what it acknowledges has made room

    def acknowledge(self) -> None:
        """Its frames are handled, and nothing went back that could have carried the ack."""
        if self.circuit.owes_ack and not self.closed:
            self._carry(self.circuit.ack())


def split_batch(batch: bytes, frames: list[bytes]) -> None:
    """Append the frames of a circuit's batch."""
    at, end = HEADER.size, len(batch)
    while at < end:
        (length,) = _LENGTH.unpack_from(batch, at)
        at += 4
        frames.append(batch[at : at + length])
        at += length
