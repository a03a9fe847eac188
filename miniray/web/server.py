"""The HTTP server of a head: uvicorn's protocol on the head's own event loop.

uvicorn's `Server` is left out: it wakes up ten times a second and takes the process's signals. What it
does not limit is limited here: the bytes of a request's head, the time in which a request must be
complete and its answer be read, and the number of connections. When there are too many, the one
that has waited longest without a request goes first, so whoever only holds connections open does
not keep others out. Handshakes of TLS, each of which takes 300 KB, are counted apart and before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState
except ImportError as error:
    raise RuntimeError(f"the HTTP surface needs `pip install 'miniray[http]'`: {error}") from error

from miniray.runtime import rpc
from miniray.runtime.access import Access
from miniray.runtime.host import holder_of
from miniray.web.api import Ask, application
from miniray.web.guard import Guard

if TYPE_CHECKING:
    import socket
    import ssl

MAX_CONNECTIONS = 256
MAX_HANDSHAKES = 64
BACKLOG = 1024
ACCEPT_AGAIN_S = 0.1
MAX_HEAD_BYTES = 32 << 10
REQUEST_S = 10.0
"""A request must have arrived within this, counted from the connection or its first byte."""
ANSWER_S = 60.0
"""An answer must have been read within this."""
KEEP_ALIVE_S = 15.0
"""The next request of a connection must have begun within this."""


class WebServer:
    """A running HTTP server."""

    def __init__(self, server: asyncio.base_events.Server, state: ServerState,
                 encryption: Encryption | None) -> None:
        self._server = server
        self._encryption = encryption
        self._state = state
        self.port: int = server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection."""
        self._server.close()
        if self._encryption is not None:
            self._encryption.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()


async def serve(
    ask: Ask,
    host: str,
    port: int,
    token: str | Access,
    *,
    origins: Iterable[str] = (),
    tls: ssl.SSLContext | None = None,
) -> WebServer:
    """Serve the head that `ask` asks. PortInUse, RpcError."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # else anybody fills the log with bad requests
    config = uvicorn.Config(
        Guard(application(ask), token, origins), ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, date_header=False, proxy_headers=False
    )  # fmt: skip
    config.load()
    state = ServerState()
    waiting: dict[Connection, None] = {}

    def made() -> Connection:
        return Connection(config, state, waiting)

    try:
        server = await asyncio.get_running_loop().create_server(
            made, host, port, backlog=BACKLOG, start_serving=tls is None)
        encryption = Encryption(server, tls, made) if tls is not None else None
    except OSError as error:
        holder = holder_of(port)
        if holder:
            text = f"HTTP port {port} is taken by {holder}: choose another --http-port"
            raise rpc.PortInUse(text) from None
        raise rpc.RpcError(f"cannot serve HTTP on {host}:{port}: {error}") from None
    return WebServer(server, state, encryption)


class Encryption:
    """Accepts the connections of a server that speaks TLS: asyncio's own counts no handshakes."""

    def __init__(self, server: asyncio.base_events.Server, tls: ssl.SSLContext,
                 made: Callable[[], Connection]) -> None:
        """Instead of `server`, which has not begun to serve, on its sockets."""
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._made = made
        self._shaking: dict[asyncio.Task[None], None] = {}
        """Oldest first."""
        self._listeners = [bound.dup() for bound in server.sockets]
        for listener in self._listeners:
            listener.listen(BACKLOG)
            listener.setblocking(False)
        self._accepting = [self._loop.create_task(self._accept(one)) for one in self._listeners]

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(ACCEPT_AGAIN_S)  # out of descriptors: the backlog keeps the rest
                continue
            task = self._loop.create_task(self._shake(sock))
            self._shaking[task] = None
            task.add_done_callback(lambda done: self._shaking.pop(done, None))
            if len(self._shaking) > MAX_HANDSHAKES:
                _first_of(self._shaking).cancel()
            await asyncio.sleep(0)  # it begins, so that whatever ends it closes its socket

    async def _shake(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._made, sock, ssl=self._tls, ssl_handshake_timeout=REQUEST_S)
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError) as error:
            error.__traceback__ = None  # it holds 256 KB of the connection until garbage is collected

    def close(self) -> None:
        """Accept no more, and let go of those whose handshake is not done."""
        for task in (*self._accepting, *self._shaking):
            task.cancel()
        for listener in self._listeners:
            listener.close()


class Connection(HttpToolsProtocol):
    """One connection with the limits of the module head."""

    def __init__(self, config: Any, state: ServerState, waiting: dict[Connection, None]) -> None:
        """`waiting`: connections without a complete request, longest waiting first."""
        super().__init__(config, state, {})
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """asyncio's: it is open."""
        super().connection_made(transport)
        self._waiting[self] = None
        self._end_after(REQUEST_S)
        if len(self.connections) > MAX_CONNECTIONS:
            _first_of(self._waiting).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: it has ended."""
        self._waiting.pop(self, None)
        self._end_after(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio's: some bytes."""
        if self in self._waiting:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """The parser's: the first byte of a request."""
        super().on_message_begin()
        self._end_after(REQUEST_S)

    def on_headers_complete(self) -> None:
        """The parser's: the application is called."""
        super().on_headers_complete()
        self._waiting.pop(self, None)
        self._head_bytes = 0
        self._end_after(ANSWER_S)

    def on_response_complete(self) -> None:
        """The cycle's: the answer has been given to the transport."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_after(REQUEST_S)
        elif not self.pipeline:
            self._waiting[self] = None
            self._end_after(KEEP_ALIVE_S)  # uvicorn's own limit begins again with every byte

    def _end_after(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort) if seconds is not None else None


Waiting = TypeVar("Waiting")


def _first_of(waiting: dict[Waiting, None]) -> Waiting:
    """Taken out at once: its end is told later, and many may come before that."""
    first = next(iter(waiting))
    del waiting[first]
    return first
