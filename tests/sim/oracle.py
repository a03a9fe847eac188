"""What was promised and what was seen: told by the shells as it happens, raises `Violation`.

It changes nothing and draws no random numbers. Safety while the cluster runs:

- a reference has one value for ever, the same for every reader, and it is its own; what has raised
  has no value, and what has a value was run;
- a body runs at most once without retries and at most 1 + n times with n (bounces do not count);
- an actor starts again at most as often as it may, drained nodes aside;
- one caller's calls start in the order they were made, in each life of an actor;
- keys of the store are registers (`registers`), and what is saved is known after a restart;
- no object is freed while a reference to it lives in a process its owner takes for alive, unless
  the process that the reference came from has died, or the reference is a constructor's argument in
  the process of an actor that is dead by now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray.core import ids
from miniray.core.directory import Address
from miniray.core.tasks import TaskRecord

from .registers import Registers
from .values import Failed, Loaded, UserError, Value
from .world import Violation, World

if TYPE_CHECKING:
    from .executor import Run
    from .worker import SimWorker

SYSTEM_ERRORS = (
    pb.WORKER_DIED, pb.NODE_DIED, pb.ACTOR_DIED, pb.ACTOR_UNSCHEDULABLE, pb.OBJECT_LOST, pb.OWNER_DIED,
    pb.TASK_CANCELLED, pb.PLACEMENT_GROUP_REMOVED, pb.INFEASIBLE, pb.UNAVAILABLE, pb.USER_ERROR,
    pb.INVALID_ARGUMENT, pb.STORE_FULL, pb.OUT_OF_DISK,
)  # fmt: skip
"""What a `get` may end with under faults; anything else is a bug."""


class Task:
    """One task or call, as its caller made it."""

    __slots__ = ("caller", "order", "retries", "starts")

    def __init__(self, caller: Address, retries: int, order: int) -> None:
        self.caller = caller
        self.retries = retries
        self.order = order
        self.starts: list[str] = []


class Oracle:
    """See the module head."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tasks: dict[bytes, Task] = {}
        self.outcomes: dict[bytes, tuple[Any, int]] = {}
        """Object -> the note of its value, and how often its task had been started then."""
        self.raised: dict[bytes, None] = {}
        self.registers = Registers()
        self.live: dict[bytes, dict[SimWorker, int]] = {}
        """Object -> processes with live references."""
        self.handles: dict[bytes, bytes] = {}
        """Actor -> the object that its handles carry."""
        self.detached: dict[bytes, bool] = {}
        """Detached actors that nobody has ended: whether the head has acknowledged them."""
        self.drained = 0
        """Nodes that were told to leave: what that moves costs no restart."""
        self.read = 0
        self.errors: dict[str, int] = {}
        self._dead_actors: dict[bytes, None] = {}
        """Whose creators know of it."""
        self._ended: dict[bytes, None] = {}
        self._sources: dict[tuple[bytes, bytes], dict[Address, None]] = {}
        """(process, object) -> processes that its references came from."""
        self._orders: dict[tuple[Address, bytes], int] = {}
        self._last_started: dict[tuple[bytes, Address], int] = {}
        self._struck: dict[tuple[bytes, Address], None] = {}
        """(process, other) whose death it was told of."""

    def fail(self, text: str, *keys: bytes) -> None:
        """A promise was broken; `keys` are the ids to look for in the trace."""
        names = " ".join(self.world.name(key) for key in keys)
        raise Violation(f"{text} [{names}]" if names else text)

    # ---- tasks

    def task_submitted(self, worker: SimWorker, record: TaskRecord, retries: int) -> None:
        """A program submitted a task, or called an actor."""
        order = 0
        if record.client is not None:
            key = (worker.address, record.client.id)
            order = self._orders[key] = self._orders.get(key, 0) + 1
        self.tasks[record.id] = Task(worker.address, retries, order)
        self.world.note(
            worker.name,
            f"submits {self.world.name(record.id)} {record.template.name} "
            f"needs {[self.world.name(e.id) for e in record.dependencies or ()]}",
        )

    def body_started(self, worker: SimWorker, run: Run) -> None:
        """A body begins to run."""
        push = run.push
        task = self.tasks.get(push.tid)
        self.world.note(worker.name, f"runs {self.world.name(push.tid)} attempt {push.attempt}")
        if task is None:
            return  # a constructor
        task.starts.append(worker.name)
        if task.retries >= 0 and len(task.starts) > 1 + task.retries:
            self.fail(
                f"{self.world.name(push.tid)} may run {1 + task.retries} times, runs on {task.starts}",
                push.tid,
            )
        executor = run.executor
        if executor.spec is not None and executor.width == 1:
            key = (worker.id, run.caller)
            last = self._last_started.get(key, 0)
            if task.order <= last:
                self.fail(
                    f"call {task.order} of one caller starts after its call {last}",
                    push.tid,
                    executor.spec.actor_id,
                )
            self._last_started[key] = task.order

    def computes(self, worker: SimWorker) -> None:
        """A program uses its CPU."""

    def actor_made(self, worker: SimWorker, spec: pb.ActorSpec, handle: bytes) -> None:
        """A program makes an actor, whose handles carry the object `handle`."""
        self.handles[spec.actor_id] = handle
        if spec.detached:
            self.detached[spec.actor_id] = False
        self.world.note(worker.name, f"makes {self.world.name(spec.actor_id)} restarts {spec.max_restarts}")

    def actor_started(self, worker: SimWorker, spec: pb.ActorSpec, attempt: int) -> None:
        """A process becomes an actor, which has been started `attempt` times before."""
        self.world.note(worker.name, f"is {self.world.name(spec.actor_id)} attempt {attempt}")
        if 0 <= spec.max_restarts < attempt - self.drained:
            self.fail(f"it may start again {spec.max_restarts} times, not {attempt}", spec.actor_id)

    def actor_died(self, actor_id: bytes) -> None:
        """Its creator learns that it is dead, and lets go of what its constructor took."""
        self._dead_actors[actor_id] = None

    # ---- values

    def value_read(self, worker: SimWorker, oid: bytes, outcome: Loaded | Failed) -> None:
        """A `get` gave this."""
        self.read += 1
        if isinstance(outcome, Failed):
            error = outcome.error
            if isinstance(error, UserError):
                self.errors["raised"] = self.errors.get("raised", 0) + 1
                self.raised[oid] = None
                if oid in self.outcomes:
                    self.fail("it had a value, and now it has raised", oid)
                return
            kind = pb.ErrorKind.Name(error.kind)
            self.errors[kind] = self.errors.get(kind, 0) + 1
            self.world.note(worker.name, f"gets {self.world.name(oid)}: {kind} {error.message}")
            if error.kind not in SYSTEM_ERRORS:
                self.fail(f"get ended with {kind}: {error.message!r}", oid)
        else:
            self._is_value_of(oid, outcome.value)

    def argument_read(self, worker: SimWorker, oid: bytes, value: Value) -> None:
        """A task read an argument."""
        self._is_value_of(oid, value)

    def _is_value_of(self, oid: bytes, value: Value) -> None:
        if value.tag != oid:
            self.fail(f"its value is that of {self.world.name(value.tag)}", oid)
        if oid in self.raised:
            self.fail("it has raised, and now it has a value", oid)
        task = self.task_of(oid)
        if task is not None and not task.starts:
            self.fail("it has a value, and its task never ran", oid)
        starts = len(task.starts) if task is not None else 0
        known, starts_then = self.outcomes.setdefault(oid, (value.note, starts))
        if known != value.note and starts > starts_then and value.note is not None:
            self.outcomes[oid] = (value.note, starts)   # a lost result of an actor was made again
        elif known != value.note:
            self.fail(f"it had the value {known}, now it has {value.note}", oid)

    # ---- keys and saved rows

    def key_read(self, worker: SimWorker, key: bytes, value: Any, start: float) -> None:
        """A driver has read a key, from `start` until now."""
        wrong = self.registers.read(key, value, start, self.world.now)
        if wrong:
            self.fail(f"{worker.name}: {wrong}")

    # ---- references

    def ref_added(self, worker: SimWorker, oid: bytes, source: Address | None) -> None:
        """A reference is alive. It came from the process `source`, which must outlive the introduction."""
        if source is not None:
            self._sources.setdefault((worker.id, oid), {})[source] = None
        holders = self.live.setdefault(oid, {})
        holders[worker] = holders.get(worker, 0) + 1
        if holders[worker] == 1:
            self.world.note(worker.name, f"holds {self.world.name(oid)}")

    def ref_dropped(self, worker: SimWorker, oid: bytes) -> None:
        """It is not."""
        holders = self.live[oid]
        holders[worker] -= 1
        if not holders[worker]:
            self.world.note(worker.name, f"drops {self.world.name(oid)}")
            del holders[worker]
            self._sources.pop((worker.id, oid), None)
            if not holders:
                del self.live[oid]

    def worker_ended(self, worker: SimWorker) -> None:
        """Its references die with a process."""
        self._ended[worker.id] = None
        for oid in [oid for oid, holders in self.live.items() if worker in holders]:
            del self.live[oid][worker]
            self._sources.pop((worker.id, oid), None)
            if not self.live[oid]:
                del self.live[oid]

    def told_of_death(self, worker: SimWorker, other: Address) -> None:
        """From now on the process takes the other one for dead, right or wrong."""
        self._struck[(worker.id, other)] = None

    def freed(self, worker: SimWorker, oid: bytes) -> None:
        """The owner frees the object."""
        self.world.note(worker.name, f"frees {self.world.name(oid)}")
        self._must_not_live(worker, oid, "was freed")

    def asked_for_freed(self, worker: SimWorker, oid: bytes, asker: Address) -> None:
        """Somebody asks the owner for an object that it has forgotten."""
        self._must_not_live(worker, oid, "was forgotten by its owner")

    def borrow_refused(self, worker: SimWorker, oid: bytes, borrower: Address) -> None:
        """Somebody borrows an object that its owner has forgotten."""
        self._must_not_live(worker, oid, "was forgotten by its owner")

    def came_home_freed(self, worker: SimWorker, oid: bytes, source: Address) -> None:
        """The owner gets a reference to its own object that it has forgotten."""
        if source[1] not in self._ended:
            self.fail("a reference came home, and its object was freed", oid)

    def _must_not_live(self, owner: SimWorker, oid: bytes, what: str) -> None:
        for holder in self.live.get(oid, ()):
            if holder is not owner and (owner.id, holder.address) in self._struck:
                continue
            if self._is_actors_past(holder, oid):
                continue
            if any(source[1] in self._ended for source in self._sources.get((holder.id, oid), ())):
                continue    # whoever kept the object for this reference has died on the way
            self.fail(f"{self.world.name(oid)} {what} while {holder.name} holds a reference", oid)

    def _is_actors_past(self, holder: SimWorker, oid: bytes) -> bool:
        """Its creator kept the object for the constructor, until the actor was dead; its process ends."""
        spec = holder.actor
        if spec is None or spec.actor_id not in self._dead_actors:
            return False
        owner = spec.owner
        return (owner.node_id, owner.worker_id) in self._sources.get((holder.id, oid), ())

    def task_of(self, oid: bytes) -> Task | None:
        """The task that makes an object."""
        return self.tasks.get(ids.task_of_object(oid))
