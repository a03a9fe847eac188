"""The raylet's unix socket: workers and drivers of this machine, and the descriptors they pass.

``u32 little-endian length | protobuf``; a descriptor travels as SCM_RIGHTS with the message that
announces it. Order at the door: peer credentials (same user, or root), then a first message that
must be a `Register` with the cluster's token (compared in constant time) and of our versions
(`versions`), then everything else. Who gets past the credentials is told why it cannot stay.
A malformed frame closes that client and nothing else.

Runs on the raylet's event loop and never blocks: what a client does not read waits in its buffer.
Above `CONGESTED_BYTES` the node is told, so that senders hold back; a client that lets more than
`BUFFER_LIMIT` pile up all the same is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from miniray._proto import common_pb2
from miniray._proto.worker_pb2 import Register, Registered, ToRaylet, ToWorker
from miniray.core import limits
from miniray.runtime import agent, versions
from miniray.runtime.access import Access

MAX_MESSAGE = 512 << 20
MAX_GREETING = 1 << 20
"""Length limit of the first message, before the token is known to be right."""
MAX_STRANGERS = 1024
"""Connections that have not registered; beyond that the oldest makes room."""
CONGESTED_BYTES = 32 << 20
RELIEVED_BYTES = 4 << 20
BUFFER_LIMIT = 1 << 30
READ_BYTES = 256 * 1024
MAX_FDS = 16
WRITE_PARTS = 64
_LENGTH = struct.Struct("<I")


def _brings_descriptor(message: ToRaylet) -> bool:
    """A ring's; a channel to another node has none, though one may have been read along with it."""
    return message.WhichOneof("body") == "channel_open" and not message.channel_open.target_node_id


def _wrong_token(token: str) -> str:
    """For a process of this user, which could read the token's file as well."""
    given = "another token than this cluster's, or one that was replaced" if token else "no token"
    return f"the raylet (pid {os.getpid()}) refused this process: it showed {given}"


@dataclass(slots=True, eq=False)
class Client:
    """One connection. `worker_id` is given by the raylet before registration."""

    sock: socket.socket
    pid: int
    worker_id: bytes
    registered: bool = False
    received: bytearray = field(default_factory=bytearray)
    fds: deque[int] = field(default_factory=deque)
    unsent: deque[tuple[memoryview, int | None]] = field(default_factory=deque)
    unsent_bytes: int = 0
    writing: bool = False
    congested: bool = False
    closing: bool = False
    """Closed as soon as `unsent` is empty."""
    closed: bool = False


@dataclass(slots=True)
class ClientEvents:
    """What the raylet is told; all on the loop's thread."""

    on_register: Callable[[Client, Register], None]
    on_message: Callable[[Client, ToRaylet, int | None], None]
    """(client, message, the descriptor that came with it)."""
    on_closed: Callable[[Client], None]
    """The connection of a registered client has ended."""
    on_congested: Callable[[Client, bool], None]
    """It reads too slowly, or has caught up."""


