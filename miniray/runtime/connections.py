"""Connections to workers of other nodes: made by the raylets, handed over as descriptors.

``u32 little-endian length | batch`` both ways; the batches are those of a `core.circuit.Circuit`, so
a connection that breaks loses nothing. Any thread writes, under the worker's lock, and never
blocks: what the kernel does not take waits (the circuit's window bounds it) for the I/O thread.
That thread reads, beside the raylet's socket.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from miniray.core.directory import Address

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

READ_BYTES = 256 * 1024
MAX_BATCH = 512 << 20
_LENGTH = struct.Struct("<I")


class WorkerConnection:
    """One of them."""

    __slots__ = ("_poll", "_received", "_sock", "_unsent", "address", "number")

    def __init__(self, address: Address, fd: int, poll: Any) -> None:
        self.address = address
        self.number = fd
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._poll = poll
        self._received = bytearray()
        self._unsent: deque[memoryview] = deque()

    # ---- under the worker's lock

    def write(self, batch: bytes, quiet: bool = False) -> None:
        """Send a batch, or as much as the kernel takes now; a quiet one it keeps until `push`."""
        length = _LENGTH.pack(len(batch))
        if self._unsent:
            self._unsent.append(memoryview(length + batch))
            return
        try:
            sent = self._sock.sendmsg((length, batch), (), socket.MSG_MORE if quiet else 0)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # its end is read, too
        if sent < len(batch) + 4:
            self._unsent.append(memoryview(length + batch)[sent:])
            self._poll.modify(self.number, select.EPOLLIN | select.EPOLLOUT)

    def push(self) -> None:
        """The kernel sends what it kept."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def writable(self) -> None:
        """The kernel has room again."""
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                break
            if sent < len(self._unsent[0]):
                self._unsent[0] = self._unsent[0][sent:]
            else:
                self._unsent.popleft()
        self._poll.modify(self.number, select.EPOLLIN)

    def close(self) -> None:
        """Nothing more in either direction; the I/O thread reads the end and lets go of it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # ---- on the I/O thread

    def read(self) -> tuple[list[bytes], bool]:
        """The batches that are complete, and whether the connection has ended."""
        received = self._received
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return [], False
        except OSError:
            data = b""
        if not data:
            return [], True
        if received:
            received += data
            data = received  # type: ignore[assignment]
        batches: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > MAX_BATCH:
                return batches, True
            if end - at - 4 < length:
                break
            batches.append(bytes(data[at + 4 : at + 4 + length]))
            at += 4 + length
        if data is received:
            del received[:at]
        elif at < end:
            received += data[at:]
        return batches, False

    def release(self) -> None:
        """Give the descriptor back."""
        self._sock.close()


class Connections:
    """All of one worker's; read by its I/O thread in `wait_readable`."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._poll: Any = None
        self._by_number: dict[int, WorkerConnection] = {}

    def add(self, address: Address, fd: int) -> WorkerConnection:
        """Take over a descriptor; its frames are read from now on."""
        if self._poll is None:
            self._poll = select.epoll()
            self._poll.register(self._worker.raylet.number, select.EPOLLIN)
        connection = WorkerConnection(address, fd, self._poll)
        self._by_number[fd] = connection
        self._poll.register(fd, select.EPOLLIN)
        return connection

    def wait_readable(self) -> None:
        """Read connections until there is something from the raylet; at once if there are none."""
        heard = False
        while self._by_number and not heard:
            for number, events in self._poll.poll():
                connection = self._by_number.get(number)
                if connection is None:
                    heard = True
                    continue
                if events & select.EPOLLOUT:
                    with self._worker.lock:
                        connection.writable()
                if events & ~select.EPOLLOUT:
                    self._read(connection)

    def _read(self, connection: WorkerConnection) -> None:
        batches, ended = connection.read()
        worker = self._worker
        worker.pump.by_rings = False
        with worker.lock:
            if batches:
                worker.peers.carried(connection.address, batches)
            if ended:
                self._poll.unregister(connection.number)
                del self._by_number[connection.number]
                connection.release()
                worker.peers.disconnected(connection)
            worker.drain()
        if worker.callbacks:
            worker.run_callbacks()

    def close(self) -> None:
        """The I/O thread has ended: let go of all of them."""
        for connection in self._by_number.values():
            connection.release()
        self._by_number.clear()
        if self._poll is not None:
            self._poll.close()
            self._poll = None
