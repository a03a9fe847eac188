"""The records of all actors: found by id, name, owner, job, node and placement group.

Part of `core.actors`, which owns the life cycle; here is only who exists, where, and what is
saved and published of it. Names belong to actors that are not told to end. Rows: `actor` holds
the public row, `actor_task` the constructor call, which is dropped when the actor is dead. Dead
actors are remembered up to `DEAD_KEPT`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core import resources as res
from miniray.core.desk import Desk, Refusal, short
from miniray.core.policy import demand_of
from miniray.core.pubsub import PubSub
from miniray.core.resources import Resources

TABLE = "actor"
TASK_TABLE = "actor_task"

DEAD_KEPT = 10_000
"""Dead actors remembered; the oldest are forgotten first."""


class ActorRecord:
    """One actor at the GCS; `info` is its public row, without the constructor call."""

    __slots__ = (
        "alive_at", "creation_task", "demand", "info", "keep", "node_id", "not_before",
        "placement", "shape", "young_deaths",
    )  # fmt: skip

    def __init__(self, info: pb.ActorInfo, creation_task: bytes) -> None:
        self.info = info
        self.creation_task = creation_task
        creation = info.spec.creation_class
        self.demand: Resources = demand_of(creation)
        self.keep: Resources = demand_of(creation, res.demand_from_map(info.spec.lifetime_resources))
        """What it holds once its constructor has run."""
        # equal shapes find a node, or none, together; those of a job take turns with other jobs'
        shape = pb.SchedulingClass(
            resources=creation.resources, strategy=creation.strategy, priority=info.spec.priority,
            job_id=self.job_id,
        )  # fmt: skip
        self.shape: bytes = shape.SerializeToString(deterministic=True)
        self.node_id = b""
        """Where it runs or is being created; b"" while it waits and when it is dead."""
        self.placement = 0
        """Number of its placement at `Members`."""
        self.not_before = 0.0
        self.alive_at = float("-inf")
        self.young_deaths = 0

    @property
    def id(self) -> bytes:
        """The actor's id."""
        return self.info.spec.actor_id

    @property
    def job_id(self) -> bytes:
        """The job inside its id."""
        return self.id[-ids.JOB_ID_SIZE :]

    @property
    def group_id(self) -> bytes:
        """The placement group it is bound to; b"" for none."""
        return self.info.spec.creation_class.strategy.bundle.placement_group_id

    @property
    def is_dead(self) -> bool:
        """It will never run again."""
        return self.info.state == pb.DEAD

    @property
    def is_starting(self) -> bool:
        """A node was told to create it and has not answered."""
        return bool(self.node_id) and self.info.state in (pb.PENDING_CREATION, pb.RESTARTING)

    def hosted_by(self, address: pb.Address) -> bool:
        """Whether the worker is the one that runs, or was about to run, the actor."""
        if self.node_id != address.node_id:
            return False
        return self.is_starting or self.info.address.worker_id == address.worker_id


class Index:
    """Actor (or worker) ids by some key, in order of arrival; empty groups vanish."""

    __slots__ = ("groups",)

    def __init__(self) -> None:
        self.groups: dict[bytes, dict[bytes, None]] = {}

    def add(self, key: bytes, actor_id: bytes) -> None:
        """File the actor under `key`; an empty key is no key."""
        if key:
            self.groups.setdefault(key, {})[actor_id] = None

    def discard(self, key: bytes, actor_id: bytes) -> None:
        """Take it out again, if it is there."""
        group = self.groups.get(key)
        if group is not None:
            group.pop(actor_id, None)
            if not group:
                del self.groups[key]

    def of(self, key: bytes) -> list[bytes]:
        """A copy: the caller may change the index while it goes through it."""
        return list(self.groups.get(key, ()))


