"""Connections to workers of other nodes: made by the raylets, handed over as descriptors.

``u32 little-endian length | batch`` both ways, inside TLS where the cluster has it; the batches are
those of a `core.circuit.Circuit`, so a connection that breaks loses nothing. Any thread writes, under
the worker's lock, and never blocks: what the kernel does not take waits (the circuit's window bounds
it) for the I/O thread. That thread reads, beside the raylet's socket. An encrypted connection is not
used before its handshake is done; meanwhile the raylets relay.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from miniray.core.directory import Address

if TYPE_CHECKING:
    from miniray.runtime.encryption import Encryption, Identities
    from miniray.runtime.worker import CoreWorker

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
SHAKING_AT_ONCE = 256
MAX_BATCH = 512 << 20
_LENGTH = struct.Struct("<I")


class WorkerConnection:
    """One of them; with an `encryption` what passes is sealed by it."""

    __slots__ = ("_encryption", "_poll", "_received", "_sock", "_unsent", "address", "number")

    def __init__(self, address: Address, fd: int, poll: Any, encryption: Encryption | None = None) -> None:
        self.address = address
        self.number = fd
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._poll = poll
        self._encryption = encryption
        self._received = bytearray()
        self._unsent: deque[memoryview] = deque()

    # ---- under the worker's lock

    @property
    def is_usable(self) -> bool:
        """Batches may be written: the other end is who it should be."""
        return self._encryption is None or self._encryption.is_done

    def write(self, batch: bytes, quiet: bool = False) -> None:
        """Send a batch, or as much as the kernel takes now; a quiet one it keeps until `push`."""
        length = _LENGTH.pack(len(batch))
        if self._encryption is None:
            self._send((length, batch), len(batch) + 4, quiet)
        else:
            self._encryption.seal(length + batch)
            self.send_sealed(quiet)

    def send_sealed(self, quiet: bool = False) -> None:
        """Send what TLS has to say, its handshake too."""
        if self._encryption is not None:
            data = self._encryption.take()
            if data:
                self._send((data,), len(data), quiet)

    def _send(self, parts: tuple[bytes, ...], size: int, quiet: bool) -> None:
        if self._unsent:
            self._unsent.append(memoryview(b"".join(parts)))
            return
        try:
            sent = self._sock.sendmsg(parts, (), socket.MSG_MORE if quiet else 0)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # its end is read, too
        if sent < size:
            self._unsent.append(memoryview(b"".join(parts))[sent:])
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
        if self._encryption is not None:
            try:
                data = self._encryption.feed(data)
            except Exception as error:
                log.warning("%s", error)
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
        self._identities: Identities | None = None
        self._shaking: list[WorkerConnection] = []
        """Those whose handshake is not done, oldest first."""

    def add(self, address: Address, fd: int) -> WorkerConnection:
        """Take over a descriptor; its frames are read from now on."""
        return self._watch(WorkerConnection(address, fd, self._poller()))

    def add_encrypted(self, address: Address, fd: int, dialled: bool) -> None:
        """The same for one on which TLS begins; `Peers.connected_to` hears of it when that is done."""
        from miniray.runtime.encryption import Encryption, Identities

        if self._identities is None:
            self._identities = Identities(self._worker.session_dir)
        identity = self._identities.present()
        if identity is None:
            os.close(fd)
            return
        try:
            encryption = Encryption(identity, address[0], dialled)
        except (OSError, ValueError) as error:
            log.warning("no TLS to a worker of another node: %s", error)
            os.close(fd)
            return
        connection = self._watch(WorkerConnection(address, fd, self._poller(), encryption))
        self._shaking.append(connection)
        if len(self._shaking) > SHAKING_AT_ONCE:
            self._shaking.pop(0).close()
        connection.send_sealed()

    def expects(self, address: Address) -> bool:
        """Frames may come from there as soon as a handshake is done."""
        return any(connection.address == address for connection in self._shaking)

    def _poller(self) -> Any:
        if self._poll is None:
            self._poll = select.epoll()
            self._poll.register(self._worker.raylet.number, select.EPOLLIN)
        return self._poll

    def _watch(self, connection: WorkerConnection) -> WorkerConnection:
        self._by_number[connection.number] = connection
        self._poll.register(connection.number, select.EPOLLIN)
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
            if connection in self._shaking:
                self._shaken(connection, ended)
            if batches:
                worker.peers.carried(connection.address, batches)
            if ended:
                self._poll.unregister(connection.number)
                del self._by_number[connection.number]
                connection.release()
                worker.peers.disconnected(connection)
            worker.drain()
        if worker.callbacks:
            worker.run_callbacks_apart()

    def _shaken(self, connection: WorkerConnection, ended: bool) -> None:
        """Its handshake has gone on."""
        connection.send_sealed()
        if connection.is_usable or ended:
            self._shaking.remove(connection)
        if connection.is_usable:
            self._worker.peers.connected_to(connection)

    def close(self) -> None:
        """The I/O thread has ended: let go of all of them."""
        for connection in self._by_number.values():
            connection.release()
        self._by_number.clear()
        if self._poll is not None:
            self._poll.close()
            self._poll = None