class ClientServer:
    """Listens on `path`; see the module head."""

    def __init__(self, path: str, token: str | Access, events: ClientEvents) -> None:
        self._loop = asyncio.get_running_loop()
        self._access = Access.of(token)
        self._events = events
        self._clients: dict[int, Client] = {}
        self._strangers: dict[Client, None] = {}
        """Who has connected and not registered yet, oldest first."""
        self._unflushed: dict[Client, None] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(1024)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening and close every connection; nothing is called back."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients.values()):
            self._close(client, tell=False)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                return  # out of descriptors: the backlog keeps the rest
            sock.setblocking(False)
            pid, uid = agent.peer_credentials(sock)
            if uid not in (os.getuid(), 0):
                sock.close()
                continue
            client = Client(sock, pid, os.urandom(28))
            self._clients[sock.fileno()] = client
            self._strangers[client] = None
            self._loop.add_reader(sock.fileno(), self._readable, client)
            if len(self._strangers) > MAX_STRANGERS:
                self._close(next(iter(self._strangers)))

    # ---- reading ----

    def _readable(self, client: Client) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(
                client.sock, READ_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        client.fds.extend(fds)
        if not data:
            self._close(client)
            return
        client.received += data
        try:
            self._split(client)
        except (DecodeError, ValueError):
            self._close(client)

    def _split(self, client: Client) -> None:
        """Take complete messages out of the buffer."""
        buffer = client.received
        at = 0
        while len(buffer) - at >= 4 and not client.closed:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > (MAX_MESSAGE if client.registered else MAX_GREETING):
                raise ValueError("message too long")
            if len(buffer) - at - 4 < length:
                break
            message = ToRaylet.FromString(bytes(memoryview(buffer)[at + 4 : at + 4 + length]))
            at += 4 + length
            self._handle(client, message)
        del buffer[:at]

    def _handle(self, client: Client, message: ToRaylet) -> None:
        if client.registered:
            if message.WhichOneof("body") == "lease_request" and limits.problem(message.lease_request):
                raise ValueError("a lease that nobody can ask for")
            fd = None
            if client.fds and _brings_descriptor(message):
                fd = client.fds.popleft()
            self._events.on_message(client, message, fd)
            return
        register = message.register
        if message.WhichOneof("body") != "register":
            raise ValueError("not registered")
        if not self._access.accepts_known(register.token):
            self._refuse(client, common_pb2.UNAUTHENTICATED, _wrong_token(register.token))
            return
        theirs = versions.Versions(register.protocol_version, register.python_version)
        unfit = versions.ours(versions.CLIENTS).refusal(theirs, "this node", "this process")
        if unfit:
            self._refuse(client, common_pb2.INVALID_ARGUMENT, unfit)
            return
        client.registered = True
        del self._strangers[client]
        self._events.on_register(client, register)

    def _refuse(self, client: Client, kind: common_pb2.ErrorKind, why: str) -> None:
        """Tell it, and let it go."""
        self.send(client, ToWorker(registered=Registered(failure=common_pb2.Failure(kind=kind, message=why))))
        self.drop(client)
        self.flush()

    # ---- writing ----

    def send(self, client: Client, message: ToWorker, fd: int | None = None) -> None:
        """Queue one message until `flush`; `fd` is closed once it is sent."""
        if client.closed or client.closing:
            if fd is not None:
                os.close(fd)
            return
        body = message.SerializeToString()
        client.unsent.append((memoryview(_LENGTH.pack(len(body)) + body), fd))
        client.unsent_bytes += len(body) + 4
        if client.unsent_bytes > CONGESTED_BYTES and not client.congested:
            client.congested = True
            self._events.on_congested(client, True)
        if client.unsent_bytes > BUFFER_LIMIT:
            self._close(client)
        elif not client.writing:
            self._unflushed[client] = None

    def flush(self) -> None:
        """Write what this turn has queued: one system call for many messages."""
        while self._unflushed:
            client, _ = self._unflushed.popitem()
            if not client.closed:
                self._flush(client)

    def drop(self, client: Client) -> None:
        """Close the connection when everything queued is written."""
        client.closing = True
        if not client.unsent:
            self._close(client)
        elif not client.writing:
            self._unflushed[client] = None

    def _flush(self, client: Client) -> None:
        while client.unsent:
            try:
                self._write_some(client)
            except (BlockingIOError, InterruptedError):
                if not client.writing:
                    client.writing = True
                    self._loop.add_writer(client.sock.fileno(), self._flush, client)
                return
            except OSError:
                # Its end is read, too; what it sent before is still worth reading.
                self._discard_unsent(client)
                break
        if client.writing:
            client.writing = False
            self._loop.remove_writer(client.sock.fileno())
        if client.closing:
            self._close(client)

    def _write_some(self, client: Client) -> None:
        """One system call: a message with its descriptor, or many without."""
        first, fd = client.unsent[0]
        if fd is not None:
            sent = socket.send_fds(client.sock, [first], [fd])
            os.close(fd)
            client.unsent[0] = (first, None)
        elif len(client.unsent) == 1:
            sent = client.sock.send(first)
        else:
            parts: list[memoryview] = []
            for view, other in client.unsent:
                if other is not None or len(parts) == WRITE_PARTS:
                    break
                parts.append(view)
            sent = client.sock.sendmsg(parts)
        client.unsent_bytes -= sent
        if client.congested and client.unsent_bytes < RELIEVED_BYTES:
            client.congested = False
            self._events.on_congested(client, False)
        while sent:
            view, fd = client.unsent[0]
            if sent >= len(view):
                sent -= len(view)
                client.unsent.popleft()
            else:
                client.unsent[0] = (view[sent:], fd)
                return

    def _discard_unsent(self, client: Client) -> None:
        for _view, fd in client.unsent:
            if fd is not None:
                os.close(fd)
        client.unsent.clear()
        client.unsent_bytes = 0

    def _close(self, client: Client, tell: bool = True) -> None:
        if client.closed:
            return
        client.closed = True
        number = client.sock.fileno()
        self._loop.remove_reader(number)
        self._loop.remove_writer(number)
        del self._clients[number]
        self._strangers.pop(client, None)
        with contextlib.suppress(OSError):
            client.sock.close()
        for fd in client.fds:
            os.close(fd)
        client.fds.clear()
        self._discard_unsent(client)
        if tell and client.registered:
            self._events.on_closed(client)
