"""The data port: object bytes between nodes over plain sockets, and connections of their workers.

::

    reader                                         source
      connect ─────────────────────────────────────▶
      ◀──────────────────────────── 32 random bytes
      HMAC-SHA256(token, those bytes) ─────────────▶ compared in constant time, else closed
      u32 length | BulkRequest fetch ──────────────▶ the object, or a part of it
      ◀── u32 length | Chunk (size, owner or failure, no data) | the bytes
      next BulkRequest …                               or, as the only one:
      u32 length | BulkRequest channel ────────────▶ its end goes to the worker named, this one
                                                     to the worker that asked for it

An object's bytes go from segment to segment: `sendall` on the source's view, `recv_into` on the reader's,
in a thread each and without the GIL (ten times the throughput per CPU of a gRPC stream). Greeting
and requests are handled on the loop. A reader keeps idle connections for the next object.

Limits: `STREAMS` transfers at a time each way; a silent connection is closed after `IDLE_S`. The
token is proved, not sent; the bytes are plain text, as gRPC's are: see `rpc` for encryption.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from miniray._proto import raylet_pb2
from miniray.runtime.landing import Landing

STREAMS = 16
IDLE_S = 30.0
STALL_S = 10.0
"""A transfer that moves nothing for so long has failed; the next one goes on where it stopped."""
CONNECT_S = 5.0
UNREACHED_MS = 30_000
"""A connection of two workers on which nothing is acknowledged for so long breaks; they relay again."""
CHALLENGE_BYTES = 32
MAX_REQUEST = 64 * 1024
PIECE_BYTES = 8 << 20
PART_BYTES = 32 << 20
"""A larger object is read in parts of this size, several at a time where there are cores for it."""
KEPT_CONNECTIONS = 4
_LENGTH = struct.Struct("<I")

Address = tuple[str, int]


class Source(Protocol):
    """One object that is being read: its header, and its bytes in pieces."""

    header: raylet_pb2.Chunk
    size: int

    def piece(self, offset: int, length: int) -> Any:
        """A buffer with these bytes; called in a thread. OSError when they cannot be read."""

    def close(self, complete: bool) -> None:
        """The reader has it all, or has gone; called on the loop."""


def proof(token: str, challenge: bytes) -> bytes:
    """What shows that its maker knows the token."""
    return hmac.digest(token.encode(), b"miniray bulk" + challenge, hashlib.sha256)


class BulkServer:
    """Serves other nodes. Called on the loop: `open_source(request)` for an object to be read,
    `on_channel(hello, fd)` for a connection to one of our workers; the descriptor is its own."""

    def __init__(self, host: str, port: int, token: str,
                 open_source: Callable[[raylet_pb2.FetchRequest], Source],
                 on_channel: Callable[[raylet_pb2.ChannelHello, int], None]) -> None:
        self._token = token
        self._open_source = open_source
        self._on_channel = on_channel
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(STREAMS, "bulk-send")
        self._connections: set[asyncio.Task[None]] = set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self._listener.setblocking(False)
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
            sock, _address = await self._loop.sock_accept(self._listener)
            sock.setblocking(False)
            task = self._loop.create_task(self._serve(sock))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            challenge = os.urandom(CHALLENGE_BYTES)
            await self._loop.sock_sendall(sock, challenge)
            answer = await _read(self._loop, sock, hashlib.sha256().digest_size)
            if not hmac.compare_digest(answer, proof(self._token, challenge)):
                return
            while True:
                request = raylet_pb2.BulkRequest.FromString(await _read_message(self._loop, sock))
                if request.HasField("channel"):
                    set_up_for_frames(sock)
                    self._on_channel(request.channel, sock.detach())
                    return
                await self._answer(sock, request.fetch)
        except (OSError, EOFError, ValueError, DecodeError, asyncio.TimeoutError):
            pass  # the reader has gone, or is none
        finally:
            sock.close()

    async def _answer(self, sock: socket.socket, request: raylet_pb2.FetchRequest) -> None:
        source = self._open_source(request)
        complete = False
        try:
            header = source.header.SerializeToString()
            await self._loop.sock_sendall(sock, _LENGTH.pack(len(header)) + header)
            if source.size:
                await _in_thread(self._loop, self._threads, sock, _send_all, source)
            complete = True
        finally:
            source.close(complete)


class BulkReader:
    """Reads objects from other nodes, a large one in `streams` at once."""

    def __init__(self, token: str, streams: int = 1) -> None:
        self._token = token
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(STREAMS, "bulk-receive")
        self._slots = asyncio.Semaphore(STREAMS)
        """A thread here for all that was asked for: a source that sends never waits for one of ours."""
        self._idle: dict[Address, list[socket.socket]] = {}

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
            await self._receive(address, sock, landing, start, size)
            return
        offsets = deque(range(start + PART_BYTES, size, PART_BYTES))
        streams = min(self._streams - 1, len(offsets))
        await _together([
            self._receive(address, sock, landing, start, start + PART_BYTES),
            *(self._read_parts(address, request, landing, offsets) for _ in range(streams))])

    async def _read_parts(self, address: Address, request: raylet_pb2.FetchRequest, landing: Landing,
                          offsets: deque[int]) -> None:
        """Read the parts at `offsets`, one after the other, until some stream has begun each."""
        while offsets:
            offset = offsets.popleft()
            sock, header = await self._open(address, _part_of(request, offset))
            if header.HasField("failure") or header.total_size != len(landing):
                self._let_go(sock)
                raise ConnectionError(f"the source has changed its mind: {header.failure.message}")
            await self._receive(address, sock, landing, offset, min(offset + PART_BYTES, len(landing)))

    async def _open(
        self, address: Address, request: raylet_pb2.FetchRequest
    ) -> tuple[socket.socket, raylet_pb2.Chunk]:
        """A stream of what is requested, and its header; it has a slot until `_keep` or `_let_go`."""
        await self._slots.acquire()
        try:
            return await self._open_now(address, request)
        except BaseException:
            self._slots.release()
            raise

    async def _open_now(
        self, address: Address, request: raylet_pb2.FetchRequest
    ) -> tuple[socket.socket, raylet_pb2.Chunk]:
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
        sock = await connect(self._loop, address, self._token)
        return sock, await self._ask_fresh(sock, request)

    async def _receive(
        self, address: Address, sock: socket.socket, landing: Landing, start: int, end: int
    ) -> None:
        try:
            await _in_thread(self._loop, self._threads, sock, _receive_all, (landing, start, end))
        except BaseException:
            self._let_go(sock)
            raise
        self._keep(address, sock)

    def _let_go(self, sock: socket.socket) -> None:
        self._slots.release()
        sock.close()

    def _keep(self, address: Address, sock: socket.socket) -> None:
        self._slots.release()
        kept = self._idle.setdefault(address, [])
        if len(kept) < KEPT_CONNECTIONS:
            kept.append(sock)
        else:
            sock.close()

    async def _ask_fresh(self, sock: socket.socket, request: raylet_pb2.FetchRequest) -> raylet_pb2.Chunk:
        try:
            return await self._ask(sock, request)
        except BaseException as error:
            sock.close()
            if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)):
                raise ConnectionError("the source closed the connection: another token?") from None
            raise

    async def _ask(self, sock: socket.socket, request: raylet_pb2.FetchRequest) -> raylet_pb2.Chunk:
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


async def connect(loop: asyncio.AbstractEventLoop, address: Address, token: str) -> socket.socket:
    """A connection to another node's data port that has shown the token. OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.wait_for(loop.sock_connect(sock, address), CONNECT_S)
        challenge = await _read(loop, sock, CHALLENGE_BYTES)
        await loop.sock_sendall(sock, proof(token, challenge))
    except BaseException as error:
        sock.close()
        if isinstance(error, (EOFError, asyncio.TimeoutError)):
            raise ConnectionError(f"{address[0]}:{address[1]} does not answer") from None
        raise
    return sock


