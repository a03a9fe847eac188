"""A joined node's connections: its stream to the GCS, streams to other raylets, object bytes.

The only part of a node that needs gRPC; a local session never imports it. Runs on the raylet's
event loop. A GCS that is away is waited for (`head_reconnect_s`): what runs goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from miniray import config
from miniray._proto import gcs_pb2, raylet_pb2
from miniray.core.node_effects import ConnectWorkers
from miniray.runtime import rpc, rpc_server
from miniray.runtime.access import node_name
from miniray.runtime.bulk import Address, BulkReader, BulkServer, connect_workers
from miniray.runtime.host import cpu_count, endpoint
from miniray.runtime.landing import Landing
from miniray.runtime.links import LinkEvents, PeerEvents, PeerLinks, Stream, StreamEnded
from miniray.runtime.objects import Begin
from miniray.runtime.raylet import Raylet
from miniray.runtime.sweeper import Sweeper

if TYPE_CHECKING:
    from miniray.runtime.tunnel import NodeTunnel

log = logging.getLogger(__name__)

MAX_STREAMS = 4
"""For one object, on a machine that has cores for them."""

FIRST_INCARNATION = 1
"""Node ids are new with every start, so no peer has met an earlier link under this id."""


class ClusterLinks:
    """See the module head. `on_stop(reason, failed)` ends the node; `on_token` hears of another token."""

    def __init__(self, raylet: Raylet, gcs_address: str, on_stop: Callable[[str, bool], None],
                 on_token: Callable[[str], None]) -> None:
        self.port = 0
        self.trouble = ""
        """Why the GCS cannot be reached at present, "" when it can."""
        self._raylet = raylet
        self._access = raylet.access
        self._gcs_address = gcs_address
        self._on_token = on_token
        self._node_id = raylet.node.node_id
        self._on_stop = on_stop
        self.data_port = 0
        self._server: rpc_server.Server | None = None
        self._bulk: BulkServer | None = None
        self._reader = BulkReader(self._access, streams=max(1, min(MAX_STREAMS, cpu_count() // 2)))
        self._head = rpc.head_link(gcs_address, self._access, self._node_id, FIRST_INCARNATION, LinkEvents(
            on_message=self._head_message, on_reset=lambda incarnation, rest: raylet.head_restarted(rest),
            on_up=self._head_up, on_down=self._head_down))
        self._sweeper = Sweeper()
        self._peers = PeerLinks(
            FIRST_INCARNATION, raylet_pb2.PeerPacket, self._address_of, self._dial,
            PeerEvents(on_message=raylet.peer_message,
                       on_reset=lambda node_id, incarnation, rest: raylet.peer_restarted(node_id)))
        raylet.head = self._head
        raylet.peers = self._peers
        raylet.objects.fetch_port = self._fetch
        raylet.connect_port = self._connect_workers
        self._tunnel: NodeTunnel | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._certifying: asyncio.Task[None] | None = None

    async def listen(self, host: str, port: int, data_port: int) -> None:
        """Open this node's ports (0: any). PortInUse, RpcError, OSError."""
        objects = self._raylet.objects
        self._server = await rpc_server.serve_raylet(host, port, self._access, self._peers, objects.serve)
        self.port = self._server.port
        self._bulk = BulkServer(
            host, data_port, self._access, objects.open_source, self._connection_came)
        self.data_port = self._bulk.port

    async def listen_behind_head(self) -> None:
        """Be reached, and reach others, through the head's port alone. StreamEnded, RpcError, OSError."""
        from miniray.runtime.tunnel import NodeTunnel

        await self.listen("127.0.0.1", 0, 0)
        self._tunnel = NodeTunnel(
            lambda: rpc.dial_tunnel(self._gcs_address, self._access, self._node_id),
            lambda why: self._on_stop(why, True))
        self.port, self.data_port = await self._tunnel.listen([self.port, self.data_port])
        self._raylet.node.info.host = self._tunnel.host

    async def _through(self, host: str, port: int) -> tuple[str, int]:
        """Where a node's port is to be dialled."""
        return (host, port) if self._tunnel is None else await self._tunnel.through(host, port)

    async def flush(self, within_s: float) -> None:
        """Wait until the GCS has everything that was sent to it, or the time is up."""
        deadline = asyncio.get_running_loop().time() + within_s
        await asyncio.sleep(0)
        while self._head.backlog_bytes and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # the link says how much waits, not when it is gone

    def close(self) -> None:
        """Break every connection."""
        self._sweeper.close()
        self._head.close()
        self._peers.close()
        self._reader.close()
        if self._tunnel is not None:
            self._tunnel.close()
        for task in (*self._connecting, *([self._certifying] if self._certifying is not None else [])):
            task.cancel()
        if self._bulk is not None:
            self._bulk.close()

    def keep_certified(self) -> None:
        """Renew this node's certificate for as long as it lives, where the cluster has any."""
        if self._access.identity is not None:
            from miniray.runtime import admission

            work = admission.keep_certified(
                self._gcs_address, self._access, self._node_id, self._raylet.node.info.session_dir)
            self._certifying = asyncio.get_running_loop().create_task(work)

    # ---- the GCS ----

    def _head_message(self, message: gcs_pb2.NodeMessage) -> None:
        if message.WhichOneof("body") == "token_rotated":
            self._on_token(message.token_rotated.token)
        else:
            self._raylet.head_message(message)

    def _head_up(self) -> None:
        self.trouble = ""

    def _head_down(self, ended: StreamEnded, seconds: float) -> None:
        if not self.trouble:
            self._sweeper.look()    # it may have been killed here, with who would clean up after it
        self.trouble = ended.detail
        if ended.final:
            self._on_stop(ended.detail, True)
        elif seconds > config.get("head_reconnect_s"):
            self._on_stop(f"the head is away for {seconds:.0f} s: {ended.detail}", True)

    # ---- other raylets ----

    def _address_of(self, node_id: bytes) -> str | None:
        info = self._raylet.node.peers.get(node_id)
        return endpoint(info.host, info.port) if info is not None and info.port else None

    async def _dial(self, address: str, node_id: bytes) -> Stream:
        host, _, port = address.rpartition(":")
        address = endpoint(*await self._through(host.strip("[]"), int(port)))
        return await rpc.dial_raylet(address, self._access, self._node_id, node_id)

    def _connection_came(self, hello: raylet_pb2.ChannelHello, fd: int) -> None:
        self._raylet.connection_came(hello, fd, self._access.identity is not None)

    def _connect_workers(self, effect: ConnectWorkers) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(effect))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, effect: ConnectWorkers) -> None:
        info = self._raylet.node.peers.get(effect.node_id)
        if info is None or not info.data_port:
            return
        hello = raylet_pb2.ChannelHello(target_worker_id=effect.target_worker_id)
        hello.source.node_id, hello.source.worker_id = self._node_id, effect.worker_id
        try:
            address = Address(*await self._through(info.host, info.data_port), node_name(effect.node_id))
            fd = await connect_workers(asyncio.get_running_loop(), address, self._access, hello)
        except OSError as error:
            log.info("no connection of workers to %s:%d: %s", info.host, info.data_port, error)
            return
        self._raylet.connection_made(effect, fd, self._access.identity is not None)

    async def _fetch(self, node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
        info = self._raylet.node.peers.get(node_id)
        if info is None:
            raise ConnectionError(f"node {node_id.hex()[:8]} is not in the cluster (any more)")
        if info.data_port:
            address = Address(*await self._through(info.host, info.data_port), node_name(node_id))
            await self._reader.fetch(address, request, begin)
        else:
            where = endpoint(*await self._through(info.host, info.port))
            chunks = rpc.fetch(where, self._access, self._node_id, request, node_id)
            await _fill(chunks, begin)


async def _fill(chunks: AsyncIterator[raylet_pb2.Chunk], begin: Begin) -> None:
    """Copy a stream of chunks to where `begin` says for the first."""
    landing: Landing | None = None
    async for chunk in chunks:
        if landing is None:
            landing = begin(chunk)
        end = chunk.offset + len(chunk.data)
        landing.view[chunk.offset : end] = chunk.data
        landing.arrived(chunk.offset, end)
    if landing is None or landing.done < len(landing):
        raise ConnectionError("the stream ended before the object did")
