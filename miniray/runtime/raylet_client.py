"""A worker's or driver's connection to its raylet: a unix socket with protobuf messages.

``u32 little-endian length | message``; file descriptors come with the message that announces
them. One thread (the worker's I/O thread) reads; any thread sends. The socket's end means the
raylet's end: the worker is told once and exits, a driver gets LocalRayletDiedError.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

from miniray import config
from miniray._proto.worker_pb2 import Register, Registered, ToRaylet, ToWorker
from miniray.runtime import agent, versions
from miniray.runtime.interrupts import critical

MAX_MESSAGE = 512 << 20
LATE_S = 5.0
"""A raylet that takes longer to answer a new driver is spoken of."""
_LENGTH = struct.Struct("<I")


class RayletClient:
    """The socket, its writer and its reader."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            self._sock.close()
            raise ConnectionError(f"no raylet listens at {path}: it has ended") from None
        _demand_own(self._sock, path)
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self.closed = False
        self.on_closed: Callable[[], None] = lambda: None
        self.wait_readable: Callable[[], None] = lambda: None
        """Called before `receive` blocks; returns when there is something to read, or blocking is right."""

    def register(self, register: Register) -> tuple[Registered, int]:
        """Introduce this process; returns the raylet's answer and the store's descriptor (-1: refused)."""
        register.pid = os.getpid()
        ours = versions.ours(versions.CLIENTS)
        register.protocol_version, register.python_version = ours.protocol, ours.python
        self.send(ToRaylet(register=register))
        self._say_when_late(register.is_driver)
        message = self.receive()
        if message is None:
            raise ConnectionError(
                "the raylet closed the connection during registration: it has ended (as it does when its "
                "head stays away), or has too many connections that have not registered"
            )
        return message.registered, self.take_fd()

    def _say_when_late(self, is_driver: bool) -> None:
        """A driver is a job that the head must know of: without a head the raylet's answer waits."""
        answer = select.poll()
        answer.register(self._sock, select.POLLIN)
        if is_driver and not answer.poll(LATE_S * 1000):
            import logging

            logging.getLogger("miniray").warning(
                "The raylet has not answered for %.0f s: it, or the head that it waits for, is away or "
                "overloaded. It ends when it cannot reach its head for %g s.",
                LATE_S, config.get("head_reconnect_s"),
            )  # fmt: skip

    @critical
    def send(self, message: ToRaylet, fd: int | None = None) -> None:
        """Send one message, with a descriptor if given. Never raises for a dead raylet."""
        body = message.SerializeToString()
        data = _LENGTH.pack(len(body)) + body
        with self._lock:
            try:
                if fd is not None:
                    sent = socket.send_fds(self._sock, [data], [fd])
                    data = data[sent:]
                if data:
                    self._sock.sendall(data)
            except OSError:
                self.closed = True

    def receive(self) -> ToWorker | None:
        """The next message; None at the end of the connection."""
        buffer = self._buffer
        while True:
            if len(buffer) >= 4:
                (length,) = _LENGTH.unpack_from(buffer)
                if length > MAX_MESSAGE:
                    self._end()
                    return None
                if len(buffer) >= 4 + length:
                    message = ToWorker.FromString(bytes(buffer[4 : 4 + length]))
                    del buffer[: 4 + length]
                    return message
            self.wait_readable()
            try:
                data, fds, _flags, _address = socket.recv_fds(
                    self._sock, 1 << 18, 16, socket.MSG_CMSG_CLOEXEC
                )
            except InterruptedError:
                continue
            except OSError:
                self._end()
                return None
            self._fds.extend(fds)
            if not data:
                self._end()
                return None
            buffer += data

    @property
    def number(self) -> int:
        """The descriptor of the connection."""
        return self._sock.fileno()

    def take_fd(self) -> int:
        """The descriptor that came with the last message that announced one; -1 if there is none."""
        return self._fds.popleft() if self._fds else -1

    def _end(self) -> None:
        self.closed = True

    def close(self) -> None:
        """End the connection; a blocked `receive` returns."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def _demand_own(sock: socket.socket, path: str) -> None:
    """ConnectionError unless this user, or root, listens: it gets our token, and what it sends is run."""
    _pid, uid = agent.peer_credentials(sock)
    if uid not in (os.getuid(), 0):
        sock.close()
        raise ConnectionError(f"at {path} listens another user (uid {uid}): that is no raylet of ours")
