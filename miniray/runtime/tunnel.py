"""TCP through the head's port: how a node takes part that reaches nothing else and cannot be reached.

::

    other raylets ──▶ head: listens on two ports ─┐                        ┌──▶ the node's own two ports
                                                  ╞═ streams on head's port ═╡
    other raylets' ports ◀── head: dials ─────────┘                        └─── loopback ports of the node

As with `ssh -R` and `ssh -L`: the node serves and dials as every other one, its addresses lead through the
head. What passes is not looked at: tokens and TLS are between the two ends. One gRPC stream is one
connection; one more, which lasts as long as the node, says which connections have come for it.

The head dials only ports that living nodes have announced. The ports it opens for a node are where the
head itself listens, and go with the node's listening stream; one that lost it, as in a restart of the head,
asks for the same ports again. Everything runs on the loops of the two daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable

from miniray._proto import gcs_pb2 as gcs
from miniray.runtime.links import Stream, StreamEnded
from miniray.runtime.resending import resend_soon

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20
"""At most, of what has come, for one message: a stream's price is per message, so large ones pay."""
TAKEN_WITHIN_S = 20.0
"""A connection that came for a node is closed when it has not been taken by then."""
PAUSE_S = 0.5
"""Before the head is asked again."""
BUFFER_BYTES = 1 << 20
MAX_PORTS = 2
MAX_WAITING = 256
"""Connections that wait for their node to take them."""
MAX_COMING = 512
"""For one node within `TAKEN_WITHIN_S`: each costs a stream, and the node finds out who it is."""

Dial = Callable[[], Awaitable[Stream]]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def pipe(stream: Stream, connection: Pair) -> None:
    """Pass bytes both ways until both directions have ended, or one end is gone."""
    reader, writer = connection

    async def outward() -> None:
        while data := await reader.read(PIECE_BYTES):
            await stream.write(gcs.TunnelFrame(data=data))
        await stream.write(gcs.TunnelFrame())

    async def inward() -> None:
        while data := (await stream.read()).data:
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    try:
        await _both(outward(), inward())
    except (StreamEnded, OSError):
        pass
    finally:
        writer.transport.abort()


async def _both(*ways: Awaitable[None]) -> None:
    """Both to their ends; the first that fails ends the other."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---- the head's side -----------------------------------------------------------------------


class HeadTunnels:
    """Serves the streams of all nodes behind it. `may_dial(host, port)` knows the cluster's ports."""

    def __init__(self, host: str, advertise: str, may_dial: Callable[[str, int], bool]) -> None:
        """`host` is listened on, and `advertise` what other nodes are told to dial."""
        self._host = host
        self._advertise = advertise
        self._may_dial = may_dial
        self._waiting: dict[bytes, Pair] = {}

    async def serve(self, stream: Stream) -> None:
        """One stream, for whatever its first frame asks for."""
        first = await stream.read()
        if first.HasField("dial"):
            await self._dial(stream, first.dial)
        elif first.take:
            connection = self._waiting.pop(first.take, None)
            if connection is not None:
                await pipe(stream, connection)
        elif first.ports_wanted:
            await self._listen(stream, min(first.ports_wanted, MAX_PORTS), list(first.ports))

    async def _dial(self, stream: Stream, address: gcs.TunnelAddress) -> None:
        if not self._may_dial(address.host, address.port):
            log.warning("a tunnel to %s:%d was refused: no living node is there", address.host, address.port)
            return
        try:
            connection = await asyncio.open_connection(address.host, address.port, limit=BUFFER_BYTES)
        except OSError as error:
            log.info("a tunnel to %s:%d failed: %s", address.host, address.port, error)
            return
        resend_soon(connection[1].get_extra_info("socket"))
        await pipe(stream, connection)

    async def _listen(self, stream: Stream, count: int, wanted: list[int]) -> None:
        """Listen for a node until its stream ends."""
        servers: list[asyncio.Server] = []
        news: asyncio.Queue[gcs.TunnelFrame] = asyncio.Queue()
        mine: dict[bytes, None] = {}
        try:
            for index in range(count):
                wish = wanted[index] if index < len(wanted) else 0
                servers.append(await self._open(index, wish, news, mine))
            ports = [server.sockets[0].getsockname()[1] for server in servers]
            address = gcs.TunnelAddress(host=self._advertise)
            await stream.write(gcs.TunnelFrame(ports=ports, dial=address))
            await _both(self._announce(stream, news), _until_ended(stream))
        finally:
            for server in servers:
                server.close()
            for ticket in mine:
                left = self._waiting.pop(ticket, None)
                if left is not None:
                    left[1].transport.abort()

    async def _open(
        self, index: int, wish: int, news: asyncio.Queue[gcs.TunnelFrame], mine: dict[bytes, None]
    ) -> asyncio.Server:
        def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            resend_soon(writer.get_extra_info("socket"))
            if len(self._waiting) >= MAX_WAITING or len(mine) >= MAX_COMING:
                writer.transport.abort()
                return
            ticket = os.urandom(16)
            self._waiting[ticket] = (reader, writer)
            mine[ticket] = None
            news.put_nowait(gcs.TunnelFrame(came=gcs.TunnelAddress(port=index, ticket=ticket)))
            asyncio.get_running_loop().call_later(TAKEN_WITHIN_S, late, ticket)

        def late(ticket: bytes) -> None:
            mine.pop(ticket, None)
            left = self._waiting.pop(ticket, None)
            if left is not None:
                left[1].transport.abort()

        try:
            return await asyncio.start_server(came, self._host, wish, limit=BUFFER_BYTES)
        except OSError:
            return await asyncio.start_server(came, self._host, 0, limit=BUFFER_BYTES)

    @staticmethod
    async def _announce(stream: Stream, news: asyncio.Queue[gcs.TunnelFrame]) -> None:
        while True:
            await stream.write(await news.get())


