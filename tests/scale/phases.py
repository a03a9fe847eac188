"""What the hollow cluster goes through: joining, actors, placement groups, tasks, events, beats.

Each phase returns the processor time that the head spent in it and how often what it counts happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import events, ids
from miniray.runtime.storage import Storage

from .clock import Clock
from .hollow import HollowHead, HollowNode

UNIT = 10_000
CPUS = 16
ROWS_PER_BATCH = 100
BUSY_BEATS, IDLE_BEATS = 8, 20
BATCHES = 2
"""Batches of task events per node."""
SEEING = 8
"""So many nodes read the views of the cluster; in small ones, every fourth."""


@dataclass(frozen=True)
class Size:
    """How large the cluster is."""

    nodes: int = 2_000
    actors: int = 20_000
    tasks: int = 10_000
    groups: int = 1_000

    def times(self, fraction: float) -> Size:
        """The same, smaller."""
        return Size(*(max(1, int(n * fraction)) for n in (self.nodes, self.actors, self.tasks, self.groups)))


@dataclass(frozen=True)
class Phase:
    """What one phase cost the head."""

    name: str
    count: int
    seconds: float
    stall_s: float
    stall_in: str
    sent_bytes: int

    @property
    def each_us(self) -> float:
        """Microseconds of the head's core per entity."""
        return self.seconds / self.count * 1e6