async def connect_workers(
    loop: asyncio.AbstractEventLoop, address: Address, token: str, hello: raylet_pb2.ChannelHello
) -> int:
    """The descriptor of a connection whose other end goes to a worker of that node. OSError.

    Whether the worker is there shows in use: the connection ends at once if it is not.
    """
    sock = await connect(loop, address, token)
    try:
        await _write_message(loop, sock, raylet_pb2.BulkRequest(channel=hello))
        set_up_for_frames(sock)
        return sock.detach()
    finally:
        sock.close()


def set_up_for_frames(sock: socket.socket) -> None:
    """For two workers: nothing waits to be gathered, and a peer that is out of reach is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREACHED_MS)


async def _read(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes; EOFError at the end, TimeoutError after `IDLE_S`."""
    data = b""
    while len(data) < count:
        piece = await asyncio.wait_for(loop.sock_recv(sock, count - len(data)), IDLE_S)
        if not piece:
            raise EOFError
        data += piece
    return data


async def _read_message(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(await _read(loop, sock, _LENGTH.size))
    if length > MAX_REQUEST:
        raise ValueError("message too long")
    return await _read(loop, sock, length)


async def _write_message(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, message: raylet_pb2.BulkRequest
) -> None:
    body = message.SerializeToString()
    await loop.sock_sendall(sock, _LENGTH.pack(len(body)) + body)


async def _in_thread(loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor, sock: socket.socket,
                     work: Callable[[socket.socket, Any], None], argument: Any) -> None:
    """Run `work` with the socket in blocking mode. When cancelled, waits until it has let go."""
    sock.settimeout(STALL_S)
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


def _send_all(sock: socket.socket, source: Source) -> None:
    at = 0
    while at < source.size:
        data = source.piece(at, min(PIECE_BYTES, source.size - at))
        sock.sendall(data)
        at += len(data)


def _receive_all(sock: socket.socket, where: tuple[Landing, int, int]) -> None:
    landing, at, end = where
    with landing.view[at:end] as view:
        start = at
        while at < end:
            count = sock.recv_into(view[at - start : at - start + PIECE_BYTES])
            if not count:
                raise ConnectionError(f"the source stopped after {at} of {len(landing)} bytes")
            landing.arrived(at, at + count)
            at += count