class ActorRegistry:
    """See the module head."""

    def __init__(self, desk: Desk, pubsub: PubSub) -> None:
        self._desk = desk
        self._pubsub = pubsub
        self.records: dict[bytes, ActorRecord] = {}
        self.dead: dict[bytes, None] = {}
        self.by_owner = Index()
        """Actors that end with their creator, by its worker id."""
        self._owners = Index()
        """Those creators, by their node."""
        self.by_job = Index()
        self.by_node = Index()
        self.by_group = Index()
        self._names: dict[tuple[str, str], bytes] = {}

    # ---- coming and going

    def add(self, record: ActorRecord) -> None:
        """A new or restored actor."""
        self.records[record.id] = record
        if record.is_dead:
            self.dead[record.id] = None
            return
        spec = record.info.spec
        if spec.name and record.info.ending != "final":
            self._names[(spec.namespace, spec.name)] = record.id
        self.by_job.add(record.job_id, record.id)
        self.by_group.add(record.group_id, record.id)
        if not spec.detached:
            self.by_owner.add(spec.owner.worker_id, record.id)
            self._owners.add(spec.owner.node_id, spec.owner.worker_id)

    def save_new(self, record: ActorRecord) -> None:
        """Write the constructor call, once, and the row."""
        self._desk.persist(TASK_TABLE, record.id, record.creation_task)
        self.save(record)

    def assign(self, record: ActorRecord, node_id: bytes) -> None:
        """The actor is, or will be, on this node."""
        record.node_id = node_id
        record.info.address.node_id = node_id
        self.by_node.add(node_id, record.id)

    def unassign(self, record: ActorRecord) -> None:
        """It is on no node any more; a dead actor's row keeps its last address."""
        self.by_node.discard(record.node_id, record.id)
        record.node_id = b""
        if not record.is_dead:
            record.info.ClearField("address")
            record.info.pid = 0

    def retire(self, record: ActorRecord) -> None:
        """The actor is dead: only its row stays, for a while."""
        self.unassign(record)
        self.free_name(record)
        self.by_job.discard(record.job_id, record.id)
        self.by_group.discard(record.group_id, record.id)
        self._disown(record.info.spec.owner, record.id)
        record.creation_task = b""
        self.dead[record.id] = None
        self._desk.persist(TASK_TABLE, record.id, None)
        self.save(record)
        self.publish(record)
        while len(self.dead) > DEAD_KEPT:
            oldest = next(iter(self.dead))
            del self.dead[oldest], self.records[oldest]
            self._desk.persist(TABLE, oldest, None)

    def _disown(self, owner: pb.Address, actor_id: bytes) -> None:
        self.by_owner.discard(owner.worker_id, actor_id)
        if owner.worker_id not in self.by_owner.groups:
            self._owners.discard(owner.node_id, owner.worker_id)

    def free_name(self, record: ActorRecord) -> None:
        """Another actor may take its name from now on."""
        spec = record.info.spec
        if self._names.get((spec.namespace, spec.name)) == record.id:
            del self._names[(spec.namespace, spec.name)]

    def save(self, record: ActorRecord) -> None:
        """Write the row."""
        self._desk.persist(TABLE, record.id, record.info.SerializeToString())

    def publish(self, record: ActorRecord) -> None:
        """Tell its subscribers."""
        self._pubsub.published("actor", record.id, actor=record.info)

    # ---- finding

    def named(self, namespace: str, name: str) -> ActorRecord | None:
        """Who has this name."""
        actor_id = self._names.get((namespace, name))
        return self.records[actor_id] if actor_id is not None else None

    def find(self, request: gcs.ActorLookup) -> ActorRecord:
        """By id, or by name and namespace. Raises Refusal when there is none."""
        if request.actor_id:
            record = self.records.get(request.actor_id)
            what = f"actor {short(request.actor_id)}"
        else:
            record = self.named(request.namespace, request.name)
            what = f"actor named {request.name!r} in namespace {request.namespace!r}"
        if record is None:
            raise Refusal(pb.NOT_FOUND, f"there is no {what}: it has ended, or was never made")
        return record

    def listed(self, request: gcs.ActorList) -> list[ActorRecord]:
        """All actors, or those of a namespace, with a name, not dead."""
        records: Iterable[ActorRecord] = self.records.values()
        if request.named_only:
            records = [self.records[actor_id] for actor_id in self._names.values()]
        return [
            record
            for record in records
            if (request.all_namespaces or record.info.spec.namespace == request.namespace)
            and not (request.alive_only and record.is_dead)
        ]

    def owned_from(self, node_id: bytes) -> list[bytes]:
        """Worker ids on this node that own actors."""
        return self._owners.of(node_id)

    def check(self) -> None:
        """Assert that rows, names and indices agree."""
        for actor_id, record in self.records.items():
            assert record.is_dead == (actor_id in self.dead), f"{short(actor_id)} half dead"
            assert not (record.is_dead and (record.node_id or record.creation_task))
            assert not record.node_id or actor_id in self.by_node.groups[record.node_id]
        for name, actor_id in self._names.items():
            spec = self.records[actor_id].info.spec
            assert (spec.namespace, spec.name) == name and actor_id not in self.dead
        for node_id, group in self.by_node.groups.items():
            assert group and all(self.records[actor_id].node_id == node_id for actor_id in group)
        owners = [worker_id for group in self._owners.groups.values() for worker_id in group]
        assert sorted(owners) == sorted(self.by_owner.groups), "creators and their nodes disagree"
        for index in (self.by_owner, self.by_job, self.by_group):
            assert all(actor_id not in self.dead for group in index.groups.values() for actor_id in group)
