"""What a program can do: the public API in miniature, for tasks, actor methods and drivers alike.

References that a context hands out live until they are dropped, or until its run ends; an actor
`keep`s what shall outlive the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.tasks import STREAMING

from .streams import SimStream
from .values import Arguments, Loaded, Named, Ref
from .world import Coroutine

if TYPE_CHECKING:
    from .executor import Run
    from .worker import SimWorker

UNIT = 10_000
NAMESPACE = "services"


class Context:
    """The calling program's view; `run` is None in a driver."""

    def __init__(self, worker: SimWorker, run: Run | None, state: dict[str, Any]) -> None:
        self.worker = worker
        self.run = run
        self.state = state
        self.rng = worker.world.rng

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def pick(self, choices: list[Any]) -> Any:
        """One of them."""
        return self.rng.choice(choices)

    @property
    def task(self) -> bytes:
        """The running task's id."""
        return self.run.push.tid if self.run is not None else b""

    def _mine(self, refs: list[Ref]) -> list[Ref]:
        if self.run is not None:
            self.run.refs.extend(refs)
        return refs

    # ---- tasks and objects

    def submit(
        self,
        program: str,
        arguments: list[Ref] | None = None,
        nested: list[Ref] | None = None,
        body: Any = None,
        *,
        returns: int = 1,
        retries: int = 3,
        retry_exceptions: bool = False,
        cpus: float = 1.0,
        priority: int = 0,
        strategy: pb.SchedulingStrategy | None = None,
    ) -> list[Ref]:
        """Submit a task; `arguments` are read before it runs, `nested` arrive as references."""
        worker = self.worker
        template = worker.cluster.template(worker, program, returns, retries, retry_exceptions)
        spec = pb.SchedulingClass(job_id=worker.job_id, function_name=program, priority=priority)
        spec.resources.amounts["CPU"] = round(cpus * UNIT)
        if strategy is not None:
            spec.strategy.CopyFrom(strategy)
        lane = worker.owner.submission.lane((cpus, priority, spec.strategy.SerializeToString()), spec)
        encoded = Arguments(body, [ref.entry for ref in arguments or ()], nested or [])
        name = f"t{worker.cluster.tasks_made()}"
        return self._mine(worker.submit(template, encoded, self.task, lane=lane, retries=retries, name=name))

    def stream(self, program: str, nested: list[Ref], retries: int = 3) -> SimStream:
        """Submit a generator; its items come one by one."""
        done = self.submit(program, nested=nested, returns=STREAMING, retries=retries)[0]
        stream: SimStream = done.entry.task.stream
        done.drop()
        return stream

    def yields(self, index: int, size: int, refs: list[Ref]) -> Coroutine:
        """A generator's next item."""
        assert self.run is not None
        yield from self.run.executor.send_item(self.run, index, size, refs)

    def put(self, size: int = 100, refs: list[Ref] | None = None) -> Coroutine:
        """Store a value; gives its reference."""
        ref = yield from self.worker.put(size, refs or [])
        self._mine([ref])
        return ref

    def get(self, refs: list[Ref]) -> Coroutine:
        """The values, `Loaded` or `Failed`; references inside belong to the run."""
        values = yield from self.worker.get(refs, self.run)
        for ref, value in zip(refs, values):
            self.worker.cluster.oracle.value_read(self.worker, ref.id, value)
            if isinstance(value, Loaded):
                self._mine(value.refs)
                if self.run is not None:
                    self.run.restored.extend(one.entry for one in value.refs)
        return values

    def wait(self, refs: list[Ref], count: int, timeout_s: float) -> Coroutine:
        """Those that are ready once `count` are, or the time is over."""
        return (yield from self.worker.wait(refs, count, timeout_s, self.run))

    def cancel(self, ref: Ref) -> None:
        """Give a task up."""
        self.worker.cancel(ref)

    def copy(self, ref: Ref) -> Ref:
        """One more reference to the same object."""
        return self._mine([Ref(self.worker, ref.entry, ref.actor)])[0]

    def drop(self, ref: Ref) -> None:
        """The reference dies now."""
        ref.drop()

    def keep(self, ref: Ref) -> Ref:
        """The reference outlives the run."""
        assert self.run is not None
        self.run.refs.remove(ref)
        return ref

    def work(self, seconds: float) -> Coroutine:
        """Compute."""
        if self.run is not None:
            self.worker.cluster.oracle.computes(self.worker)
        yield seconds

    # ---- actors

    def actor(
        self,
        program: str,
        arguments: list[Ref] | None = None,
        nested: list[Ref] | None = None,
        body: Any = None,
        **options: Any,
    ) -> Ref:
        """Make an actor; its handle is a reference with `actor` set."""
        encoded = Arguments(body, [ref.entry for ref in arguments or ()], nested or [])
        return self._mine([self.worker.actors.create(program, encoded, **options)])[0]

    def find(self, name: str) -> Coroutine:
        """The actor of that name, as `Named`, or None if there is none."""
        lookup = gcs.ActorLookup(name=name, namespace=NAMESPACE)
        reply = yield self.worker.request("actor_lookup", lookup)
        return None if reply.failure.kind else Named(reply.actor.spec.actor_id)

    def call(
        self,
        handle: Ref | Named,
        program: str,
        arguments: list[Ref] | None = None,
        nested: list[Ref] | None = None,
        body: Any = None,
        returns: int = 1,
    ) -> list[Ref]:
        """Call a method."""
        worker = self.worker
        client = worker.actors.client(handle.actor)
        template = worker.cluster.method(worker, program, returns)
        encoded = Arguments(body, [ref.entry for ref in arguments or ()], nested or [])
        name = f"t{worker.cluster.tasks_made()}"
        return self._mine(
            worker.submit(
                template, encoded, self.task, client=client, retries=client.max_task_retries, name=name
            )
        )

    def kill(self, handle: Ref | Named, no_restart: bool) -> Coroutine:
        """End an actor at once."""
        yield self.worker.request("actor_kill", gcs.ActorKill(actor_id=handle.actor, no_restart=no_restart))

    # ---- keys

    def write_key(self, key: bytes, value: bytes | None) -> Coroutine:
        """Set a key that all drivers share, or with None delete it."""
        world = self.worker.cluster.world
        write = self.worker.cluster.oracle.registers.writing(world.now, key, value)
        if value is None:
            reply = yield self.worker.request("kv_delete", gcs.KvDelete(key=key))
        else:
            reply = yield self.worker.request("kv_put", gcs.KvPut(key=key, value=value, overwrite=True))
        if not reply.failure.kind:
            write.end = world.now

    def read_key(self, key: bytes) -> Coroutine:
        """Read it."""
        start = self.worker.cluster.world.now
        reply = yield self.worker.request("kv_get", gcs.KvGet(key=key))
        if not reply.failure.kind:
            value = reply.kv.value if reply.kv.found else None
            self.worker.cluster.oracle.key_read(self.worker, key, value, start)

    # ---- placement groups

    def group(self, bundles: list[float], strategy: int) -> Coroutine:
        """Make a placement group of bundles with so many CPUs each; gives its id."""
        worker = self.worker
        number = worker.cluster.next_number()
        group_id = number.to_bytes(14, "little") + worker.job_id
        worker.world.call_it(group_id, f"pg{number}")
        info = pb.PlacementGroupInfo(
            placement_group_id=group_id, strategy=strategy, creator_job_id=worker.job_id
        )
        for index, cpus in enumerate(bundles):
            info.bundles.add(index=index).resources.amounts["CPU"] = round(cpus * UNIT)
        yield worker.request("group_create", gcs.GroupCreate(info=info))
        return group_id

    def remove_group(self, group_id: bytes) -> Coroutine:
        """Remove it."""
        yield self.worker.request("group_remove", gcs.GroupRemove(placement_group_id=group_id))

    def bundle(self, group_id: bytes, index: int) -> pb.SchedulingStrategy:
        """The strategy of a task that runs in a bundle."""
        strategy = pb.SchedulingStrategy()
        strategy.bundle.placement_group_id = group_id
        strategy.bundle.bundle_index = index
        return strategy

    def request(self, field: str, message: Any) -> Coroutine:
        """Any other request to the GCS; gives its reply."""
        return (yield self.worker.request(field, message))
