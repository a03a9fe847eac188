"""The data port: object bytes between nodes over plain sockets, and connections of their workers.

::

    reader                                         source
      connect, mutual TLS where the cluster has it ▶
      ◀──────────────────────────── 32 random bytes
      HMAC-SHA256(token, those bytes) ─────────────▶ compared in constant time, else closed
      u32 length | BulkRequest fetch ──────────────▶ the object, or a part of it
      ◀── u32 length | Chunk (size, owner or failure, no data) | the bytes
      next BulkRequest …                               or, as the only one:
      u32 length | BulkRequest channel ────────────▶ TLS ends; this end goes to the worker that
                                                     asked, that end to the worker named

An object's bytes go from segment to segment: `sendall` on the source's view, `recv_into` on the reader's,
in a thread each and without the GIL (ten times the throughput per CPU of a gRPC stream). Greeting
and requests are handled on the loop. A reader keeps idle connections for the next object.

Limits: `STREAMS` transfers at a time each way; a silent connection is closed after `IDLE_S`. The
token is proved, not sent. Who has not greeted in `GREETING_S` is closed, and of those who have not
the oldest of an address makes room when there are more than `GREETING_AT_ONCE` of it; when there are
`GREETING_IN_ALL`, of the address that has most.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from miniray._proto import raylet_pb2
from miniray.runtime import tls_socket
from miniray.runtime.access import Access
from miniray.runtime.landing import Landing
from miniray.runtime.resending import resend_soon
from miniray.runtime.tls_socket import Connection

STREAMS = 16
IDLE_S = 30.0
ACCEPT_AGAIN_S = 0.1
STALL_S = 10.0
"""A transfer that moves nothing for so long has failed; the next one goes on where it stopped."""
PASSED_ON_STALL_S = 30.0
"""The same from a source that waits for its own: that one is the first to look for another."""
SILENT_AFTER_S, SILENT_EVERY_S, SILENT_TIMES = 4, 2, 3
"""A machine that is gone is noticed all the same: it does not answer probes."""
CONNECT_S = 5.0
GREETING_S = 10.0
GREETING_AT_ONCE = 64
GREETING_IN_ALL = 512
"""One machine may have many addresses: all of 127.0.0.0/8, or of an IPv6 network."""
UNREACHED_MS = 30_000
"""A connection of two workers on which nothing is acknowledged for so long breaks; they relay again."""
CHALLENGE_BYTES = 32
MAX_REQUEST = 64 * 1024
PIECE_BYTES = 8 << 20
PART_BYTES = 32 << 20
"""A larger object is read in parts of this size, several at a time where there are cores for it."""
KEPT_CONNECTIONS = 4
_LENGTH = struct.Struct("<I")


class Address(NamedTuple):
    """A data port, and the name in the certificate of the node that has it."""

    host: str
    port: int
    name: str = ""


class Source(Protocol):
    """One object that is being read: its header, and its bytes in pieces."""

    header: raylet_pb2.Chunk
    size: int

    async def ready(self, offset: int) -> int:
        """Where the bytes end that are there, more than up to `offset`. OSError when no more will come."""

    def piece(self, offset: int, length: int) -> Any:
        """A buffer with these bytes; called in a thread. OSError when they cannot be read."""

    def close(self, complete: bool) -> None:
        """The reader has it all, or has gone; called on the loop."""


class BulkServer:
    """Serves other nodes. Called on the loop: `open_source(request)` for an object to be read,
    `on_channel(hello, fd)` for a connection to one of our workers; the descriptor is its own."""

    def __init__(self, host: str, port: int, token: str | Access,
                 open_source: Callable[[raylet_pb2.FetchRequest], Awaitable[Source]],
                 on_channel: Callable[[raylet_pb2.ChannelHello, int], None]) -> None:
        self._access = Access.of(token)
        self._open_source = open_source
        self._on_channel = on_channel
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(STREAMS, "bulk-send")
        self._connections: set[asyncio.Task[None]] = set()
        self._greeting: dict[str, dict[asyncio.Task[None], None]] = {}
        """Address -> connections that have not proved anything yet, oldest first."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self._listener.setblocking(False)
        resend_soon(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Close the port and every connection."""
        self._accepting.cancel()
        self._listener.close()
        for task in self._connections:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _accept(self) -> None:
        while True:
            try:
                sock, address = await self._loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(ACCEPT_AGAIN_S)  # out of descriptors: the backlog keeps the rest
                continue
            sock.setblocking(False)
            task = self._loop.create_task(self._serve(sock, address[0]))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
            greeting = self._greeting.setdefault(address[0], {})
            greeting[task] = None
            if len(greeting) > GREETING_AT_ONCE:
                self._turn_away(address[0])
            elif sum(map(len, self._greeting.values())) > GREETING_IN_ALL:
                self._turn_away(max(self._greeting, key=lambda host: len(self._greeting[host])))
            await asyncio.sleep(0)  # it begins, so that whatever ends it closes its socket

    def _turn_away(self, host: str) -> None:
        """The oldest connection from there that has not greeted."""
        greeting = self._greeting[host]
        oldest = next(iter(greeting))
        del greeting[oldest]
        oldest.cancel()
        if not greeting:
            del self._greeting[host]

    async def _serve(self, bare: socket.socket, host: str) -> None:
        sock: Connection = bare
        try:
            try:
                sock = await asyncio.wait_for(self._greet(bare), GREETING_S)
            finally:
                self._greeted(host)
            while True:
                request = raylet_pb2.BulkRequest.FromString(await _read_message(self._loop, sock))
                if request.HasField("channel"):
                    await asyncio.wait_for(tls_socket.end(self._loop, sock), CONNECT_S)
                    set_up_for_frames(sock)
                    self._on_channel(request.channel, sock.detach())
                    return
                await self._answer(sock, request.fetch)
        except (OSError, EOFError, ValueError, DecodeError, asyncio.TimeoutError):
            pass  # the reader has gone, or is none
        finally:
            sock.close()

    async def _greet(self, bare: socket.socket) -> Connection:
        """The connection with somebody who knows the token. OSError, EOFError for anybody else."""
        sock: Connection = bare
        if self._access.identity is not None:
            sock = await tls_socket.begin(self._loop, bare, self._access.identity.context(server=True), None)
        try:
            challenge = os.urandom(CHALLENGE_BYTES)
            await tls_socket.send_all(self._loop, sock, challenge)
            answer = await _read(self._loop, sock, hashlib.sha256().digest_size)
            if not self._access.is_proven(answer, challenge):
                raise EOFError
        except BaseException:
            sock.close()
            raise
        return sock

    def _greeted(self, host: str) -> None:
        greeting = self._greeting.get(host, {})
        greeting.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
        if not greeting:
            self._greeting.pop(host, None)

    async def _answer(self, sock: Connection, request: raylet_pb2.FetchRequest) -> None:
        source = await self._open_source(request)
        complete = False
        try:
            header = source.header.SerializeToString()
            await tls_socket.send_all(self._loop, sock, _LENGTH.pack(len(header)) + header)
            at = 0
            while at < source.size:  # without a thread while we wait ourselves for what is next
                end = await source.ready(at)
                await _in_thread(self._loop, self._threads, sock, _send_all, (source, at, end))
                at = end
            complete = True
        finally:
            source.close(complete)


class BulkReader:
    """Reads objects from other nodes, a large one in `streams` at once."""

    def __init__(self, token: str | Access, streams: int = 1) -> None:
        self._access = Access.of(token)
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(STREAMS, "bulk-receive")
        self._slots = asyncio.Semaphore(STREAMS)
        """A thread here for all that was asked for: a source that sends never waits for one of ours."""
        self._idle: dict[Address, list[Connection]] = {}

    def close(self) -> None:
        """Close idle connections; transfers under way end by themselves."""
        for kept in self._idle.values():
            for sock in kept:
                sock.close()
        self._idle.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, address: Address, request: raylet_pb2.FetchRequest,
                    begin: Callable[[raylet_pb2.Chunk], Landing]) -> None:
        """Read one object, or its rest from `request.offset` on, to where `begin(header)` says.

        OSError when the source is out of reach or stops half-way. When cancelled, nothing is
        written any more by the time this returns. What has come is in the landing either way.
        """
        start = request.offset
        if self._streams > 1:
            request = _part_of(request, start)
        sock, header = await self._open(address, request)
        try:
            landing = begin(header)
        except BaseException:
            self._let_go(sock)
            raise
        size = len(landing)
        if start == size:
            self._keep(address, sock)
            return
        if not request.length or size - start <= request.length:
            await self._receive(address, sock, header, landing, (start, size))
            return
        offsets = deque(range(start + PART_BYTES, size, PART_BYTES))
        streams = min(self._streams - 1, len(offsets))
        if header.partial:  # its first missing byte is the next for all
            await _together([
                self._receive(address, sock, header, landing, (start, start + PART_BYTES)),
                self._read_rest(address, request, landing, start + PART_BYTES)])
            return
        await _together([
            self._receive(address, sock, header, landing, (start, start + PART_BYTES)),
            *(self._read_parts(address, request, landing, offsets) for _ in range(streams))])

    async def _read_parts(self, address: Address, request: raylet_pb2.FetchRequest, landing: Landing,
                          offsets: deque[int]) -> None:
        """Read the parts at `offsets`, one after the other, until some stream has begun each."""
        while offsets:
            offset = offsets.popleft()
            part = _part_of(request, offset)
            await self._read_more(address, part, landing, min(offset + PART_BYTES, len(landing)))

    async def _read_rest(self, address: Address, request: raylet_pb2.FetchRequest, landing: Landing,
                         offset: int) -> None:
        """In one stream, which the source opens beside the first: it knows the reader."""
        rest = _part_of(request, offset)
        rest.ClearField("length")
        await self._read_more(address, rest, landing, len(landing))

    async def _read_more(self, address: Address, request: raylet_pb2.FetchRequest, landing: Landing,
                         end: int) -> None:
        sock, header = await self._open(address, request)
        changed = header.total_size != len(landing) or header.version != landing.version
        if header.HasField("failure") or changed:
            self._let_go(sock)
            raise ConnectionError(f"the source has changed its mind: {header.failure.message}")
        await self._receive(address, sock, header, landing, (request.offset, end))

    async def _open(
        self, address: Address, request: raylet_pb2.FetchRequest
    ) -> tuple[Connection, raylet_pb2.Chunk]:
        """A stream of what is requested, and its header; it has a slot until `_keep` or `_let_go`."""
        await self._slots.acquire()
        try:
            return await self._open_now(address, request)
        except BaseException:
            self._slots.release()
            raise

    async def _open_now(
        self, address: Address, request: raylet_pb2.FetchRequest
    ) -> tuple[Connection, raylet_pb2.Chunk]:
        kept = self._idle.get(address)
        if kept:
            sock = kept.pop()
            try:
                return sock, await self._ask(sock, request)
            except (OSError, EOFError):
                sock.close()  # the source closed it meanwhile
            except BaseException:
                sock.close()
                raise
        sock = await connect(self._loop, address, self._access)
        return sock, await self._ask_fresh(sock, request)

    async def _receive(self, address: Address, sock: Connection, header: raylet_pb2.Chunk, landing: Landing,
                       between: tuple[int, int]) -> None:
        stall_s = PASSED_ON_STALL_S if header.partial else STALL_S
        try:
            await _in_thread(self._loop, self._threads, sock, _receive_all, (landing, *between), stall_s)
        except BaseException:
            self._let_go(sock)
            raise
        self._keep(address, sock)

    def _let_go(self, sock: Connection) -> None:
        self._slots.release()
        sock.close()

    def _keep(self, address: Address, sock: Connection) -> None:
        self._slots.release()
        kept = self._idle.setdefault(address, [])
        if len(kept) < KEPT_CONNECTIONS:
            kept.append(sock)
        else:
            sock.close()

    async def _ask_fresh(self, sock: Connection, request: raylet_pb2.FetchRequest) -> raylet_pb2.Chunk:
        try:
            return await self._ask(sock, request)
        except BaseException as error:
            sock.close()
            if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)):
                raise ConnectionError("the source closed the connection: another token?") from None
            raise

    async def _ask(self, sock: Connection, request: raylet_pb2.FetchRequest) -> raylet_pb2.Chunk:
        await _write_message(self._loop, sock, raylet_pb2.BulkRequest(fetch=request))
        return raylet_pb2.Chunk.FromString(await _read_message(self._loop, sock))


# ---- on the loop ----


def _part_of(request: raylet_pb2.FetchRequest, offset: int) -> raylet_pb2.FetchRequest:
    return raylet_pb2.FetchRequest(
        object_id=request.object_id, reader=request.reader, offset=offset, length=PART_BYTES)


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all; when one fails, or this is cancelled, the others have ended before it shows."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def connect(loop: asyncio.AbstractEventLoop, address: Address, token: str | Access) -> Connection:
    """A connection to another node's data port that has shown the token. OSError."""
    access = Access.of(token)
    where = address[:2]
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        resend_soon(sock)
        _probe(sock)
        await asyncio.wait_for(loop.sock_connect(sock, where), CONNECT_S)
        access.demand_own(f"{where[0]}:{where[1]}")
        return await asyncio.wait_for(_introduce(loop, sock, Address(*address), access), GREETING_S)
    except BaseException as error:
        sock.close()
        if isinstance(error, (EOFError, asyncio.TimeoutError)):
            raise ConnectionError(f"{where[0]}:{where[1]} does not answer") from None
        raise


def _probe(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_AFTER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENT_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENT_TIMES)


async def _introduce(
    loop: asyncio.AbstractEventLoop, bare: socket.socket, address: Address, access: Access
) -> Connection:
    sock: Connection = bare
    if access.identity is not None:
        name = address.host if access.identity.by_host else address.name
        sock = await tls_socket.begin(loop, bare, access.identity.context(server=False), name)
    try:
        challenge = await _read(loop, sock, CHALLENGE_BYTES)
        await tls_socket.send_all(loop, sock, access.proof(challenge))
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_workers(
    loop: asyncio.AbstractEventLoop, address: Address, token: str | Access, hello: raylet_pb2.ChannelHello
) -> int:
    """The descriptor of a connection whose other end goes to a worker of that node. OSError.

    Whether the worker is there shows in use: the connection ends at once if it is not. It is bare
    at both ends: where the cluster has TLS, the two workers begin it anew.
    """
    sock = await connect(loop, address, token)
    try:
        await _write_message(loop, sock, raylet_pb2.BulkRequest(channel=hello))
        await asyncio.wait_for(tls_socket.end(loop, sock), CONNECT_S)
        set_up_for_frames(sock)
        return sock.detach()
    except asyncio.TimeoutError:
        raise ConnectionError(f"{address[0]}:{address[1]} does not hand the connection on") from None
    finally:
        sock.close()


def set_up_for_frames(sock: Connection) -> None:
    """For two workers: nothing waits to be gathered, and a peer that is out of reach is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREACHED_MS)


async def _read(loop: asyncio.AbstractEventLoop, sock: Connection, count: int) -> bytes:
    """Exactly `count` bytes; EOFError at the end, TimeoutError after `IDLE_S`."""
    data = b""
    while len(data) < count:
        piece = await asyncio.wait_for(tls_socket.receive(loop, sock, count - len(data)), IDLE_S)
        if not piece:
            raise EOFError
        data += piece
    return data


async def _read_message(loop: asyncio.AbstractEventLoop, sock: Connection) -> bytes:
    """One message; it may be waited for as long as each byte in `_read`, but has to come in one go."""
    first = await _read(loop, sock, 1)
    return await asyncio.wait_for(_read_rest(loop, sock, first), GREETING_S)


async def _read_rest(loop: asyncio.AbstractEventLoop, sock: Connection, first: bytes) -> bytes:
    (length,) = _LENGTH.unpack(first + await _read(loop, sock, _LENGTH.size - 1))
    if length > MAX_REQUEST:
        raise ValueError("message too long")
    return await _read(loop, sock, length)


async def _write_message(
    loop: asyncio.AbstractEventLoop, sock: Connection, message: raylet_pb2.BulkRequest
) -> None:
    body = message.SerializeToString()
    await tls_socket.send_all(loop, sock, _LENGTH.pack(len(body)) + body)


async def _in_thread(loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor, sock: Connection,
                     work: Callable[[Connection, Any], None], argument: Any,
                     stall_s: float = STALL_S) -> None:
    """Run `work` with the socket in blocking mode. When cancelled, waits until it has let go."""
    sock.settimeout(stall_s)
    running = loop.run_in_executor(threads, work, sock, argument)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        await asyncio.wait([running])
        running.exception()
        raise
    sock.setblocking(False)


# ---- in a thread ----


def _send_all(sock: Connection, what: tuple[Source, int, int]) -> None:
    source, at, end = what
    while at < end:
        # Released, not only dropped: an error keeps this frame, and the pin, till the collector comes.
        with memoryview(source.piece(at, min(PIECE_BYTES, end - at))) as data:
            sock.sendall(data)
            at += len(data)


def _receive_all(sock: Connection, where: tuple[Landing, int, int]) -> None:
    landing, at, end = where
    with landing.view[at:end] as view:
        start = at
        while at < end:
            count = sock.recv_into(view[at - start : at - start + PIECE_BYTES])
            if not count:
                raise ConnectionError(f"the source stopped after {at} of {len(landing)} bytes")
            landing.arrived(at, at + count)
            at += count
