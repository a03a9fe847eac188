"""A plain or a TLS connection on an event loop: read, write, begin TLS, and end it again.

::

    sendall ─▶ SSL ─▶ records in memory ─▶ the socket      `SEAL_BYTES` at a time
    the socket ─▶ records in memory ─▶ SSL ─▶ recv_into    what has come, `OPEN_BYTES` at a time

Records (16 KB) are made and opened in memory, so that many of them cost one system call and fill whole
segments; an `ssl.SSLSocket` makes one to three calls for each. The connection is in non-blocking mode
here; a thread may use it in blocking mode in between (`sendall`, `recv_into`).

Ending TLS gives the bare connection back, for two workers that begin their own on it: both sides say
so (close_notify) and nothing else may be under way. On the loop no byte is read beyond the record that
is waited for, so what follows is left for them. Deadlines are the caller's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

SEAL_BYTES = 256 << 10
OPEN_BYTES = 256 << 10
RECORD_BYTES = 16 << 10
RECORD_HEADER_BYTES = 5

_of_thread = threading.local()


class Ended(ConnectionError):
    """The other end has closed the connection, with or without ending TLS."""


class TlsSocket:
    """A TLS connection over `sock`, which it owns; as the client of the server `name`, or the server."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl: ssl.SSLObject | None = context.wrap_bio(
            self._in, self._out, server_side=name is None, server_hostname=name)
        self.fileno = sock.fileno
        self.close = sock.close
        self.detach = sock.detach
        self.settimeout = sock.settimeout
        self.setblocking = sock.setblocking
        self.setsockopt = sock.setsockopt
        self.shutdown = sock.shutdown

    # ---- on the loop ----

    async def handshake(self, loop: asyncio.AbstractEventLoop) -> None:
        """OSError when the other end is not who it should be, or gone."""
        await self._when_possible(loop, self._session.do_handshake)

    async def unwrap(self, loop: asyncio.AbstractEventLoop) -> None:
        """TLS is over: what is sent and received from now on is bare."""
        if self._ssl is not None:
            await self._when_possible(loop, self._ssl.unwrap)
            if self._in.pending:
                raise ConnectionError("more came after the end of TLS")
            self._ssl = None

    async def receive(self, loop: asyncio.AbstractEventLoop, most: int) -> bytes:
        """What is there, up to `most` bytes; b"" at the end. OSError."""
        if self._ssl is None:
            return await loop.sock_recv(self._sock, most)
        try:
            return await self._when_possible(loop, lambda: self._session.read(most))
        except Ended:
            return b""

    async def send_all(self, loop: asyncio.AbstractEventLoop, data: bytes) -> None:
        """All of it. OSError."""
        if self._ssl is not None:
            self._ssl.write(data)
            data = self._out.read()
        await loop.sock_sendall(self._sock, data)

    async def _when_possible(
        self, loop: asyncio.AbstractEventLoop, operation: Callable[[], Result]
    ) -> Result:
        while True:
            try:
                return operation()
            except ssl.SSLWantReadError:
                pass
            finally:
                if self._out.pending:  # an alert, too, says why this end gives up
                    await loop.sock_sendall(self._sock, self._out.read())
            await self._read_record(loop)

    async def _read_record(self, loop: asyncio.AbstractEventLoop) -> None:
        header = await _exactly(loop, self._sock, RECORD_HEADER_BYTES)
        self._in.write(header + await _exactly(loop, self._sock, int.from_bytes(header[3:], "big")))

    # ---- in a thread ----

    @property
    def _session(self) -> ssl.SSLObject:
        assert self._ssl is not None, "TLS has ended"
        return self._ssl

    def sendall(self, data: memoryview | bytes) -> None:
        """All of it. OSError; the time limit of the socket is for `SEAL_BYTES`."""
        view, session = memoryview(data), self._session
        for at in range(0, len(view), SEAL_BYTES):
            session.write(view[at : at + SEAL_BYTES])
            self._sock.sendall(self._out.read())

    def recv_into(self, view: memoryview) -> int:
        """What has come, up to the length of `view`, but at least a byte; 0 at the end. OSError."""
        read, come, size = self._session.read, 0, len(view)
        while come < size:
            try:
                count: Any = read(RECORD_BYTES, view[come : come + RECORD_BYTES])
                come += count
                if not count:
                    break
            except ssl.SSLWantReadError:
                if come or not self._feed():
                    break
        return come

    def _feed(self) -> int:
        records: memoryview | None = getattr(_of_thread, "records", None)
        if records is None:
            records = _of_thread.records = memoryview(bytearray(OPEN_BYTES))
        count = self._sock.recv_into(records)
        self._in.write(records[:count])
        return count


Connection = socket.socket | TlsSocket
"""What the functions below take."""


async def begin(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, context: ssl.SSLContext, name: str | None
) -> TlsSocket:
    """Handshake, as the client of the server `name`, or (None) as the server. OSError; owns `sock`."""
    wrapped = TlsSocket(sock, context, name)
    try:
        await wrapped.handshake(loop)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


async def end(loop: asyncio.AbstractEventLoop, sock: Connection) -> None:
    """The connection is bare from now on, at both ends. OSError."""
    if isinstance(sock, TlsSocket):
        await sock.unwrap(loop)


async def receive(loop: asyncio.AbstractEventLoop, sock: Connection, most: int) -> bytes:
    """What is there, up to `most` bytes; b"" at the end. OSError."""
    if isinstance(sock, TlsSocket):
        return await sock.receive(loop, most)
    return await loop.sock_recv(sock, most)


async def send_all(loop: asyncio.AbstractEventLoop, sock: Connection, data: bytes) -> None:
    """All of it. OSError."""
    if isinstance(sock, TlsSocket):
        await sock.send_all(loop, data)
    else:
        await loop.sock_sendall(sock, data)


def peer_name(session: ssl.SSLObject) -> str:
    """The common name in the peer's certificate, which was verified; "" when it showed none."""
    certificate: dict[str, Any] | None = session.getpeercert()
    for relative in (certificate or {}).get("subject", ()):
        for key, value in relative:
            if key == "commonName":
                return str(value)
    return ""


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes. OSError."""
    data = b""
    while len(data) < count:
        piece = await loop.sock_recv(sock, count - len(data))
        if not piece:
            raise Ended("the other end has closed the connection")
        data += piece
    return data
