"""`init(local_mode=True)`: tasks and actors run in the driver's own process, for debugging.

A session is started as always, and objects, names, placement groups and the cluster's tables are
its own. Only what executes differs: a task, an actor's constructor and a call of an actor run at
`.remote()`, on the caller's thread, so that a breakpoint stops where it is set and a debugger sees
every frame. Arguments and results are pickled as on their way to a worker, so programs cannot
come to depend on shared state; errors are kept for `get`. Nothing runs in parallel, resources are
not waited for, and `runtime_env` and `max_calls` are without effect.

Coroutines of asyncio actors run on an event loop of the actor's, in a thread, since they may wait
for one another. Generators are resumed when their next item is asked for.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import ids
from miniray.core.directory import FAILED, INLINE, PENDING, STORED, ObjectEntry
from miniray.core.owner import Result
from miniray.core.tasks import DYNAMIC, MethodTemplate, TaskTemplate
from miniray.exceptions import ActorDiedError, RayTaskError, TaskCancelledError
from miniray.ids import ObjectRef, TaskID
from miniray.runtime import actor_exit, local_objects, returns, values
from miniray.runtime.definitions import scheduling_class
from miniray.runtime.errors import dependency_error, pack_exception, task_error
from miniray.runtime.local_mode_actors import Call, LocalActor, LocalActors
from miniray.runtime.packed import Serialized
from miniray.runtime.task_context import (
    CURRENT,
    NO_LEASE,
    Assignment,
    ExitActor,
    TaskContext,
    TaskHost,
    bound_method,
)
from miniray.runtime.worker import INLINE_LIMIT, CoreWorker


class ArgumentFailed(Exception):
    """A call cannot start: this is the error of one of its arguments."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class LocalExecutor(TaskHost):
    """What the library asks of an executor, where calls run on their callers' threads."""

    worker: LocalWorker
    attempt = 0

    def leave_soon(self) -> None:
        """`exit_actor()` was called: what it raises ends the actor."""

    @property
    def assignment(self) -> Assignment:
        """What the running task holds: nothing."""
        return NO_LEASE

    @property
    def actor_spec(self) -> pb.ActorSpec | None:
        """The actor that runs on this thread or coroutine."""
        context = CURRENT.get()
        actor = self.worker.actors.find(context.actor_id) if context is not None else None
        return actor.spec if actor is not None else None

    def on_task_thread(self) -> bool:
        """False: nobody else could use the CPU of a task that waits."""
        return False

    def tick(self, now: float) -> None:
        """Nothing waits here."""

    def stop(self) -> None:
        """The library shuts down."""
        self.worker.actors.close()


class LocalStream:
    """A generator of this process, resumed when its consumer asks for the next item."""

    def __init__(self, worker: LocalWorker, call: Call, items: Iterator[Any], done: ObjectEntry) -> None:
        self._worker = worker
        self._call = call
        self._items = items
        self._done = done
        self._count = 0
        self._next: ObjectRef[Any] | None = None
        self._ended = False
        self._lock = threading.RLock()

    def take(self, deadline: float | None) -> ObjectRef[Any] | None:
        """The next item's reference, None at the end."""
        with self._lock:
            ref, self._next = self._peek(), None
            return ref

    @property
    def finished(self) -> bool:
        """Every item was taken."""
        with self._lock:
            return self._peek() is None

    def when_more(self, then: Callable[[], None]) -> bool:
        """False: `take` never waits for somebody else."""
        return False

    def dropped(self) -> None:
        """The consumer is gone: the generator is not resumed any more."""
        self._ended = True
        self._items = iter(())

    def _peek(self) -> ObjectRef[Any] | None:
        if self._next is None and not self._ended:
            self._next = self._resume()
        return self._next

    def _resume(self) -> ObjectRef[Any] | None:
        worker, call = self._worker, self._call
        oid = ids.object_id(call.context.task_id, self._count + 2)
        self._count += 1
        token = CURRENT.set(call.context)
        try:
            return worker.hold(oid, next(self._items))
        except StopIteration:
            self._ended = True
            worker.settle(self._done, worker.packed(None))
            return None
        except BaseException as error:
            self._ended = True
            failure = worker.failure(call, error)
            worker.settle(self._done, failure)
            return worker.made(oid, failure)
        finally:
            CURRENT.reset(token)


