"""`Cluster`: a head and several nodes as real daemons on this machine, for tests.

Each node is a raylet of its own with its own store and workers, and offers what `add_node` says
it does. The first node is the head's: the GCS runs beside it. Everything ends with `shutdown`,
with this process, or node by node with `remove_node`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from miniray import api, session
from miniray.runtime import agent

cluster_not_supported = False
"""Ray's name for "not on this platform"."""

DEFAULT_STORE_BYTES = 150 * 2**20
GRACE_S = 10.0
_POLL_S = 0.02


@dataclass(eq=False)
class ClusterNode:
    """One node of a `Cluster`. `node_id` and `unique_id` are its id in hexadecimal."""

    node_id: str
    address: str
    """HOST:PORT of the GCS."""
    socket: str
    session_dir: str
    pid: int
    port: int = 0
    node_ip_address: str = "127.0.0.1"
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def unique_id(self) -> str:
        """The same as `node_id`."""
        return self.node_id

    @property
    def gcs_address(self) -> str:
        """HOST:PORT of the GCS."""
        return self.address

    @property
    def raylet_socket_name(self) -> str:
        """The socket that drivers of this node connect to."""
        return self.socket

    def alive(self) -> bool:
        """True while its raylet runs."""
        return _alive(self.pid)

    remaining_processes_alive = alive

    def kill_raylet(self) -> None:
        """End its raylet with SIGKILL."""
        _end(self.pid, graceful=False)


