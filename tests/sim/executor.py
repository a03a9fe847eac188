"""What runs in a worker process: tasks one by one, or one actor's calls.

The counterpart of `runtime.executor`: programs are coroutines, a `Run` is one execution. Rules
kept from there: a worker that blocks, or whose task takes long, bounces the plain tasks behind
it; arguments are pinned until the end; owners hear of references that outlive the task before
the reply leaves; a cancelled task stops where it waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import worker_pb2 as wire
from miniray.core import ids
from miniray.core.directory import FAILED, INLINE, STORED, Address, ObjectEntry
from miniray.core.owner import Result

from .context import Context
from .values import INLINE_LIMIT, Failed, Inside, Loaded, Raised, Ref, UserError, Value
from .world import Coroutine, Future

if TYPE_CHECKING:
    from .worker import SimWorker

HELD_UP_S = 0.010


class Push:
    """One task or call as it arrived."""

    __slots__ = ("attempt", "body", "call", "name", "nested", "returns", "slots", "tid")

    def __init__(
        self,
        call: int,
        tid: bytes,
        attempt: int,
        name: str,
        returns: int,
        slots: tuple[Any, ...],
        nested: tuple[Inside, ...],
        body: Any,
    ) -> None:
        self.call = call
        self.tid = tid
        self.attempt = attempt
        self.name = name
        self.returns = returns
        self.slots = slots
        self.nested = nested
        self.body = body


class Run:
    """One execution of a program."""

    def __init__(self, executor: Executor, caller: Address, push: Push) -> None:
        self.executor = executor
        self.caller = caller
        self.push = push
        self.outcome = Future()
        self.refs: list[Ref] = []
        """References that die with the run."""
        self.restored: list[ObjectEntry] = []
        self.held: list[ObjectEntry] = []
        self.cancelled = False
        self._blocked_on: Future | None = None

    def still_waits(self, future: Future) -> None:
        """It has waited for a while: its CPU and its queue are for others."""
        if future.is_set or self.cancelled or self._blocked_on is not None:
            return
        self._blocked_on = future
        self.executor.blocked()

    def goes_on(self) -> None:
        """What it waited for has come."""
        if self._blocked_on is not None:
            self._blocked_on = None
            self.executor.unblocked()


class Executor:
    """One per worker process."""

    def __init__(self, worker: SimWorker) -> None:
        self.worker = worker
        self.world = worker.world
        self.queue: list[tuple[Address, Push]] = []
        self.running: list[Run] = []
        self.spec: pb.ActorSpec | None = None
        self.attempt = 0
        self.state: dict[str, Any] = {}
        """The actor's own."""
        self.width = 1
        self._blocked = 0
        self._exit: wire.Exit | None = None
        self._is_created = False

    # ---- what arrives

    def pushed(self, caller: Address, fields: tuple[Any, ...]) -> None:
        """A task or call came in."""
        push = Push(*fields)
        if self._blocked and self.spec is None:
            self.worker.peers.send(caller, ("bounce", (push.call,)))
            return
        self.queue.append((caller, push))
        self._next()
        if self.spec is None and self.queue:
            self.world.after(HELD_UP_S, self._held_up, self.running[0])

    def _held_up(self, run: Run) -> None:
        if run in self.running and self.worker.alive:
            self._bounce()
            self.worker.end_turn()

    def _bounce(self) -> None:
        if self.spec is not None:
            return
        calls: dict[Address, list[int]] = {}
        for caller, push in self.queue:
            calls.setdefault(caller, []).append(push.call)
        self.queue.clear()
        for caller, numbers in calls.items():
            self.worker.peers.send(caller, ("bounce", tuple(numbers)))

    def cancelled(self, caller: Address, call: int) -> None:
        """A caller gives a call up."""
        for item in self.queue:
            if item[0] == caller and item[1].call == call:
                self.queue.remove(item)
                error = Result(FAILED, pb.Failure(kind=pb.TASK_CANCELLED, message="cancelled"))
                self._reply(caller, call, 0.0, [error] * max(1, item[1].returns), [])
                return
        for run in self.running:
            if run.caller == caller and run.push.call == call and self.spec is None:
                run.cancelled = True
                run.goes_on()
                run.outcome.set(Failed(pb.Failure(kind=pb.TASK_CANCELLED, message="cancelled")))

    def exit_requested(self, message: wire.Exit) -> None:
        """The raylet wants this process to end: at once, or when nothing is left to do."""
        if message.if_unneeded and (self.worker.owner.lends or self.worker.owner.unfinished):
            self.worker.tell_raylet(wire.ToRaylet(exit_refused=wire.ExitRefused()))
            return
        self._exit = message
        if not message.graceful:
            self.worker.leave(message.reason)
        else:
            self._next()

    # ---- blocking

    def blocked(self) -> None:
        """A task of this worker waits."""
        self._blocked += 1
        if self._blocked == 1:
            self._bounce()
            self._tell_blocked(True)

    def unblocked(self) -> None:
        """It goes on."""
        self._blocked -= 1
        if not self._blocked:
            self._tell_blocked(False)

    def _tell_blocked(self, is_blocked: bool) -> None:
        self.worker.tell_raylet(wire.ToRaylet(blocked=wire.WorkerBlocked(blocked=is_blocked)))
        self.worker.end_turn()

    @property
    def is_blocked(self) -> bool:
        """Whether its CPUs are lent to others."""
        return self._blocked > 0

    # ---- running

    def _next(self) -> None:
        if self.spec is not None and not self._is_created:
            return
        while self.queue and len(self.running) < self.width:
            caller, push = self.queue.pop(0)
            run = Run(self, caller, push)
            self.running.append(run)
            self.world.spawn(self._execute(run), lambda: self.worker.alive)
        if self._exit is not None and not self.running and not self.queue:
            self.worker.leave(self._exit.reason)

    def _execute(self, run: Run) -> Coroutine:
        push, started = run.push, self.world.now
        guarded = self._guarded(run)
        self.world.spawn(guarded, lambda: self.worker.alive and not run.cancelled).then(run.outcome.set)
        outcome = yield run.outcome
        if isinstance(outcome, Failed):
            results = [Result(FAILED, outcome.error, 1)] * max(1, push.returns)
        else:
            results = yield from self._results(run, outcome)
        for ref in run.refs:
            ref.drop()
        for entry in run.held:
            self.worker.owner.ownership.unpinned(entry)
        yield from self._settle(run)
        retained = self.worker.owner.ownership.retained(run.restored, run.caller)
        self.running.remove(run)
        if retained:
            names = " ".join(map(self.world.name, retained))
            self.world.note(self.worker.name, f"retains {names} after {self.world.name(push.tid)}")
        self._reply(run.caller, push.call, (self.world.now - started) * 1e6, results, retained)
        self._next()
        self.worker.end_turn()

    def _guarded(self, run: Run) -> Coroutine:
        """The body with everything that can go wrong in it turned into a value."""
        push = run.push
        arguments = yield from self._decode(run)
        if isinstance(arguments, Failed):
            return arguments
        context = Context(self.worker, run, self.state)
        self.worker.cluster.oracle.body_started(self.worker, run)
        try:
            return (yield from self.worker.cluster.programs[push.name](context, push.body, arguments))
        except Raised as error:
            return Failed(UserError(push.tid, error.text))

    def _decode(self, run: Run) -> Coroutine:
        """The arguments: `Loaded` values and, in a list at the end, the nested references."""
        worker = self.worker
        nested = [worker.restored(inside, run.caller) for inside in run.push.nested]
        run.refs.extend(nested)
        run.restored.extend(ref.entry for ref in nested)
        arguments: list[Any] = []
        for state, oid, owner, value, size, nodes in run.push.slots:
            if state == FAILED:
                return Failed(value)
            entry = self._holder(oid, owner, state, size, nodes)
            run.held.append(entry)
            if state == INLINE:
                loaded: Any = self.load(run, entry, value)
            else:
                loaded = yield from worker.read(entry, run)
                if isinstance(loaded, Failed):
                    return loaded
                self.take(run, loaded)
            worker.cluster.oracle.argument_read(worker, oid, loaded.value)
            arguments.append(loaded)
        arguments.append(nested)
        return arguments

    def _holder(
        self, oid: bytes, owner: Address, state: int, size: int, nodes: tuple[bytes, ...]
    ) -> ObjectEntry:
        """The pinned entry of an argument object; the caller keeps the object until the reply."""
        worker = self.worker
        directory = worker.owner.directory
        entry = directory.find(oid)
        if entry is None:
            entry = directory.know(oid, None if owner == worker.address else owner)
        entry.pins += 1
        if state == STORED and not entry.ready:
            for node in nodes:
                entry.more().locations[node] = None
            worker.owner.complete(self.world.now, entry, STORED, None, size)
        return entry

    def load(self, run: Run, entry: ObjectEntry, value: Value) -> Loaded:
        """Deserialize; the references inside live as long as the run."""
        loaded = self.worker.load(entry, value)
        self.take(run, loaded)
        return loaded

    def take(self, run: Run, loaded: Any) -> None:
        """The references in a value that a run has read are the run's."""
        if isinstance(loaded, Loaded):
            run.refs.extend(loaded.refs)
            run.restored.extend(ref.entry for ref in loaded.refs)

    # ---- results

    def _results(self, run: Run, outcome: Any) -> Coroutine:
        """Results of a program that returned (size, note, refs) per return."""
        results = []
        for index, one in enumerate(outcome):
            results.append((yield from self._result(run, index + 1, *one)))
        return results

    def _result(self, run: Run, index: int, size: int, note: Any, refs: list[Ref]) -> Coroutine:
        oid = ids.object_id(run.push.tid, index)
        value = Value(oid, size, tuple(ref.inside() for ref in refs), note)
        contents: tuple[Any, ...] = ()
        if refs:
            names = " ".join(self.world.name(ref.id) for ref in refs)
            self.world.note(self.worker.name, f"returns {self.world.name(oid)} with {names} inside")
            yield from self._introduce([ref.entry for ref in refs], run.caller)
            contents = tuple((ref.id, ref.entry.owner or self.worker.address) for ref in refs)
        if size > INLINE_LIMIT:
            yield from self.worker.store(oid, value, run.caller)
            return Result(STORED, None, size, contents)
        return Result(INLINE, value, size, contents)

    def send_item(self, run: Run, index: int, size: int, refs: list[Ref]) -> Coroutine:
        """One item of a generator to the owner."""
        result = yield from self._result(run, index + 2, size, None, refs)
        self.worker.peers.send(run.caller, ("item", run.push.call, index, result))
        self.worker.end_turn()

    def _introduce(self, entries: list[ObjectEntry], caller: Address) -> Coroutine:
        """Before references leave in a result, their owners learn that the caller holds them."""
        pending = Pending()
        for entry in entries:
            if not self.worker.owner.ownership.introduce(entry, caller, pending):
                pending.remaining += 1
        yield from pending.wait(self.worker)

    def _settle(self, run: Run) -> Coroutine:
        """Owners other than the caller know of what outlives the task before the reply."""
        pending = Pending()
        pending.remaining += self.worker.owner.ownership.outlived(run.restored, run.caller, pending)
        yield from pending.wait(self.worker)

    def _reply(
        self, caller: Address, call: int, spent_us: float, results: list[Result], retained: list[bytes]
    ) -> None:
        self.worker.peers.send(caller, ("reply", call, spent_us, tuple(results), tuple(retained)))
        self.worker.end_turn()

    # ---- actors

    def start_actor(self, message: wire.StartActor) -> None:
        """This process becomes an actor."""
        self.spec = message.spec
        self.attempt = message.attempt
        self.width = max(1, message.spec.max_concurrency)
        self.worker.cluster.oracle.actor_started(self.worker, message.spec, message.attempt)
        self.world.spawn(self._construct(message), lambda: self.worker.alive)

    def _construct(self, message: wire.StartActor) -> Coroutine:
        spec = message.spec
        owner = (spec.owner.node_id, spec.owner.worker_id)
        name, tid, slots, nested, body = self.worker.cluster.kept(spec.creation_task)
        run = Run(self, owner, Push(0, tid, message.attempt, name, 0, slots, nested, body))
        self.world.spawn(self._guarded(run), lambda: self.worker.alive).then(run.outcome.set)
        outcome = yield run.outcome
        for ref in run.refs:
            ref.drop()
        for entry in run.held:
            self.worker.owner.ownership.unpinned(entry)
        yield from self._settle(run)
        ready = wire.ActorReady(actor_id=spec.actor_id, attempt=message.attempt)
        if isinstance(outcome, Failed):
            ready.failure.kind = pb.USER_ERROR
            ready.failure.message = outcome.text
        self.worker.tell_raylet(wire.ToRaylet(actor_ready=ready))
        if isinstance(outcome, Failed):
            self.worker.leave("the actor's constructor failed")
            return
        self._is_created = True
        self._next()
        self.worker.end_turn()


class Pending:
    """Answers of owners that a reply waits for."""

    def __init__(self) -> None:
        self.remaining = 0
        self._future = Future()

    def notify(self, entry: Any) -> None:
        """One has come."""
        self.remaining -= 1
        if self.remaining <= 0:
            self._future.set()

    def wait(self, worker: SimWorker) -> Coroutine:
        """Until all have come."""
        worker.end_turn()
        if self.remaining > 0:
            yield self._future
