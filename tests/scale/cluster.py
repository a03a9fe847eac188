"""A hollow cluster of some size, and what can be done to it: join, make, run, end, beat.

Nodes beat only when `beat` says so (`nodes_that_beat_when_asked`): what is asked of the head is then all that
it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import events, ids, node
from miniray.core.head import REUNION_S
from miniray.runtime.storage import Storage

from .clock import Clock
from .hollow import HollowHead, HollowNode

UNIT = 10_000
CPUS = 64
ROWS_PER_BATCH = 100
SEEING = 8
"""So many nodes read the views of the cluster; in small ones, every fourth."""

NEVER_S = 1e9
DRIVER = b"driver".ljust(28, b".")

Lease = tuple[HollowNode, int]


@dataclass(frozen=True)
class Size:
    """How much a cluster holds; `batches` of finished tasks are kept."""

    nodes: int = 2_000
    actors: int = 20_000
    tasks: int = 10_000
    groups: int = 1_000
    batches: int = 960

    def times(self, fraction: float) -> Size:
        """The same, smaller."""
        return Size(*(max(1, int(number * fraction)) for number in astuple(self)))


@contextmanager
def nodes_that_beat_when_asked() -> Iterator[None]:
    """What is begun within knows no other heartbeats than those of `HollowCluster.beat`."""
    usual, node.HEARTBEAT_S = node.HEARTBEAT_S, NEVER_S
    try:
        yield
    finally:
        node.HEARTBEAT_S = usual


class HollowCluster:
    """See the module head."""

    def __init__(self, size: Size, storage: Storage) -> None:
        """With everything of `size` in it; among `nodes_that_beat_when_asked`."""
        self.size = size
        self.clock = Clock()
        self.head = HollowHead(self.clock, storage)
        self.nodes: list[HollowNode] = []
        self.job_id = b""
        self.actors: list[bytes] = []
        self.groups: list[bytes] = []
        self.leases: list[Lease] = []
        self._actors_made = self._groups_made = self._leases_asked = self._rows_told = 0
        self._roomy: list[HollowNode] = []
        self._asked: dict[int, tuple[HollowNode, bytes]] = {}
        """Leases that are not granted yet, and for whom."""
        self.join(size.nodes)
        self._start_job()
        self.make_actors(size.actors)
        self.make_groups(size.groups)
        self.run_tasks(size.tasks)
        self.tell_events(size.batches)
        self.settle()
        # ends of workers in the first minute of a head are told to whoever joins: probes come later
        self.clock.run(self.clock.now + REUNION_S)

    def settle(self) -> None:
        """Until everybody knows everything."""
        views, pubsub = self.head.head.members._views, self.head.head.pubsub
        self._until(lambda: views.next_deadline() is None and pubsub.next_deadline() is None)
        self.clock.run(self.clock.now + 1.0)

    def _until(self, holds: Callable[[], bool], step_s: float = 0.05) -> None:
        """Some time after some time: a condition that looks at everything is dear."""
        end = self.clock.now + 600.0
        while not holds():
            assert self.clock.now < end, "it never comes to pass"
            self.clock.run(self.clock.now + step_s)

    # ---- nodes

    def join(self, count: int) -> None:
        """Five hundred a second."""
        members = self.head.head.members
        expected = len(members.view) + count
        for _ in range(count):
            number = len(self.head.nodes)
            sees = number % max(4, self.size.nodes // SEEING) == 0
            self.nodes.append(HollowNode(self.clock, self.head, number + 1, CPUS, sees=sees))
            self.clock.run(self.clock.now + 0.002)
        self._until(lambda: len(members.view) == expected)

    def lose_nodes(self, count: int) -> None:
        """Those that have joined last leave, one after the other."""
        for _ in range(count):
            self.nodes.pop().leave()
            self.clock.run(self.clock.now + 0.01)

    def return_nodes(self, count: int) -> None:
        """So many tell the head what they hold, as all do when it was started anew."""
        for one in self.nodes[:: max(1, len(self.nodes) // count)][:count]:
            one.register()
            self.clock.run(self.clock.now + 0.002)

    def beat(self, *, news: bool) -> None:
        """Every node within half a second; `news`: with another figure than the last time."""
        for one in self.nodes:
            if news:
                one.node.resources.version += 1
                one.node.resources.available["memory"] -= UNIT
            one.beat()
            self.clock.run(self.clock.now + 0.5 / len(self.nodes))

    # ---- a job

    def _start_job(self) -> None:
        first = self.nodes[0]
        first.register_driver(DRIVER)
        self.clock.run(lambda: bool(first.job_ids))
        self.job_id = first.job_ids[0]

    def make_actors(self, count: int) -> None:
        """Two thousand a second."""
        first = self.nodes[0]
        owner = common.Address(node_id=first.id, worker_id=DRIVER)
        made = []
        for _ in range(count):
            self._actors_made += 1
            spec = self._spec(self._actors_made, owner)
            made.append(spec.actor_id)
            first.request(DRIVER, actor_register=gcs.ActorRegister(spec=spec))
            self.clock.run(self.clock.now + 0.0005)
        records = self.head.head.actors.registry.records
        self._until(lambda: all(records[actor_id].info.state == common.ALIVE for actor_id in made))
        self.actors += made

    def _spec(self, number: int, owner: common.Address) -> common.ActorSpec:
        cls = common.SchedulingClass(job_id=self.job_id, function_name="Hollow")
        cls.resources.amounts["CPU"] = UNIT // 2
        return common.ActorSpec(
            actor_id=ids.actor_id(number.to_bytes(12, "big"), self.job_id), creation_class=cls,
            lifetime_resources=cls.resources, class_name="Hollow", namespace="scale", owner=owner,
            creation_task=bytes(300), handle=bytes(200),
        )  # fmt: skip

    def kill_actors(self, count: int) -> None:
        """Those that were made last, two thousand a second."""
        records = self.head.head.actors.registry.records
        victims, self.actors = self.actors[-count:], self.actors[:-count]
        for actor_id in victims:
            self.nodes[0].request(DRIVER, actor_kill=gcs.ActorKill(actor_id=actor_id, no_restart=True))
            self.clock.run(self.clock.now + 0.0005)
        self._until(lambda: all(actor_id not in records or records[actor_id].is_dead for actor_id in victims))

    def make_groups(self, count: int) -> None:
        """Two thousand a second, of four bundles, PACK and SPREAD in turns."""
        placement = self.head.head.placement
        for _ in range(count):
            self._groups_made += 1
            info = common.PlacementGroupInfo(
                placement_group_id=self._groups_made.to_bytes(14, "big") + self.job_id,
                creator_job_id=self.job_id, strategy=common.SPREAD if self._groups_made % 2 else common.PACK,
            )  # fmt: skip
            for _ in range(4):
                info.bundles.add().resources.amounts["CPU"] = UNIT
            self.nodes[0].request(DRIVER, group_create=gcs.GroupCreate(info=info))
            self.groups.append(info.placement_group_id)
            self.clock.run(self.clock.now + 0.0005)
        self._until(lambda: not placement.count()[1])

    def remove_groups(self, count: int) -> None:
        """Those that were made last."""
        victims, self.groups = self.groups[-count:], self.groups[:-count]
        for group_id in victims:
            remove = gcs.GroupRemove(placement_group_id=group_id)
            self.nodes[0].request(DRIVER, group_remove=remove)
            self.clock.run(self.clock.now + 0.0005)

    def run_tasks(self, count: int) -> None:
        """Leases are the raylets' affair: what reaches the head is their figures.

        Those who see others would send some on, to nodes that see nobody and could not do so in turn.
        """
        for _ in range(count):
            if not self._roomy:
                self._roomy = [one for one in self.nodes
                               if one.workers and not one.sees and one.has_cpu(UNIT)]  # fmt: skip
                assert self._roomy, "no node that sees no other has room for one more task"
            self._ask_for_lease(self._roomy.pop())
            self.clock.run(self.clock.now + 0.0002)
        self._until(self._granted)

    def _ask_for_lease(self, one: HollowNode) -> None:
        self._leases_asked += 1
        owner = common.Address(node_id=one.id, worker_id=one.workers[0])
        cls = common.SchedulingClass(job_id=self.job_id, function_name="task")
        cls.resources.amounts["CPU"] = UNIT
        lease = wire.LeaseRequest(request_id=self._leases_asked, requester=owner, scheduling_class=cls)
        self._asked[self._leases_asked] = one, owner.worker_id
        one.say(owner.worker_id, lease_request=lease)

    def _granted(self) -> bool:
        """Whether all that was asked for is granted; who has ended since does not need it."""
        for request, (one, worker_id) in list(self._asked.items()):
            if request in one.granted:
                self.leases.append((one, one.granted[request]))
            if request in one.granted or worker_id not in one.workers:
                del self._asked[request]
        return not self._asked

    def end_tasks(self, count: int) -> None:
        """Those that were begun last."""
        ended, self.leases = self.leases[-count:], self.leases[:-count]
        for one, lease_id in ended:
            one.say(one.workers[0], lease_return=wire.LeaseReturn(lease_id=lease_id, node_id=one.id))
            self.clock.run(self.clock.now + 0.0002)
        self.clock.run(self.clock.now + 1.0)

    def tell_events(self, batches: int) -> None:
        """Finished tasks, a hundred to a batch."""
        for _ in range(batches):
            rows = b"".join(self._row() for _ in range(ROWS_PER_BATCH))
            self.nodes[0].say(DRIVER, task_events=gcs.TaskEventBatch(job_id=self.job_id, rows=rows))
            self.clock.run(self.clock.now + 0.001)

    def _row(self) -> bytes:
        self._rows_told += 1
        task_id = self._rows_told.to_bytes(8, "big") + bytes(12) + self.job_id
        return events.pack_row(task_id=task_id, name="task", state="FINISHED", node_id=bytes(28),
                               worker_id=bytes(28), submitted_at=1.0, started_at=2.0, ended_at=3.0)

    def ask_status(self) -> None:
        """What `miniray status` asks."""
        self.nodes[0].request(DRIVER, status=gcs.StatusQuery())
        self.clock.run(self.clock.now + 0.02)