class LocalWorker(CoreWorker):
    """The worker library of a driver in local mode."""

    actors: LocalActors  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor = LocalExecutor(self)
        self.actors = LocalActors(self)
        self._coroutines: dict[bytes, Any] = {}     # by object id: what `cancel` cancels

    @property
    def is_driver(self) -> bool:
        """True outside of tasks: what runs in one is a worker's, in all that it sees."""
        return CURRENT.get() is None

    @is_driver.setter
    def is_driver(self, value: bool) -> None:
        """The base class says what this process is."""

    # ---- what the API calls

    def submit_task(self, template: TaskTemplate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a task. The same return forms as in a cluster."""
        self.check_definition(template, template.function)
        name, tid = template.name, self.new_task_id()
        call = self.call(name, template.function, template.num_returns, template, args, kwargs, tid)
        return self._results(call, lambda error: self._wants_retry(template, error), template.max_retries)

    def submit_actor_task(
        self, client: Any, method: MethodTemplate, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a call of an actor."""
        actor = self.actors.find(client.id)
        name = f"{actor.spec.class_name}.{method.name}" if actor is not None else method.name
        tid = self.new_task_id()[:8] + client.id
        call = self.call(name, lambda: None, method.num_returns, method, args, kwargs, tid, actor)
        if actor is None or actor.death is not None:
            death = actor.death if actor is not None else None
            return self._failed(call, death or ActorDiedError("The actor is dead: nobody had a handle."))
        call.function = bound_method(actor.instance, method.name)
        if inspect.iscoroutinefunction(inspect.unwrap(call.function)):
            return self._scheduled(call, actor)
        retries = method.max_task_retries or actor.template.max_task_retries
        with actor.turn:
            return self._results(call, lambda error: self._wants_retry(method, error), retries)

    def cancel(self, ref: ObjectRef[Any], force: bool = False, recursive: bool = True) -> None:
        """Cancel a coroutine; what else was called has ended."""
        running = self._coroutines.get(ref.entry.id)
        if running is not None:
            running.cancel()

    def request(self, field: str, message: Any, timeout: float | None = 60.0) -> gcs.ControlReply:
        """As in a cluster; the actors are here."""
        if field == "actor_lookup":
            return self.actors.lookup(message)
        if field == "actor_list":
            return self.actors.listed(message)
        return super().request(field, message, timeout)

    # ---- calls

    def check_definition(self, template: Any, definition: Any, what: str = "the remote function") -> None:
        """TypeError for a function or class that could not travel. Once for each template."""
        if template.bound is not self:
            values.serialize_function(definition, what)
            template.bound = self

    def call(
        self, name: str, function: Callable[..., Any], returns: int, template: Any, args: tuple[Any, ...],
        kwargs: dict[str, Any], tid: bytes, actor: LocalActor | None = None,
    ) -> Call:  # fmt: skip
        """A call with pickled arguments. TypeError names what cannot be pickled."""
        payload, direct, _ = values.serialize_args(args, kwargs, template)
        actor_id = actor.spec.actor_id if actor is not None else b""
        kind = template if actor is None else actor.template
        terms = wire.LeaseTerms(scheduling_class=scheduling_class(self, kind))
        context = TaskContext(tid, name.rpartition(".")[2], 0, actor_id, Assignment(terms))
        packed = payload if isinstance(payload, bytes) else payload.pack()
        return Call(name, function, returns, packed, direct, context, actor)

    def perform(self, call: Call) -> Any:
        """The value that the call returns, or what it raises. ArgumentFailed if it could not start."""
        args, kwargs = self._arguments(call)
        token = CURRENT.set(call.context)
        try:
            return call.function(*args, **kwargs)
        finally:
            CURRENT.reset(token)

    def _arguments(self, call: Call) -> tuple[Any, dict[str, Any]]:
        try:
            found = self.get(call.direct) if call.direct else ()
        except Exception as error:
            raise ArgumentFailed(error) from None
        return values.deserialize_args(call.payload, found)

    @staticmethod
    def _wants_retry(template: TaskTemplate | MethodTemplate, error: BaseException) -> bool:
        wanted = template.retry_exceptions
        if isinstance(error, ArgumentFailed) or not isinstance(error, Exception):
            return False
        return wanted if isinstance(wanted, bool) else isinstance(error, tuple(wanted))

    def _results(self, call: Call, wants_retry: Callable[[BaseException], bool], retries: int) -> Any:
        """Run a call to its end, again if it may, and return its references."""
        while True:
            try:
                value = self.perform(call)
                if call.returns < 0:
                    return self._stream(call, value)
                return self._references(call, self._outcomes(call, value))
            except ExitActor:
                assert call.actor is not None
                call.actor.end(actor_exit.error())
                return self._failed(call, actor_exit.error())
            except KeyboardInterrupt:
                raise   # Ctrl-C is the user's, in one process
            except BaseException as error:
                if retries and wants_retry(error):
                    retries -= 1
                    call.context.attempt += 1
                    continue
                return self._failed(call, error)
            finally:
                self.collect_released()

    def _outcomes(self, call: Call, value: Any) -> list[Serialized | bytes]:
        """The values of a call with a fixed number of returns; of a generator, its error in places left."""
        if call.returns == 1 and not isinstance(value, Generator):
            return [self.packed(value)]
        if call.returns == 0:
            return []
        if not isinstance(value, Generator):
            return [self.packed(item) for item in returns.fixed(value, call.returns)]
        outcomes: list[Serialized | bytes] = []
        try:
            outcomes.extend(self.packed(item) for item in itertools.islice(value, call.returns))
            if len(outcomes) < call.returns:
                raise returns.too_few(call.name, len(outcomes), call.returns)
        except Exception as error:
            outcomes.extend([self.failure(call, error)] * (call.returns - len(outcomes)))
        return outcomes

    def _stream(self, call: Call, value: Any) -> Any:
        from miniray.generator import DynamicObjectRefGenerator, ObjectRefGenerator

        if inspect.isasyncgen(value):
            assert call.actor is not None
            value = _stepwise(value, call.actor.loop())
        items = returns.stream(value)
        tid = call.context.task_id
        if call.returns == DYNAMIC:
            refs = [self.hold(ids.object_id(tid, i + 2), item) for i, item in enumerate(items)]
            return self.hold(ids.object_id(tid, 1), DynamicObjectRefGenerator(refs))
        with self.lock:
            done = self.owner.directory.own(ids.object_id(tid, 1))
            ref = self.new_ref(done)
        stream: Any = LocalStream(self, call, iter(items), done)
        return ObjectRefGenerator(stream, ref)

    def _scheduled(self, call: Call, actor: LocalActor) -> Any:
        """Run a coroutine on the actor's loop; its results come when it has ended."""
        loop = actor.loop()
        with self.lock:
            entries = [
                self.owner.directory.own(ids.object_id(call.context.task_id, i + 1))
                for i in range(max(call.returns, 0))
            ]
            refs = [self.new_ref(entry) for entry in entries]
        future = asyncio.run_coroutine_threadsafe(self._coroutine(call, actor, entries), loop)
        for entry in entries:
            self._coroutines[entry.id] = future
        return refs[0] if call.returns == 1 else refs or None

    async def _coroutine(self, call: Call, actor: LocalActor, entries: list[ObjectEntry]) -> None:
        CURRENT.set(call.context)
        outcomes: list[Serialized | bytes]
        try:
            args, kwargs = await asyncio.get_running_loop().run_in_executor(None, self._arguments, call)
            value = await call.function(*args, **kwargs)
            outcomes = self._outcomes(call, value)
        except asyncio.CancelledError:
            cancelled = pack_exception(TaskCancelledError(TaskID(call.context.task_id)))
            outcomes = [cancelled] * len(entries)
        except ExitActor:
            outcomes = [pack_exception(actor_exit.error())] * len(entries)
            actor.death = actor_exit.error()
        except BaseException as error:
            outcomes = [self.failure(call, error)] * len(entries)
        for entry, outcome in zip(entries, outcomes):
            self._coroutines.pop(entry.id, None)
            self.settle(entry, outcome)

    # ---- results

    def packed(self, value: Any) -> Serialized:
        """A return value as it would travel."""
        return values.serialize(value, "the return value")

    def failure(self, call: Call, error: BaseException) -> bytes:
        """An error as it would travel."""
        return pack_exception(self.error(call, error))

    def error(self, call: Call, error: BaseException) -> BaseException:
        """An error as the caller would get it."""
        if isinstance(error, (ActorDiedError, TaskCancelledError)):
            return error
        about: dict[str, Any] = {"pid": os.getpid()}
        if call.actor is not None:
            shown = call.actor.instance
            about["actor_repr"] = call.actor.spec.class_name if shown is None else repr(shown)
            about["actor_id"] = call.actor.spec.actor_id
        if isinstance(error, ArgumentFailed):
            return dependency_error(error.error, call.name, **about)
        if isinstance(error, RayTaskError) and error.function_name == call.name:
            return error
        return task_error(error, call.name, **about)

    def hold(self, oid: bytes, value: Any) -> ObjectRef[Any]:
        """A reference to a value of ours."""
        return self.made(oid, self.packed(value))

    def made(self, oid: bytes, outcome: Serialized | bytes) -> ObjectRef[Any]:
        """A reference to a packed value of ours, or one that raises a packed error."""
        with self.lock:
            entry = self.owner.directory.own(oid)
            ref = self.new_ref(entry)
        self.settle(entry, outcome)
        return ref

    def _references(self, call: Call, outcomes: Sequence[Serialized | bytes]) -> Any:
        tid = call.context.task_id
        refs = [self.made(ids.object_id(tid, i + 1), outcome) for i, outcome in enumerate(outcomes)]
        return refs[0] if call.returns == 1 else refs or None

    def _failed(self, call: Call, error: BaseException) -> Any:
        failure = self.failure(call, error)
        if call.returns >= 0:
            return self._references(call, [failure] * call.returns)
        if call.returns == DYNAMIC:
            return self.made(ids.object_id(call.context.task_id, 1), failure)
        return self._stream(call, _raising(error))

    def settle(self, entry: ObjectEntry, outcome: Serialized | bytes) -> None:
        """An object of ours gets its value, or its error."""
        if isinstance(outcome, bytes):
            result = Result(FAILED, outcome, len(outcome))
        elif outcome.nbytes > INLINE_LIMIT:
            local_objects.write(self, entry.id, outcome, outcome.nbytes, self.address)
            result = Result(STORED, None, outcome.nbytes)
        else:
            result = Result(INLINE, outcome.pack(), outcome.nbytes)
        with self.lock:
            if entry.state != PENDING:
                return
            if not isinstance(outcome, bytes) and outcome.refs:
                self.owner.ownership.contains(entry, [ref.entry for ref in outcome.refs])
            self.owner.settle(time.monotonic(), entry, result, self.address)
            self.drain()
        self.pump.wake()


def _raising(error: BaseException) -> Iterator[Any]:
    raise error
    yield


def _stepwise(items: Any, loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """The items of an async generator, each awaited on `loop`."""

    async def step() -> Any:
        return await anext(items)

    while True:
        try:
            yield asyncio.run_coroutine_threadsafe(step(), loop).result()
        except StopAsyncIteration:
            return
