"""The inside of a node's daemon: builds the node, joins it to its GCS, runs until told to stop.

Two forms share everything but the link to the GCS: `local` holds the GCS in the same process and
imports no gRPC; a joined node dials `gcs_address` and serves other raylets on a TCP port.

Ends: the driver's pidfd (local), SIGTERM (drains what runs, up to `drain_s`; a second one ends at
once), StopNode of the machine, loss of the zygote. `daemon` then ends the process tree.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from miniray import _native, config
from miniray._proto import common_pb2 as common
from miniray.core import resources
from miniray.core.node import Node
from miniray.runtime import agent, gpus, host, loops, sessions, supervisor
from miniray.runtime.access import Access
from miniray.runtime.daemon import tell_ready
from miniray.runtime.raylet import Raylet

if TYPE_CHECKING:
    from miniray.runtime.cluster_links import ClusterLinks
    from miniray.runtime.daemon import NodeOptions

log = logging.getLogger(__name__)

JOIN_WITHIN_S = 30.0
JOIN_POLL_S = 0.005
MAX_CLIENTS = 4096
"""Workers and drivers that one node can have at a time; records are sparse memory."""
GOODBYE_S = 1.0


class CannotJoin(Exception):
    """The cluster cannot be joined; the message says why and what to do."""


def serve_node(options: NodeOptions, directory: str, zygote: socket.socket, *, local: bool) -> int:
    """Run one node until it ends. Returns the exit status."""
    daemon = NodeDaemon(options, directory, zygote, local)
    return loops.run(daemon.run())


class NodeDaemon:
    """See the module head."""

    def __init__(self, options: NodeOptions, directory: str, zygote: socket.socket, local: bool) -> None:
        self._options = options
        self._directory = directory
        self._zygote = zygote
        self._local = local
        self._access = Access(options.token or os.urandom(32).hex())
        self._socket_path = os.path.join(directory, "raylet.sock")
        self._stopping: asyncio.Event
        self._failed = False
        self._signals = 0
        self._raylet: Raylet
        self._closers: list[Any] = []
        self._links: Any = None
        self._reason = ""

    async def run(self) -> int:
        """The node's life."""
        self._stopping = asyncio.Event()
        size = host.store_bytes(self._options.object_store_memory)
        store = _native.Store.create(size, max_clients=MAX_CLIENTS)
        info = self._describe(store.capacity)
        node = Node(info, random.Random(os.urandom(8)), store_bytes=store.capacity,
                    session_dir=self._directory, config=config.overrides())
        node.memory.spill_limit = config.get("spill_max_bytes")
        self._raylet = Raylet(
            node, store, self._zygote, session_dir=self._directory, token=self._access,
            socket_path=self._socket_path, nice=config.get("worker_nice"),
            spill_dir=self._options.spill_dir, on_stop=self._stop)
        self._watch()
        try:
            await (self._join_local() if self._local else self._join_remote())
            self._publish(info)
            cluster = self._options.gcs_address or "a local session"
            supervisor.ready(f"node {info.node_id.hex()[:8]} of {cluster}")
            await self._stopping.wait()
            supervisor.stopping(self._reason or "the node ends")
            await self._say_goodbye()
        finally:
            self._raylet.close()
            for close in self._closers:
                close()
        return 1 if self._failed else 0

    def _describe(self, store_bytes: int) -> common.NodeInfo:
        options = self._options
        node_id = os.urandom(28)
        labels = {"ray.io/node-id": node_id.hex(), **options.labels}
        devices = gpus.visible()
        model = gpus.accelerator_type(devices[0].name) if devices else ""
        if model:
            labels.setdefault("ray.io/accelerator-type", model)
        return common.NodeInfo(
            node_id=node_id, node_name=options.node_name or options.advertise or options.host,
            host="" if self._local else options.advertise or options.host, hostname=host.hostname(),
            total=resources.to_map(offered(options, store_bytes, len(devices), model)), labels=labels,
            takes_no_work=options.behind_head, is_head=options.is_head or self._local,
            started_at=time.time(), pid=os.getpid(),
            socket_path=self._socket_path, store_bytes=store_bytes, session_dir=self._directory)

    def _watch(self) -> None:
        """Arrange for this daemon's end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if self._options.driver_pid:
            fd = agent.pidfd(self._options.driver_pid)
            if fd is None:
                self._stop("its driver has ended", False)
            else:
                loop.add_reader(fd, self._driver_ended, fd)

    def _driver_ended(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        self._stop("its driver has ended", False)

    def _signalled(self) -> None:
        """SIGTERM drains when something runs; the second one, or a local session's first, ends."""
        self._signals += 1
        if self._local or self._signals > 1:
            self._raylet.node.end_requested(asyncio.get_running_loop().time(), "it was told to end")
            self._raylet.turn()
            self._stop("it was told to end", False)
            return
        supervisor.stopping(f"drains what runs, for {config.get('drain_s'):.0f} s at most")
        self._raylet.node.drain_requested(
            asyncio.get_running_loop().time(), config.get("drain_s"), "it was told to end")
        self._raylet.turn()

    def _stop(self, reason: str, failed: bool) -> None:
        if failed:
            log.error("the node ends: %s", reason)
        self._failed = self._failed or failed
        self._reason = self._reason or reason
        self._stopping.set()

    # ---- the GCS ----

    async def _join_local(self) -> None:
        from miniray.runtime.gcs import GcsShell
        from miniray.runtime.links import LinkEvents

        shell = GcsShell.local()
        self._raylet.head = shell.join(self._raylet.node.node_id, LinkEvents(self._raylet.head_message))
        self._closers.append(shell.close)
        self._raylet.start()

    async def _join_remote(self) -> None:
        """Serve other raylets, dial the GCS, and wait until it has accepted this node."""
        from miniray.runtime.cluster_links import ClusterLinks

        await self._be_admitted()
        links = ClusterLinks(self._raylet, self._options.gcs_address, self._stop, self._token_rotated)
        if self._options.behind_head:
            await self._listen_behind_head(links)
        else:
            await links.listen(self._options.host, self._options.port, self._options.data_port)
        self._raylet.node.info.port = links.port
        self._raylet.node.info.data_port = links.data_port
        self._closers.append(links.close)
        self._links = links
        links.keep_certified()
        self._raylet.start()
        deadline = asyncio.get_running_loop().time() + JOIN_WITHIN_S
        while not self._raylet.node.accepted and not self._stopping.is_set():
            if asyncio.get_running_loop().time() > deadline:
                head = self._options.gcs_address
                self._reason = f"the head at {head} did not answer in {JOIN_WITHIN_S:.0f} s"
                break
            await asyncio.sleep(JOIN_POLL_S)
        if not self._raylet.node.accepted:
            raise CannotJoin(links.trouble or self._reason or "it was told to end")
        of_cluster = json.loads(self._raylet.node.config or "{}")
        self._raylet.fence(of_cluster.get("node_silent_s", config.get("node_silent_s")))

    async def _listen_behind_head(self, links: ClusterLinks) -> None:
        from miniray.runtime.links import StreamEnded

        try:
            await links.listen_behind_head()
        except StreamEnded as error:
            raise CannotJoin(error.detail) from None

    async def _be_admitted(self) -> None:
        """See to it that this node and the head know one another. CannotJoin."""
        from miniray.runtime import admission, rpc

        options = self._options
        pki = (options.pki[0], options.pki[1], options.pki[2]) if options.pki else None
        terms = admission.Terms(
            options.gcs_address, self._access.token, bytes.fromhex(options.fingerprint), options.plain, pki)
        try:
            access = await admission.join(terms, self._raylet.node.node_id)
        except (OSError, rpc.RpcError) as error:
            raise CannotJoin(str(error)) from None
        self._access.identity = access.identity
        if access.identity is not None:
            access.identity.save(self._directory)

    def _token_rotated(self, token: str) -> None:
        log.info("the cluster has another token")
        self._access.replace_token(token)
        sessions.write_private(os.path.join(self._directory, "token"), token)

    async def _say_goodbye(self) -> None:
        """Give what was queued for the GCS (NodeLeaving) a moment to leave."""
        if self._links is not None:
            await self._links.flush(GOODBYE_S)

    # ---- announcing ----

    def _publish(self, info: common.NodeInfo) -> None:
        sessions.write_private(os.path.join(self._directory, "token"), self._access.token)
        sessions.publish(self._directory, "node", address=self._options.gcs_address,
                         node_id=info.node_id.hex(), socket=self._socket_path,
                         is_drivers_own=self._options.behind_head)
        is_wanted = tell_ready(self._options.ready_fd, {
            "session_dir": self._directory, "socket": self._socket_path, "token": self._access.token,
            "node_id": info.node_id.hex(), "pid": os.getpid(), "port": info.port})
        if not is_wanted:   # by now its driver's pid may be somebody else's
            self._stop("who started it has ended", False)


def offered(
    options: NodeOptions, store_bytes: int, gpu_count: int, gpu_model: str
) -> resources.Resources:
    """The node's total resources: what was asked for, else what the machine has."""
    if options.behind_head:
        return {}
    override = config.get("override_resources")
    found: dict[str, float] = {
        resources.CPU: host.cpu_count() if options.num_cpus is None else options.num_cpus,
        resources.GPU: gpu_count if options.num_gpus is None else options.num_gpus,
        resources.MEMORY: options.memory if options.memory is not None else max(0, int(
            host.memory_total() * 0.9) - store_bytes),
        resources.OBJECT_STORE_MEMORY: store_bytes,
        resources.node_resource(options.advertise or options.host): 1.0,
        **options.resources,
    }
    if gpu_model and found[resources.GPU]:
        found.setdefault(resources.accelerator_resource(gpu_model), 1.0)
    if options.is_head or not options.gcs_address:
        found[resources.HEAD_NODE] = 1.0
    if override:
        found.update(json.loads(override))
    return resources.from_floats(found)