class HollowCluster:
    """See the module head."""

    def __init__(self, size: Size, storage: Storage) -> None:
        self.size = size
        self.clock = Clock()
        self.head = HollowHead(self.clock, storage)
        self.nodes: list[HollowNode] = []
        self.job_id = b""
        self._request = 0
        self._beating = 0.0
        """Seconds of the head's core per second for heartbeats alone."""
        self._joined_node_s = 0.0
        """How long each node was there already while nodes joined, summed up."""

    def phases(self) -> list[Phase]:
        """All of them, in order."""
        size = self.size
        joined = self._phase("node joins", size.nodes, self._join)
        self._rest()
        beats = self._beating * self._joined_node_s / size.nodes
        joined = replace(joined, seconds=joined.seconds - beats)
        return [
            joined,
            self._phase("actor made", size.actors, self._make_actors),
            self._phase("placement group of 4 made", size.groups, self._make_groups),
            self._phase("task running (figures of its lease)", size.tasks, self._run_tasks),
            self._phase("task finished (event)", size.nodes * BATCHES * ROWS_PER_BATCH, self._tell_events),
            self._phase("heartbeat with news, views", size.nodes * BUSY_BEATS, self._beat_busy, net=False),
            self._phase("heartbeat without", size.nodes * IDLE_BEATS, self._beat_idle, net=False),
            self._phase("status asked for, per node", size.nodes * 5, self._ask_status),
            self._phase("actor dies", size.actors // 20, self._lose_actors),
            self._phase("node dies, per node told", self._lost * size.nodes, self._lose_nodes),
        ]

    def _phase(self, name: str, count: int, run: Callable[[], None], *, net: bool = True) -> Phase:
        """Run and measure; `net`: less what the heartbeats of that time cost."""
        meter, sent, start = self.head.meter, self.head.bytes_sent, self.clock.now
        meter.reset()
        run()
        seconds = meter.seconds - (self._beating * (self.clock.now - start) if net else 0.0)
        return Phase(name, count, seconds, meter.longest, meter.longest_call, self.head.bytes_sent - sent)

    def _rest(self) -> None:
        """What a second of nothing but heartbeats costs."""
        self.clock.run(self.clock.now + 2.0)
        self.head.meter.reset()
        self.clock.run(self.clock.now + 4.0)
        self._beating = self.head.meter.seconds / 4.0

    @property
    def _lost(self) -> int:
        """How many nodes are lost."""
        return max(1, self.size.nodes // 100)

    # ---- phases

    def _join(self) -> None:
        members = self.head.head.members
        joined_at = []
        for number in range(self.size.nodes):
            sees = number % max(4, self.size.nodes // SEEING) == 0
            self.nodes.append(HollowNode(self.clock, self.head, number + 1, CPUS, sees=sees))
            joined_at.append(self.clock.now)
            self.clock.run(self.clock.now + 0.002)
        self.clock.run(lambda: len(members.view) == self.size.nodes)
        self.clock.run(self.clock.now + 0.5)
        self._joined_node_s = sum(self.clock.now - at for at in joined_at)

    def _make_actors(self) -> None:
        first = self.nodes[0]
        driver = b"driver".ljust(28, b".")
        first.register_driver(driver)
        self.clock.run(lambda: bool(first.job_ids))
        self.job_id = first.job_ids[0]
        owner = common.Address(node_id=first.id, worker_id=driver)
        for number in range(self.size.actors):
            first.request(driver, actor_register=gcs.ActorRegister(spec=self._spec(number, owner)))
            if number % 20 == 0:
                self.clock.run(self.clock.now + 0.01)
        self.clock.run(lambda: self.head.head.actors.count()[0] == self.size.actors)

    def _spec(self, number: int, owner: common.Address) -> common.ActorSpec:
        cls = common.SchedulingClass(job_id=self.job_id, function_name="Hollow")
        cls.resources.amounts["CPU"] = UNIT // 2
        return common.ActorSpec(
            actor_id=ids.actor_id(number.to_bytes(12, "big"), self.job_id), creation_class=cls,
            lifetime_resources=cls.resources, class_name="Hollow", namespace="scale", owner=owner,
            creation_task=bytes(300), handle=bytes(200),
        )  # fmt: skip

    def _make_groups(self) -> None:
        first, driver = self.nodes[0], self.driver
        for number in range(self.size.groups):
            info = common.PlacementGroupInfo(
                placement_group_id=number.to_bytes(14, "big") + self.job_id, creator_job_id=self.job_id,
                strategy=common.SPREAD if number % 2 else common.PACK,
            )  # fmt: skip
            for _ in range(4):
                info.bundles.add().resources.amounts["CPU"] = UNIT
            first.request(driver, group_create=gcs.GroupCreate(info=info))
            self.clock.run(self.clock.now + 0.0005)
        groups = self.head.head.placement
        self.clock.run(lambda: not groups.count()[1])

    @property
    def driver(self) -> bytes:
        """The only driver's worker id."""
        return b"driver".ljust(28, b".")

    def _run_tasks(self) -> None:
        """Leases are the raylets' affair: what reaches the head is their figures.

        Those who see others would send some on, to nodes that see nobody and could not do so in turn.
        """
        roomy: list[HollowNode] = []
        for _ in range(self.size.tasks):
            while not roomy or not roomy[-1].has_cpu(UNIT):
                if roomy:
                    roomy.pop()
                if not roomy:
                    roomy = [node for node in self.nodes
                             if node.workers and not node.sees and node.has_cpu(UNIT)]
                    assert roomy, "no node that sees no other has room for one more task"
            self._run_task(roomy[-1])
            roomy.insert(0, roomy.pop())
        self.clock.run(self.clock.now + 5.0)
        held = sum(len(node.node.leases.grants) for node in self.nodes) - self.size.actors
        assert held == self.size.tasks, f"{held} of {self.size.tasks} tasks run"

    def _run_task(self, node: HollowNode) -> None:
        self._request += 1
        owner = common.Address(node_id=node.id, worker_id=node.workers[0])
        cls = common.SchedulingClass(job_id=self.job_id, function_name="task")
        cls.resources.amounts["CPU"] = UNIT
        lease = wire.LeaseRequest(request_id=self._request, requester=owner, scheduling_class=cls)
        node.say(node.workers[0], lease_request=lease)

    def _tell_events(self) -> None:
        for _ in range(BATCHES):
            for number, node in enumerate(self.nodes):
                rows = b"".join(self._row(number * ROWS_PER_BATCH + i) for i in range(ROWS_PER_BATCH))
                batch = gcs.TaskEventBatch(job_id=self.job_id, rows=rows)
                node.say(node.workers[0], task_events=batch)
            self.clock.run(self.clock.now + 0.2)

    def _row(self, number: int) -> bytes:
        task_id = number.to_bytes(8, "big") + bytes(12) + self.job_id
        return events.pack_row(task_id=task_id, name="task", state="FINISHED", node_id=bytes(28),
                               worker_id=bytes(28), submitted_at=1.0, started_at=2.0, ended_at=3.0)

    def _beat_busy(self) -> None:
        """Each node beats twice a second for four seconds, each time with another figure."""
        for _ in range(BUSY_BEATS):
            for node in self.nodes:
                node.node.resources.version += 1
                total = node.node.resources.available
                total["memory"] = total["memory"] - UNIT
            self.clock.run(self.clock.now + 0.5)
        for node in self.nodes:
            node.node.resources.available["memory"] += BUSY_BEATS * UNIT

    def _beat_idle(self) -> None:
        self.clock.run(self.clock.now + 10.0)

    def _ask_status(self) -> None:
        for _ in range(5):
            self.nodes[0].request(self.driver, status=gcs.StatusQuery())
            self.clock.run(self.clock.now + 0.02)

    def _lose_actors(self) -> None:
        count = self.size.actors // 20
        actors = list(self.head.head.actors.registry.records)[:count]
        for actor_id in actors:
            self.nodes[0].request(self.driver, actor_kill=gcs.ActorKill(actor_id=actor_id, no_restart=True))
            self.clock.run(self.clock.now + 0.0005)
        self.clock.run(self.clock.now + 0.5)
        self.clock.run(lambda: self.head.head.pubsub.next_deadline() is None)

    def _lose_nodes(self) -> None:
        for node in self.nodes[-self._lost :]:
            message = gcs.NodeMessage(leaving=gcs.NodeLeaving(reason="it was drained"))
            self.head.meter.measured("leaving", self.head.head.node_message, self.clock.now, node.id, message)
            self.clock.run(self.clock.now + 0.01)
        self.clock.run(self.clock.now + 0.1)