async def _until_ended(stream: Stream) -> None:
    while True:
        await stream.read()


# ---- the node's side -----------------------------------------------------------------------


class NodeTunnel:
    """A node's way into the cluster. `dial` opens a stream to the head; `on_lost` ends the node."""

    def __init__(self, dial: Dial, on_lost: Callable[[str], None]) -> None:
        self._dial = dial
        self._on_lost = on_lost
        self.host = ""
        """Where others reach this node."""
        self._ports: list[int] = []
        self._targets: list[int] = []
        self._forwarders: dict[tuple[str, int], asyncio.Server] = {}
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, targets: list[int]) -> list[int]:
        """Have the head listen for this node's loopback ports `targets`; returns the head's. StreamEnded."""
        self._targets = targets
        stream = await self._ask_for_ports()
        self._start(self._keep_listening(stream))
        return self._ports

    async def _ask_for_ports(self) -> Stream:
        stream = await self._dial()
        await stream.write(gcs.TunnelFrame(ports_wanted=len(self._targets), ports=self._ports))
        answer = await stream.read()
        granted = list(answer.ports)
        if self._ports and granted != self._ports:
            stream.cancel()
            raise _OtherPorts(f"the head could not give this node its ports {self._ports} back")
        self._ports, self.host = granted, answer.dial.host
        return stream

    async def _keep_listening(self, stream: Stream) -> None:
        """Take connections that come; when the head was away, listen again on the same ports."""
        while True:
            with contextlib.suppress(StreamEnded):
                while True:
                    came = (await stream.read()).came
                    self._start(self._take(came))
            while True:
                await asyncio.sleep(PAUSE_S)
                try:
                    stream = await self._ask_for_ports()
                    break
                except _OtherPorts as error:
                    self._on_lost(str(error))
                    return
                except StreamEnded:
                    continue  # the link to the head says when that has lasted too long

    async def _take(self, came: gcs.TunnelAddress) -> None:
        try:
            stream = await self._dial()
            await stream.write(gcs.TunnelFrame(take=came.ticket))
            connection = await asyncio.open_connection(
                "127.0.0.1", self._targets[came.port], limit=BUFFER_BYTES)
        except (StreamEnded, OSError) as error:
            log.info("a connection that came through the head was lost: %s", error)
            return
        await self._piped(stream, connection)

    async def through(self, host: str, port: int) -> tuple[str, int]:
        """Where to dial on this machine to reach `host`:`port` beyond the head."""
        async with self._opening:
            server = self._forwarders.get((host, port))
            if server is None:
                def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    self._start(self._forward((reader, writer), host, port))

                server = await asyncio.start_server(came, "127.0.0.1", 0, limit=BUFFER_BYTES)
                self._forwarders[host, port] = server
        address: tuple[str, int] = server.sockets[0].getsockname()
        return address

    async def _forward(self, connection: Pair, host: str, port: int) -> None:
        try:
            stream = await self._dial()
            await stream.write(gcs.TunnelFrame(dial=gcs.TunnelAddress(host=host, port=port)))
        except StreamEnded:
            connection[1].transport.abort()
            return
        await self._piped(stream, connection)

    @staticmethod
    async def _piped(stream: Stream, connection: Pair) -> None:
        try:
            await pipe(stream, connection)
        finally:
            stream.cancel()

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Break everything."""
        for task in self._tasks:
            task.cancel()
        for server in self._forwarders.values():
            server.close()


class _OtherPorts(Exception):
    """Others would dial the former ports in vain."""
