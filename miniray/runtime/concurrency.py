"""Actors that run several calls at once: thread pools and asyncio.

`ThreadedActor`: one pool per concurrency group; `max_concurrency` threads serve the default group.
`AsyncActor`: one event loop per group, each in a thread of its own, so that a group which blocks
holds up no other; a semaphore bounds a group's coroutines (1,000 by default, as in Ray). Calls of
one caller to one group start in the order they came; they may finish in any.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from miniray._native import set_process_title
from miniray._proto import common_pb2 as pb
from miniray.core.directory import ObjectEntry
from miniray.core.owner import Result
from miniray.ids import ObjectRef
from miniray.runtime import actor_exit, cancellation, failing, frames, streams, values
from miniray.runtime.executor import Executor
from miniray.runtime.task_context import CURRENT, ExitActor, Function, TaskContext

if TYPE_CHECKING:
    from miniray.runtime.peers import Peer

ASYNC_CONCURRENCY = 1000


def of(executor: Executor, spec: pb.ActorSpec) -> ThreadedActor | AsyncActor:
    """The way this actor runs its calls."""
    return AsyncActor(executor, spec) if spec.is_async else ThreadedActor(executor, spec)


def check_group(function: Function, groups: Collection[str]) -> None:
    """ValueError for a call in a concurrency group that its actor does not have."""
    if function.group and function.group not in groups:
        known = ", ".join(f"'{group}'" for group in groups if group) or "none"
        raise ValueError(
            f"{function.name} was called in the concurrency group '{function.group}', which its actor does "
            f"not have; it has {known}"
        )


class _Call:
    """One call on its way through a concurrent actor."""

    __slots__ = ("peer", "frame", "call", "number", "returns", "flags", "context", "task", "started")

    def __init__(self, executor: Executor, peer: Peer, frame: bytes) -> None:
        _, self.flags, attempt, self.call, self.number, self.returns, tid = frames.PUSH_HEADER.unpack_from(
            frame
        )
        self.peer = peer
        self.frame = frame
        self.context = TaskContext(tid, "", attempt, tid[8:], executor.assignment)
        self.task: Any = None
        self.started = 0        # when its code began: perf_counter_ns

    def holds_a_place(self) -> bool:
        """Of a coroutine: whether its code has begun, rather than wait for others of its group to end."""
        waits_for = getattr(self.task.get_coro(), "cr_await", None) if self.started else None
        acquires = getattr(getattr(waits_for, "cr_code", None), "co_qualname", "__aenter__")
        return bool(self.started) and not acquires.endswith("__aenter__")


def queue_of(executor: Executor, task_id: bytes) -> tuple[str, int, int] | None:
    """Of a call that waits here: its group, how many of that run at once, how many wait before it."""
    actor = executor.concurrency
    if not isinstance(actor, (ThreadedActor, AsyncActor)):
        return None
    waiting = [(call, executor.function(call.peer, call.number).group) for call in actor.waiting()]
    groups = [group for _, group in waiting]
    tasks = [call.context.task_id for call, _ in waiting]
    if task_id not in tasks:
        return None
    group = groups[tasks.index(task_id)]
    return group, actor.widths.get(group, 0), groups[: tasks.index(task_id)].count(group)


class ThreadedActor:
    """Calls run in threads."""

    def __init__(self, executor: Executor, spec: pb.ActorSpec) -> None:
        self._executor = executor
        default = max(1, spec.max_concurrency)
        self._pools = {"": ThreadPoolExecutor(default, "actor")}
        for group, width in spec.concurrency_groups.items():
            self._pools[group] = ThreadPoolExecutor(width, f"actor-{group}")
        self._queued: dict[tuple[Any, int], _Call] = {}
        self._running: dict[tuple[Any, int], _Call] = {}
        self.widths = {"": default, **spec.concurrency_groups}
        """How many calls of each group run at once."""

    def construct(
        self, cls: Any, context: TaskContext, restored: list[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run the constructor on this thread."""
        return cls(*args, **kwargs)

    def submit(self, peer: Peer, frame: bytes) -> None:
        """A call came in. Under the worker's lock."""
        call = _Call(self._executor, peer, frame)
        function = self._executor.function(peer, call.number)
        pool = self._pools.get(function.group, self._pools[""])
        self._queued[(peer, call.call)] = call
        call.task = pool.submit(self._run, call)

    def await_end(self) -> None:
        """Until every call that was submitted has been answered. None may be submitted meanwhile."""
        for pool in self._pools.values():
            pool.shutdown()

    def not_begun(self) -> list[bytes]:
        """Ids of the calls that wait for a thread."""
        return [call.context.task_id for call in self.waiting()]

    def waiting(self) -> list[_Call]:
        """The calls that wait for a thread, first come first."""
        return list(self._queued.values())

    def cancel(self, peer: Peer, call: int, recursive: bool) -> None:
        """Drop a call that has not started; one that runs can ask whether it was. Under the lock."""
        executor = self._executor
        running = self._running.get((peer, call))
        if running is not None:
            running.context.cancelled = running.context.cancelled or time.monotonic()
            if recursive:
                cancellation.children(executor.worker, running.context.task_id, False)
            return
        queued = self._queued.get((peer, call))
        if queued is not None and queued.task is not None and queued.task.cancel():
            del self._queued[(peer, call)]
            executor._reply(peer, call, 0, [executor.cancelled(b"")], [])

    def running(self) -> list[tuple[TaskContext, float]]:
        """What runs, and since when (monotonic seconds)."""
        return [(call.context, call.started / 1e9) for call in list(self._running.values())]

    def _run(self, call: _Call) -> None:
        executor = self._executor
        key = (call.peer, call.call)
        self._running[key] = call
        self._queued.pop(key, None)
        token = CURRENT.set(call.context)
        call.started = started = time.perf_counter_ns()
        held: list[ObjectEntry] = []
        restored = values.begin_restoring()
        function = None
        leaving = False
        try:
            function = executor.function(call.peer, call.number)
            set_process_title(function.title)
            check_group(function, self._pools)
            call.context.name = function.name
            call.context.function = function
            args, kwargs = executor.decode(call.peer, call.frame, call.flags, held, function)
            value = function.call(*args, **kwargs)
            del args, kwargs
            if call.context.cancelled:      # it was given up, and ran on
                results = [executor.cancelled(call.context.task_id)] * max(1, call.returns)
            else:
                results = executor.results(
                    value, call.returns, call.context.task_id, call.peer, call.call, function
                )
            del value
        except ExitActor:
            results = [executor._failure(actor_exit.error())] * max(1, call.returns)
            leaving = True
        except SystemExit as error:
            executor.system_exit(error)
        except BaseException as error:
            results = failing.failures(executor, error, function, call.peer, max(1, call.returns))
            del error
        finally:
            del self._running[key]
            if not self._running:
                set_process_title(executor.title)
            CURRENT.reset(token)
            values.end_restoring(restored)
        finish(executor, call, results, held, restored, started)
        if leaving:
            actor_exit.close(executor)


