"""The simulated cluster: world, network, head, nodes, drivers, and what they share."""

from __future__ import annotations

from typing import Any

from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.contract import HEAD
from miniray.core.lineage import LIMIT_BYTES
from miniray.core.tasks import MethodTemplate, TaskTemplate

from .clocks import Clocks
from .head import SimHead
from .network import Network, Weather
from .node import STORE_BYTES, SimNode
from .oracle import Oracle
from .programs import PROGRAMS
from .worker import SimWorker
from .world import World

UNIT = 10_000


class Cluster:
    """Everything of one run."""

    def __init__(
        self, seed: int, weather: Weather, *, store_bytes: int = STORE_BYTES,
        lineage_bytes: int = LIMIT_BYTES, check_every: int = 8, clocks_apart_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.world = World(seed)
        self.world.call_it(HEAD, "head")
        self.network = Network(self.world, weather)
        self.clocks = Clocks(self.world, clocks_apart_s)
        self.oracle = Oracle(self.world)
        self.check_every = check_every
        self.store_bytes = store_bytes
        self.lineage_bytes = lineage_bytes
        self.programs = PROGRAMS
        self.nodes: dict[bytes, SimNode] = {}
        self.workers: list[SimWorker] = []
        self.drivers: list[SimWorker] = []
        self.head = SimHead(self.clocks, self.network, check_every)
        self._blobs: list[Any] = []
        self._templates: dict[Any, Any] = {}
        self._numbers = 0
        self._tasks = 0

    # ---- members

    def add_node(self, cpus: int) -> SimNode:
        """A node joins."""
        node = SimNode(
            self.clocks.another(), self.network, self.nodes, f"n{len(self.nodes) + 1}", {"CPU": cpus * UNIT},
            self._make_worker, store_bytes=self.store_bytes, check_every=self.check_every,
        )  # fmt: skip
        self.nodes[node.id] = node
        return node

    @property
    def living(self) -> list[SimNode]:
        """Nodes that have not crashed or left."""
        return [node for node in self.nodes.values() if node.is_up]

    def _make_worker(self, node: SimNode, worker_id: bytes, name: str) -> SimWorker:
        worker = SimWorker(self, node, worker_id, name, is_driver=False)
        self.workers.append(worker)
        return worker

    def add_driver(self, node: SimNode) -> SimWorker:
        """A driver connects to a node."""
        name = f"d{len(self.drivers) + 1}"
        worker_id = self.world.id(ids.WORKER_ID_SIZE, name)
        driver = SimWorker(self, node, worker_id, name, is_driver=True)
        self.drivers.append(driver)
        node.start_driver(driver)
        return driver

    def owners(self) -> list[SimWorker]:
        """All living workers and drivers."""
        return [worker for worker in (*self.drivers, *self.workers) if worker.alive]

    # ---- what all share

    def next_number(self) -> int:
        """A number nobody else gets."""
        self._numbers += 1
        return self._numbers

    def tasks_made(self) -> int:
        """The number of the next task, for its name."""
        self._tasks += 1
        return self._tasks

    def keep(self, thing: Any) -> bytes:
        """Bytes that stand for something the daemons must not look into."""
        self._blobs.append(thing)
        return (len(self._blobs) - 1).to_bytes(8, "little")

    def kept(self, key: bytes) -> Any:
        """What the bytes stand for."""
        return self._blobs[int.from_bytes(key, "little")]

    def template(
        self, worker: SimWorker, program: str, returns: int, retries: int, retry: bool
    ) -> TaskTemplate:
        """One remote function with its options in one process; it learns its cost there."""
        key = (worker.id, program, returns, retries, retry)
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = TaskTemplate(
                lambda: None, program, returns, max_retries=retries, retry_exceptions=retry
            )
        return template

    def method(self, worker: SimWorker, program: str, returns: int) -> MethodTemplate:
        """One method in one process."""
        key = (worker.id, program, returns)
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = MethodTemplate(program, returns)
        return template

    def end_actors(self, actor_ids: list[bytes]) -> None:
        """Somebody without a node of its own ends actors for ever."""
        if self.head.head is not None:
            for actor_id in actor_ids:
                request = gcs.ControlRequest(actor_kill=gcs.ActorKill(actor_id=actor_id, no_restart=True))
                self.head.head.request(self.head.world.now, request, 0)
            self.head.turn()

    def drain_node(self, node: SimNode, deadline_s: float) -> None:
        """Ask a node to leave when it is empty."""
        if self.head.head is not None:
            self.oracle.drained += 1
            request = gcs.ControlRequest(drain=gcs.DrainRequest(node_id=node.id, deadline_s=deadline_s))
            self.head.head.request(self.head.world.now, request, 0)