class Cluster:
    """A cluster on this machine. With `initialize_head` its first node is started at once, with
    the options `head_node_args`; with `connect` this process becomes a driver of it."""

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        if connect and not initialize_head:
            raise RuntimeError("Cannot connect to uninitialized cluster.")
        self.head_node: ClusterNode | None = None
        self.worker_nodes: dict[ClusterNode, None] = {}
        self.connected = False
        self._token = secrets.token_hex(32)
        self._address = ""
        self._head_pid = 0
        self._directory = ""
        self._owner = os.getpid()
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()

    @property
    def address(self) -> str | None:
        """HOST:PORT of the GCS; None before the first node."""
        return self._address or None

    @property
    def global_state(self) -> Any:
        """Ray's accessor; `node_table()` is `nodes()`."""
        from types import SimpleNamespace

        from miniray.cluster_info import nodes

        return SimpleNamespace(node_table=nodes)

    gcs_address = address

    def connect(self, namespace: str | None = None) -> None:
        """Make this process a driver of the cluster."""
        assert self._address and not self.connected
        session.init(self._address, namespace=namespace, ignore_reinit_error=True)
        self.connected = True

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Start a node; with `wait` return once the GCS knows it.

        Takes num_cpus (default 1), num_gpus (0), resources, labels, memory, object_store_memory
        (bytes, default 150 MiB) and node_name; other options of Ray's are ignored.
        """
        from miniray.runtime import launch
        from miniray.runtime.daemon import HeadOptions, NodeOptions

        if self.head_node is None:
            options_of_head = HeadOptions(
                port=0, token=self._token, storage=":memory:", driver_pid=os.getpid()
            )
            head = launch.start_daemon("head", options_of_head)
            self._head_pid = head["pid"]
            self._address = head["address"]
        options = NodeOptions(
            gcs_address=self._address,
            token=self._token,
            num_cpus=node_args.get("num_cpus", 1),
            num_gpus=node_args.get("num_gpus", 0),
            memory=node_args.get("memory"),
            resources=dict(node_args.get("resources") or {}),
            labels=dict(node_args.get("labels") or {}),
            object_store_memory=int(node_args.get("object_store_memory", DEFAULT_STORE_BYTES)),
            node_name=node_args.get("node_name") or "",
            is_head=self.head_node is None,
            driver_pid=os.getpid(),
        )
        ready = launch.start_daemon("node", options)
        node = ClusterNode(
            node_id=ready["node_id"],
            address=self._address,
            socket=ready["socket"],
            session_dir=ready["session_dir"],
            pid=ready["pid"],
            port=ready.get("port", 0),
        )
        if self.head_node is None:
            self.head_node = node
        else:
            self.worker_nodes[node] = None
        if wait:
            self._wait(lambda alive: node.node_id in alive, 30.0, f"node {node.node_id[:12]} to join")
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node: with SIGTERM and a grace, or at once. The head's node takes the GCS along.

        ValueError (after `shutdown()`) for the node this driver is connected to.
        """
        worker = api.current_worker()
        if worker is not None and worker.is_driver and worker.address[0].hex() == node.node_id:
            session.shutdown()
            raise ValueError(
                "Removing a node that is connected to this driver is not allowed: it would break the driver."
            )
        _end(node.pid, allow_graceful)
        if node is self.head_node:
            self.head_node = None
            _end(self._head_pid, allow_graceful)
        else:
            self.worker_nodes.pop(node, None)

    def list_all_nodes(self) -> list[ClusterNode]:
        """The nodes that were added and not removed, the head's first."""
        return [*([self.head_node] if self.head_node is not None else []), *self.worker_nodes]

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Wait until exactly these nodes are alive. TimeoutError after `timeout` seconds."""
        expected = len(self.list_all_nodes())
        self._wait(lambda alive: len(alive) == expected, timeout, f"{expected} nodes to be alive")

    def _wait(self, reached: Callable[[set[str]], bool], timeout: float, what: str) -> None:
        """Until `reached(hex ids of the living nodes)`; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not reached(self._alive_nodes()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Timed out while waiting for {what}.")
            time.sleep(_POLL_S)

    def _alive_nodes(self) -> set[str]:
        """Asks the head, in a thread of its own: the caller may be inside an event loop."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        from miniray._proto import common_pb2 as pb
        from miniray._proto import gcs_pb2 as gcs
        from miniray.runtime import rpc

        def ask() -> gcs.ControlReply:
            request = gcs.ControlRequest(node_list=gcs.NodeList())
            return asyncio.run(rpc.call_head(self._address, self._token, request))

        with ThreadPoolExecutor(1) as pool:
            nodes = pool.submit(ask).result().nodes.nodes
        return {node.node_id.hex() for node in nodes if node.state != pb.NODE_DEAD}

    def remaining_processes_alive(self) -> bool:
        """True while every node that was not removed runs."""
        return all(node.alive() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """End everything. Does nothing the second time, and in a forked child."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.shutdown)
        for node in [*reversed(self.worker_nodes), *([self.head_node] if self.head_node is not None else [])]:
            _end(node.pid, graceful=True)
        self.worker_nodes.clear()
        if self.head_node is not None:
            _end(self._head_pid, graceful=True)
            self.head_node = None


class AutoscalingCluster:
    """A head whose nodes come and go with what waits, on this machine; Ray's class of the same name.

    `worker_node_types` gives for each kind of node ``{"resources": {"CPU": 2}, "min_workers": 0,
    "max_workers": 4, "labels": {}}``. Connect with ``init("auto")`` or ``init(cluster.address)``.
    """

    def __init__(
        self,
        head_resources: Mapping[str, float],
        worker_node_types: Mapping[str, Mapping[str, Any]],
        autoscaler_v2: bool = False,
        *,
        max_workers: int = 100,
        idle_timeout_minutes: float = 5.0,
        upscaling_speed: float = 1.0,
        **_ignored: Any,
    ) -> None:
        """`autoscaler_v2` and other words of Ray's configuration are ignored: there is one autoscaler."""
        self._head_resources = dict(head_resources)
        self._types = {name: dict(one) for name, one in worker_node_types.items()}
        self._max_nodes = max_workers
        self._idle_s = 60.0 * idle_timeout_minutes
        self._speed = upscaling_speed
        self._cluster: Cluster | None = None
        self._ends = contextlib.ExitStack()

    @property
    def address(self) -> str | None:
        """HOST:PORT of the GCS; None before `start`."""
        return self._cluster.address if self._cluster is not None else None

    def start(self, _system_config: Any = None, override_env: Mapping[str, str] | None = None) -> None:
        """Start the head's node, and let other nodes come when work waits for them."""
        from miniray.autoscaler import Autoscaler, LocalProvider, NodeKind

        self.shutdown()
        os.environ.update(override_env or {})
        offered = dict(self._head_resources)
        given = {"num_cpus": offered.pop("CPU", 0), "num_gpus": offered.pop("GPU", 0)}
        for name in ("memory", "object_store_memory"):
            if name in offered:
                given[name] = offered.pop(name)
        self._cluster = cluster = Cluster(True, head_node_args={**given, "resources": offered})
        self._ends.callback(cluster.shutdown)
        address = str(cluster.address)
        kinds = [
            NodeKind(
                name, one.get("resources", {}), one.get("min_workers", 0), one.get("max_workers", 10),
                one.get("labels", {}),
            )
            for name, one in self._types.items()
        ]  # fmt: skip
        provider = LocalProvider(address, cluster._token)
        self._ends.callback(provider.close)
        scaler = Autoscaler(
            provider, kinds, address, token=cluster._token, max_nodes=self._max_nodes, idle_s=self._idle_s,
            speed=self._speed,
        )  # fmt: skip
        self._ends.enter_context(scaler)

    def shutdown(self) -> None:
        """End everything. Does nothing the second time."""
        self._ends.close()
        self._cluster = None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _end(pid: int, graceful: bool) -> None:
    """End a daemon and wait until it is gone: two SIGTERMs (the second cuts draining short) or SIGKILL."""
    fd = agent.pidfd(pid)
    if fd is None:
        return
    try:
        if graceful:
            for pause_s in (0.2, GRACE_S):
                signal.pidfd_send_signal(fd, signal.SIGTERM)
                if select.select([fd], [], [], pause_s)[0]:
                    return
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], GRACE_S)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)