def _is_to_be_awaited(value: Any) -> bool:
    """Whether a method returned what only the loop can finish. A reference is a value by itself."""
    return inspect.isawaitable(value) and not isinstance(value, ObjectRef)


def _each(items: list[Any]) -> Any:
    """A generator again, of what an asynchronous one has yielded."""
    yield from items


def finish(
    executor: Executor, call: _Call, results: Any, held: Any, restored: Any, started: int, more: bool = False
) -> None:
    """Settle references and reply. `more`: other calls run on, and the caller is told soon in any case."""
    if held:
        executor._unpin(held)
    if restored:
        executor.settle_references(call.peer.address, restored)
    spent = (time.perf_counter_ns() - started) // 1000
    with executor.worker.lock:
        retained = executor.worker.owner.ownership.retained(restored, call.peer.address) if restored else []
        executor._reply(call.peer, call.call, min(spent, 0xFFFFFFFF), results, retained, more)


class AsyncActor:
    """Coroutines on event loops. Plain methods run on the loops as well."""

    def __init__(self, executor: Executor, spec: pb.ActorSpec) -> None:
        self._executor = executor
        known = list(spec.concurrency_groups)
        self._groups = {"": _Loop(executor, "actor-loop", spec.max_concurrency or ASYNC_CONCURRENCY, known)}
        for group, width in spec.concurrency_groups.items():
            self._groups[group] = _Loop(executor, f"actor-loop-{group}", width, known)
        self._grouped = len(self._groups) > 1
        self.widths = {"": spec.max_concurrency or ASYNC_CONCURRENCY, **spec.concurrency_groups}
        """How many calls of each group run at once."""

    def construct(
        self, cls: Any, context: TaskContext, restored: list[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run the constructor on the default group's loop, where the calls will run."""
        for loop in self._groups.values():
            loop.start()

        async def make() -> Any:
            CURRENT.set(context)
            found = values.begin_restoring()
            try:
                return cls(*args, **kwargs)
            finally:
                restored.extend(found)
                values.end_restoring(found)

        return asyncio.run_coroutine_threadsafe(make(), self._groups[""].loop).result()

    def submit(self, peer: Peer, frame: bytes) -> None:
        """A call came in. Under the worker's lock."""
        call = _Call(self._executor, peer, frame)
        group = self._executor.function(peer, call.number).group if self._grouped else ""
        (self._groups.get(group) or self._groups[""]).submit(call)

    def await_end(self) -> None:
        """Until every call that was submitted has been answered. None may be submitted meanwhile."""
        for loop in self._groups.values():
            asyncio.run_coroutine_threadsafe(loop.ended(), loop.loop).result()

    def running(self) -> list[tuple[TaskContext, float]]:
        """What runs, and since when (monotonic seconds)."""
        return [one for loop in self._groups.values() for one in loop.running()]

    def begun(self) -> list[_Call]:
        """The calls whose code has begun."""
        return [call for call in self._calls() if call.holds_a_place()]

    def not_begun(self) -> list[bytes]:
        """Ids of the calls that wait for their turn."""
        return [call.context.task_id for call in self.waiting()]

    def waiting(self) -> list[_Call]:
        """The calls whose code has not begun, first come first."""
        return [call for call in self._calls() if not call.holds_a_place()]

    def _calls(self) -> list[_Call]:
        return [call for loop in self._groups.values() for call in loop.calls()]

    def cancel(self, peer: Peer, call: int, recursive: bool) -> None:
        """Cancel a coroutine, started or not. Under the lock."""
        for loop in self._groups.values():
            loop.cancel(peer, call, recursive)


class _Loop:
    """One concurrency group of an asyncio actor: an event loop in a thread."""

    def __init__(self, executor: Executor, name: str, width: int, known: Collection[str]) -> None:
        """`known`: the names of all groups of the actor."""
        self._executor = executor
        self._known = known
        self.loop = asyncio.new_event_loop()
        self._name = name
        self._limit = asyncio.Semaphore(width)
        self._arrived: deque[_Call] = deque()
        self._running: dict[tuple[Any, int], _Call] = {}
        self._kinds: dict[tuple[Any, int], int] = {}
        """How many calls of each method of each caller run."""
        self._scheduled = False
        self._telling = False

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def calls(self) -> list[_Call]:
        """All that have not been answered."""
        return [*self._running.values(), *self._arrived]

    def submit(self, call: _Call) -> None:
        """A call came in. Under the worker's lock; one wake-up per batch."""
        self._arrived.append(call)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._scheduled = False
        while self._arrived:
            call = self._arrived.popleft()
            self._running[(call.peer, call.call)] = call
            kind = (call.peer, call.number)
            self._kinds[kind] = self._kinds.get(kind, 0) + 1
            call.task = self.loop.create_task(self._run(call))

    async def ended(self) -> None:
        """Until every call has been answered."""
        while self._arrived or self._running:
            await asyncio.sleep(0)      # what has arrived starts
            if tasks := [call.task for call in self._running.values()]:
                await asyncio.wait(tasks)

    def _ended(self, call: _Call, results: Any, held: Any, restored: Any, started: int) -> None:
        """Reply. While more calls of the same method run the caller is woken once for several answers.

        Not while others run, which may be slower and hold the loop up.
        """
        del self._running[(call.peer, call.call)]
        if not self._running:
            set_process_title(self._executor.title)
        kind = (call.peer, call.number)
        left = self._kinds[kind] = self._kinds[kind] - 1
        if not left:
            del self._kinds[kind]
        more = left > 0 and left == len(self._running)
        finish(self._executor, call, results, held, restored, started, more)
        if more and not self._telling:
            self._telling = True
            self.loop.call_soon(self._tell)    # behind what is ready to run now

    def running(self) -> list[tuple[TaskContext, float]]:
        """What has begun and not ended. Any thread."""
        begun = [call for call in list(self._running.values()) if call.started]
        return [(call.context, call.started / 1e9) for call in begun]

    def _tell(self) -> None:
        self._telling = False
        self._executor.tell()

    def cancel(self, peer: Peer, call: int, recursive: bool) -> None:
        """Cancel a coroutine, started or not, of this group. Under the lock."""
        running = self._running.get((peer, call))
        if running is None:
            return
        running.context.cancelled = running.context.cancelled or time.monotonic()
        self.loop.call_soon_threadsafe(self._cancel, running)
        if recursive:
            cancellation.children(self._executor.worker, running.context.task_id, False)

    def _cancel(self, call: _Call) -> None:
        call.task.cancel()
        if not call.started and (call.peer, call.call) in self._running:    # no code of it will ever run
            cancelled = [self._executor.cancelled(call.context.task_id)] * max(1, call.returns)
            self._ended(call, cancelled, [], [], time.perf_counter_ns())

    async def _run(self, call: _Call) -> None:
        executor = self._executor
        call.started = started = time.perf_counter_ns()
        held: list[ObjectEntry] = []
        restored: list[ObjectEntry] = []
        function = None
        leaving = False
        CURRENT.set(call.context)
        try:
            function = executor.function(call.peer, call.number)
            set_process_title(function.title)
            check_group(function, self._known)
            call.context.name = function.name
            call.context.function = function
            async with self._limit:
                if call.flags & frames.HAS_SLOTS:
                    args, kwargs = await self.loop.run_in_executor(
                        None, self._decode, call, held, restored, function)
                else:
                    args, kwargs = self._decode(call, held, restored, function)
                value = function.call(*args, **kwargs)
                if type(value) is CoroutineType or _is_to_be_awaited(value):
                    value = await value
                del args, kwargs
                if inspect.isasyncgen(value) and call.returns < 0:
                    results = await self._stream(value, call, function)
                else:
                    if inspect.isasyncgen(value):
                        value = _each([item async for item in value])
                    results = executor.results(
                        value, call.returns, call.context.task_id, call.peer, call.call, function
                    )
                del value
        except asyncio.CancelledError:
            results = [executor.cancelled(call.context.task_id)] * max(1, call.returns)
        except ExitActor:
            results = [executor._failure(actor_exit.error())] * max(1, call.returns)
            leaving = True
        except SystemExit as error:
            executor.system_exit(error)
        except BaseException as error:
            results = failing.failures(executor, error, function, call.peer, max(1, call.returns))
            del error
        self._ended(call, results, held, restored, started)
        if leaving:
            actor_exit.close(executor)

    async def _stream(self, items: Any, call: _Call, function: Function) -> list[Result]:
        """An async generator: each item leaves as it is yielded."""
        if function.backpressure > 0:
            raise ValueError(
                f"{function.name} is an async generator: _generator_backpressure_num_objects="
                f"{function.backpressure} is for synchronous ones only"
            )
        executor = self._executor
        count = 0
        async for item in items:
            streams.send_item(executor, item, count, call.context.task_id, call.peer, call.call)
            count += 1
        return [streams.last_result(executor, count, call.returns, call.context.task_id, call.peer)]

    def _decode(
        self, call: _Call, held: list[ObjectEntry], restored: list[ObjectEntry], function: Function
    ) -> Any:
        found = values.begin_restoring()
        try:
            return self._executor.decode(call.peer, call.frame, call.flags, held, function)
        finally:
            restored.extend(found)
            values.end_restoring(found)
