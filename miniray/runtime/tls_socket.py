"""A plain or a TLS socket on an event loop: read, write, begin TLS, and end it again.

The socket is in non-blocking mode here; a thread may use it in blocking mode in between. Ending
TLS gives the bare connection back, for two workers that begin their own on it: both sides say so
(close_notify) and nothing else may be under way. Deadlines are the caller's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def begin(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, context: ssl.SSLContext, name: str | None
) -> ssl.SSLSocket:
    """Handshake, as the client of the server `name`, or (None) as the server. OSError; owns `sock`."""
    wrapped = context.wrap_socket(
        sock, server_side=name is None, server_hostname=name, do_handshake_on_connect=False)
    try:
        await _when_possible(loop, wrapped, wrapped.do_handshake)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


async def end(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """The connection is bare from now on, at both ends. OSError."""
    if isinstance(sock, ssl.SSLSocket):
        await _when_possible(loop, sock, sock.unwrap)


async def receive(loop: asyncio.AbstractEventLoop, sock: socket.socket, most: int) -> bytes:
    """What is there, up to `most` bytes; b"" at the end. OSError."""
    if isinstance(sock, ssl.SSLSocket):
        return await _when_possible(loop, sock, lambda: sock.recv(most))
    return await loop.sock_recv(sock, most)


async def send_all(loop: asyncio.AbstractEventLoop, sock: socket.socket, data: bytes) -> None:
    """All of it. OSError."""
    if not isinstance(sock, ssl.SSLSocket):
        await loop.sock_sendall(sock, data)
        return
    view = memoryview(data)
    while view:
        sent = await _when_possible(loop, sock, lambda: sock.send(view))  # noqa: B023 - awaited at once
        view = view[sent:]


def peer_name(sock: socket.socket | ssl.SSLObject) -> str:
    """The common name in the peer's certificate, which was verified; "" without TLS."""
    certificate: dict[str, Any] | None = None
    if isinstance(sock, (ssl.SSLSocket, ssl.SSLObject)):
        certificate = sock.getpeercert()
    for relative in (certificate or {}).get("subject", ()):
        for key, value in relative:
            if key == "commonName":
                return str(value)
    return ""


async def _when_possible(
    loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket, operation: Callable[[], Result]
) -> Result:
    while True:
        try:
            return operation()
        except ssl.SSLWantReadError:
            await _ready(sock, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(sock, loop.add_writer, loop.remove_writer)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _ready(
    sock: ssl.SSLSocket, add: Callable[..., None], remove: Callable[[int], bool]
) -> None:
    ready = asyncio.get_running_loop().create_future()
    number = sock.fileno()
    add(number, _wake, ready)
    try:
        await ready
    finally:
        remove(number)
