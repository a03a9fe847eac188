"""Runs user code in a worker process: tasks one by one, or one actor's calls.

Plain tasks and synchronous actors run on the main thread (so that a running task can be
interrupted), in the order they arrived. Actors with `max_concurrency` or concurrency groups run
calls in thread pools, asyncio actors on an event loop in a thread of its own (`concurrency`).

A worker that blocks, or whose current task takes long, sends the plain tasks behind it back to
their owners (*bounce*), so nothing waits behind a task that waits for it.

Replies are written into the ring as soon as they exist, so that a crash right after a task does
not lose its result.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from types import GeneratorType, SimpleNamespace
from typing import Any, NoReturn

from miniray._native import reply_frame, set_process_name, set_process_title
from miniray._proto import common_pb2 as pb
from miniray._proto import worker_pb2 as wire
from miniray.core import ids
from miniray.core.directory import FAILED, INLINE, STORED, Address, ObjectEntry
from miniray.core.owner import Result
from miniray.exceptions import RuntimeEnvSetupError, TaskCancelledError
from miniray.ids import TaskID
from miniray.runtime import (
    actor_exit,
    aliases,
    arguments,
    cancellation,
    failing,
    frames,
    interrupts,
    local_objects,
    notes,
    output,
    streams,
    termination,
    values,
)  # fmt: skip
from miniray.runtime.errors import pack_exception
from miniray.runtime.returns import fixed
from miniray.runtime.task_context import (
    CURRENT,
    NO_LEASE,
    Assignment,
    ExitActor,
    Function,
    TaskContext,
    TaskHost,
    imported,
)
from miniray.runtime.waiting import Waiter
from miniray.runtime.worker import INLINE_LIMIT, CoreWorker

HELD_UP_S = 0.010
"""Plain tasks queued behind one that runs longer than this are sent back."""

UNNEEDED_EVERY_S = 0.1
"""A worker that has run its last task looks so often whether somebody needs what it owns."""

NOBODY: Address = (b"", b"")
QUIET_US = 200
QUIET_REPLIES = 16
"""While more calls wait, the caller is woken once for this many short ones."""

_ATOMS = frozenset({int, float, str, bytes, bool, type(None)})


def packed_atom(value: Any) -> bytes | None:
    """The bytes of a value that is small and has no parts; None for all others."""
    kind = type(value)
    if kind not in _ATOMS or (kind in (bytes, str) and len(value) > 4096):
        return None
    return pickle.dumps(value, 5)


class Work(Waiter):
    """The main thread waiting for something to run."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1)

    def notify(self, entry: Any) -> None:
        """Work has come."""
        self.remaining = 0
        self.signal()


class Executor(TaskHost):
    """One per worker process."""

    def __init__(self, worker: CoreWorker) -> None:
        super().__init__(worker)
        self.queue: deque[tuple[Any, bytes]] = deque()
        self.work = Work()
        self.title = "ray::IDLE"
        """What `ps` shows while nothing runs."""
        self.actor: Any = None
        self.actor_spec: pb.ActorSpec | None = None
        self.attempt = 0
        self.assignment = NO_LEASE
        self.actor_name = ""
        self.concurrency: Any = None
        self.running: tuple[Any, int, TaskContext] | None = None
        self.running_since = 0.0
        self.main = threading.main_thread().ident or 0
        self.stopping = False
        self._blocked = 0
        self._quiet: dict[Any, None] = {}  # peers with replies they have not been woken for
        self._untold = 0
        self._definitions: dict[bytes, Any] = {}
        self._start: wire.StartActor | None = None
        self._exit: wire.Exit | None = None
        self.import_after = 0
        """How many entries of `sys.path` come from the runtime environment, and first."""
        self.hook = ""
        """The setup hook of this worker's environment, until it has run."""
        self._broken: RuntimeEnvSetupError | None = None
        """The hook has failed: so does whatever comes here."""
        self._interrupts = interrupts.CallInterrupts(worker, lambda: self.running)

    # ---- context

    def on_task_thread(self) -> bool:
        """True where waiting means that a task waits."""
        return CURRENT.get() is not None

    @interrupts.critical
    def blocked(self) -> None:
        """A task of this worker waits: its CPU and its queue are for others."""
        with self.worker.lock:
            self._blocked += 1
            if self._blocked > 1:
                return
            self._bounce()
        self.worker.raylet.send(wire.ToRaylet(blocked=wire.WorkerBlocked(blocked=True)))

    @interrupts.critical
    def unblocked(self) -> None:
        """It goes on."""
        with self.worker.lock:
            self._blocked -= 1
            if self._blocked:
                return
        self.worker.raylet.send(wire.ToRaylet(blocked=wire.WorkerBlocked(blocked=False)))

    def under_way(self) -> list[tuple[TaskContext, float]]:
        """What runs, and since when (monotonic seconds)."""
        if self.concurrency is not None:
            return self.concurrency.running()  # type: ignore[no-any-return]
        running, since = self.running, self.running_since
        return [(running[2], since)] if running is not None else []

    def tick(self, now: float) -> None:
        """Called by the drainer: do not let replies or tasks wait behind a long task."""
        if self._quiet:
            self.tell()
        if self.queue and self.running is not None and now - self.running_since > HELD_UP_S:
            with self.worker.lock:
                self._bounce()

    def _bounce(self) -> None:
        if self.actor_spec is not None or not self.queue:
            return
        calls: dict[Any, list[int]] = {}
        while self.queue:
            peer, frame = self.queue.popleft()
            calls.setdefault(peer, []).append(frames.PUSH_HEADER.unpack_from(frame)[3])
        for peer, numbers in calls.items():
            peer.channel.send(frames.pack_bounce(numbers))
        self.worker.peers.end_turn()

    # ---- what arrives

    def enqueue(self, peer: Any, frame: bytes) -> None:
        """A push came in. Under the worker's lock."""
        if self.concurrency is not None:
            self.concurrency.submit(peer, frame)
            return
        if self._blocked and self.actor_spec is None:
            peer.channel.send(frames.pack_bounce([frames.PUSH_HEADER.unpack_from(frame)[3]]))
            return
        self.queue.append((peer, frame))
        if self.work.remaining:
            self.work.notify(None)
            self.worker.pump.kick(self.work)

    def message(self, kind: str, message: Any) -> None:
        """A message of the raylet that concerns this process as an executor."""
        if kind == "start_actor":
            self._start = message
        elif kind == "exit":
            if message.if_unneeded and self._needed():
                self.worker.raylet.send(wire.ToRaylet(exit_refused=wire.ExitRefused()))
                return
            self._exit = message
            if not message.graceful:
                self.leave(message.reason or "told to exit")
        elif kind == "assign_job":
            self.adopt(message.job)
            return
        self.work.notify(None)
        self.worker.pump.wake()

    def _needed(self) -> bool:
        with self.worker.lock:
            owner = self.worker.owner
            return self.running is not None or bool(self.queue) or owner.unfinished > 0 or owner.lends

    def adopt(self, job: pb.JobInfo) -> None:
        """This worker now belongs to a job: import what its driver could import."""
        self.worker.job = job
        self.worker.job_assigned(job.job_id)
        output.belongs_to(job.job_id)
        for path in reversed(job.sys_path):
            if path not in sys.path:
                sys.path.insert(self.import_after, path)
        for name in job.aliases:
            aliases.adopt(name)
        if job.logging:
            from miniray import logging_config

            logging_config.install(self.worker, job.logging)

    def leased(self, terms: bytes) -> None:
        """The owner of the next tasks tells what they hold."""
        self.assignment = Assignment(wire.LeaseTerms.FromString(terms))
        self.assignment.show_devices()

    def cancel(self, peer: Any, call: int, force: bool, recursive: bool) -> None:
        """A caller gave a call up. Under the lock."""
        for item in self.queue:
            header = frames.PUSH_HEADER.unpack_from(item[1])
            if item[0] is peer and header[3] == call:
                self.queue.remove(item)
                self._reply(peer, call, 0, [self.cancelled(header[6])], [])
                return
        if self.concurrency is not None:
            self.concurrency.cancel(peer, call, recursive)
        elif (running := self.running) is not None and running[0] is peer and running[1] == call:
            context = running[2]
            context.cancelled = context.cancelled or time.monotonic()
            if recursive:
                cancellation.children(self.worker, context.task_id, force)
            if self.actor_spec is None:
                self._interrupts.send(running)

    def consumed(self, peer: Any, call: int, count: int) -> None:
        """A caller has taken `count` items of a stream."""
        streams.consumed(peer, call, count)

    # ---- the main loop

    def run(self) -> None:
        """Until told to end. Main thread."""
        worker, queue, work = self.worker, self.queue, self.work
        while not self.stopping:
            if self.hook and (queue or self._start is not None):
                self._run_hook()
            if self._start is not None:
                self._create_actor()
            while queue:
                peer, frame = queue.popleft()
                self.execute(peer, frame)
            if self._quiet:
                self.tell()
            exits = self._exit
            if exits is None and worker.pump.attend(queue.__len__):
                continue
            if exits is not None and not (exits.when_unneeded and self._needed()):
                actor_exit.run_handlers(self.actor)
                by_user = exits.reason == actor_exit.REASON
                self.leave(exits.reason or "told to exit", pb.BY_USER if by_user else pb.BY_NOBODY)
            with worker.lock:
                if queue or self._start is not None or self._exit is not exits:
                    continue
                work.remaining = 1
            set_process_title(self.title)
            worker.pump.wait(work, None if exits is None else time.monotonic() + UNNEEDED_EVERY_S)

    def _run_hook(self) -> None:
        from miniray.runtime import setup_hook

        hook, self.hook = self.hook, ""
        self._broken = setup_hook.run(self.worker, hook)

    def execute(self, peer: Any, frame: bytes) -> None:
        """Run one push on this thread and reply."""
        _, flags, attempt, call, number, returns, tid = frames.PUSH_HEADER.unpack_from(frame)
        started = self.running_since = time.monotonic()
        held: list[ObjectEntry] = []
        actor_id = b"" if self.actor_spec is None else ids.actor_of_task(tid)
        context = TaskContext(tid, "", attempt, actor_id, self.assignment)
        token = CURRENT.set(context)
        restored = values.begin_restoring()
        function: Function | None = None
        atom: bytes | None = None
        results: list[Result] = []
        try:
            self.running = (peer, call, context)    # from here on it may be interrupted
            function = self.function(peer, number)
            set_process_title(function.title)
            context.name = function.name
            context.function = function
            if len(frame) == frames.PUSH_HEADER.size:
                value = function.call()
            else:
                args, kwargs = self._arguments(peer, frame, flags, held, restored, function)
                value = function.call(*args, **kwargs)
                del args, kwargs
            atom = packed_atom(value) if returns == 1 and not restored else None
            if context.cancelled and self.actor_spec is not None:   # it was given up, and ran on
                atom, results = None, [self.cancelled(tid)] * max(1, returns)
            elif atom is None:
                results = self.results(value, returns, tid, peer, call, function)
            del value
        except local_objects.ArgumentLost:
            self._send_back(peer, call, held, restored)
            return
        except ExitActor:
            results = [self._failure(actor_exit.error())] * max(1, returns)
            actor_exit.close(self)
        except SystemExit as error:
            self.system_exit(error)
        except BaseException as error:
            atom = None
            try:
                results = failing.failures(self, error, function, peer, max(1, returns))
            except KeyboardInterrupt:       # told to stop while it failed by itself
                results = [self.cancelled(tid)] * max(1, returns)
            del error
        finally:
            self.running = None
            CURRENT.reset(token)
        values.end_restoring(restored)
        if held:
            self._unpin(held)
        if restored:
            self.settle_references(peer.address, restored)
        spent = min(int((time.monotonic() - started) * 1e6), 0xFFFFFFFF)
        if function is not None and function.max_calls:
            self._count_call(function, peer)
        with self.worker.lock:
            if atom is not None:
                self._send(peer, reply_frame(call, spent, atom), spent)
                return
            retained = self.worker.owner.ownership.retained(restored, peer.address) if restored else []
            self._reply(peer, call, spent, results, retained)

    def _arguments(
        self, peer: Any, frame: bytes, flags: int, held: list[ObjectEntry], restored: list[Any],
        function: Function,
    ) -> tuple[Any, dict[str, Any]]:
        """The arguments of a task, once they fit into the store together."""
        pause_s = 0.2
        while True:
            try:
                return self.decode(peer, frame, flags, held, function)
            except local_objects.ArgumentsDoNotFit:
                self._unpin(held)   # whoever can go on now does, and gives back what it holds
                held.clear()
                restored.clear()
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, 3.0)

    @interrupts.critical
    def _send_back(self, peer: Any, call: int, held: list[ObjectEntry], restored: Any) -> None:
        """An argument has to be made again before this task can run: its owner will send it again."""
        self.running = None     # too late to interrupt it
        values.end_restoring(restored)
        self._unpin(held)
        with self.worker.lock:
            peer.channel.send(frames.pack_bounce([call]))
            self.worker.peers.end_turn()

    def function(self, peer: Any, number: int) -> Function:
        """What `number` means on this channel; the definition is loaded at first use."""
        function = peer.functions[number]
        if type(function) is bytes:
            if self._broken is not None:
                raise self._broken
            function = peer.functions[number] = Function(function, self._definitions, self.actor)
        return function  # type: ignore[no-any-return]

    def decode(
        self, peer: Any, frame: bytes, flags: int, held: list[ObjectEntry], callee: arguments.Callee
    ) -> tuple[Any, dict[str, Any]]:
        """The arguments of a push."""

        def fetch(slot: frames.Slot, raw: bool = False) -> Any:
            return local_objects.fetch(self.worker, slot, peer.address, held, raw)

        return arguments.decode(frame, flags, fetch, callee)

    # ---- results

    def results(
        self, value: Any, returns: int, tid: bytes, peer: Any, call: int, function: Function
    ) -> list[Result]:
        """The results of a task that returned `value`."""
        if returns == 1:
            atom = packed_atom(value)
            if atom is not None:
                return [Result(INLINE, atom, len(atom))]
            if type(value) is not GeneratorType:
                return [self.result(value, ids.object_id(tid, 1), peer)]
        if returns == 0:
            return []
        if returns < 0:
            return streams.produce(self, value, returns, tid, peer, call, function)
        if isinstance(value, Generator):
            return streams.fill(self, value, returns, tid, peer, function)
        items = fixed(value, returns)
        return [self.result(item, ids.object_id(tid, i + 1), peer) for i, item in enumerate(items)]

    def result(self, value: Any, oid: bytes, peer: Any) -> Result:
        """One return value: inline when small, else in the node's store."""
        packed = values.serialize(value, "the return value")
        contents: tuple[Any, ...] = ()
        if packed.refs:
            contents = self.introduce([ref.entry for ref in packed.refs], peer)
        size = packed.nbytes
        if size > INLINE_LIMIT:
            local_objects.write(self.worker, oid, packed, size, peer.address)
            return Result(STORED, None, size, contents)
        return Result(INLINE, packed.pack(), size, contents)

    def introduce(self, entries: list[ObjectEntry], peer: Any) -> tuple[Any, ...]:
        """Before references leave in a result, their owners learn that the caller holds them."""
        worker = self.worker
        pending = Waiter(0)
        with worker.lock:
            for entry in entries:
                if not worker.owner.ownership.introduce(entry, peer.address, pending):
                    pending.remaining += 1
            worker.drain()
        if pending.remaining > 0:
            worker.pump.wait(pending, time.monotonic() + 30.0)
        return tuple((entry.id, entry.owner or worker.address) for entry in entries)

    def settle_references(self, caller: Address, restored: list[ObjectEntry]) -> None:
        """References outlive the task: owners other than the caller know of us before the reply."""
        worker = self.worker
        worker.collect_released()
        pending = Waiter(0)
        with worker.lock:
            pending.remaining += worker.owner.ownership.outlived(restored, caller, pending)
            worker.drain()
        if pending.remaining > 0:
            worker.pump.wait(pending, time.monotonic() + 30.0)

    def _unpin(self, held: list[ObjectEntry]) -> None:
        with self.worker.lock:
            for entry in held:
                self.worker.owner.ownership.unpinned(entry)
            self.worker.drain()

    def actor_repr(self) -> str | None:
        """How the actor shows itself, if its class says so."""
        shown: Any = type(self.actor).__repr__
        if self.actor is None or shown is object.__repr__:
            return None
        try:
            return repr(self.actor)
        except Exception:
            return None

    def cancelled(self, tid: bytes) -> Result:
        """The result of a task that was given up."""
        return self._failure(TaskCancelledError(TaskID(tid) if tid else None))

    def _failure(self, error: Any) -> Result:
        payload = pack_exception(error)
        return Result(FAILED, payload, len(payload))

    def _reply(
        self, peer: Any, call: int, spent: int, results: list[Result], retained: list[bytes],
        more: bool = False,
    ) -> None:
        """Answer a call. Under the lock. `more`: further answers follow soon, and `tell()` behind them."""
        self._send(peer, frames.pack_reply(call, spent, results, retained), spent, more)

    def _send(self, peer: Any, reply: bytes, spent: int, more: bool = False) -> None:
        if output.unfinished:
            output.settle()     # what the task has printed is out before its result is
        if peer.gone:
            return
        if peer.channel is None:
            self.worker.peers.connected(peer.address)
        quiet = (more or bool(self.queue)) and spent < QUIET_US and self._untold < QUIET_REPLIES
        peer.channel.send(reply, quiet)
        if quiet:
            self._quiet[peer] = None
            self._untold += 1
        else:
            self._quiet.pop(peer, None)
            self._untold = 0
        if self.worker.peers.turn:
            self.worker.peers.end_turn()

    def tell(self) -> None:
        """Wake the callers whose replies are in their rings already."""
        with self.worker.lock:
            while self._quiet:
                peer, _ = self._quiet.popitem()
                if peer.channel is not None:
                    peer.channel.flush()
            self._untold = 0

    def _count_call(self, function: Function, peer: Any) -> None:
        """After the last call the owner allows, this process takes no task any more.

        The owner hears of that before the reply; when it has all replies, it gives the worker back
        to the raylet, to be ended.
        """
        function.count += 1
        if function.count == function.max_calls:
            with self.worker.lock:
                self._blocked += 1      # for good: what arrives from now on is sent back
                self._bounce()
                peer.channel.send(frames.pack_bounce([], retiring=True))

    # ---- actors

    def _create_actor(self) -> None:
        start, self._start = self._start, None
        assert start is not None
        spec = start.spec
        self.actor_spec = spec
        self.attempt = start.attempt
        terms = wire.LeaseTerms(scheduling_class=spec.creation_class, slots=start.slots)
        self.assignment = Assignment(terms, dict(spec.lifetime_resources.amounts))
        self.assignment.show_devices()
        self.actor_name = spec.name
        output.is_actor(spec.class_name)
        self.title = f"ray::{spec.class_name}"
        set_process_name(self.title)
        set_process_title(f"{self.title}.__init__")
        failure = calls = None
        held: list[ObjectEntry] = []
        context = TaskContext(b"", f"{spec.class_name}.__init__", 0, spec.actor_id, self.assignment)
        token = CURRENT.set(context)
        restored = values.begin_restoring()
        try:
            if self._broken is not None:
                raise self._broken
            size = int.from_bytes(spec.creation_task[:4], "little")
            cls = imported(spec.creation_task[4 : 4 + size], f"The actor with name {spec.class_name}")
            push = spec.creation_task[4 + size :]
            _, flags, _, _, _, _, context.task_id = frames.PUSH_HEADER.unpack_from(push)
            owner = self.worker.peers.of((spec.owner.node_id, spec.owner.worker_id))
            args, kwargs = self.decode(
                owner, push, flags, held, SimpleNamespace(name=f"{spec.class_name}.__init__", call=cls))
            calls = self._concurrent_calls(spec)
            construct = cls if calls is None else functools.partial(calls.construct, cls, context, restored)
            self.actor = construct(*args, **kwargs)
            del args, kwargs
            output.is_actor(self.actor_repr() or spec.class_name)
        except ExitActor:
            failure = pb.Failure(kind=pb.ACTOR_DIED, message=f"{actor_exit.REASON} in its constructor")
        except BaseException as error:
            task = failing.named(self, error, f"{spec.class_name}.__init__")
            failure = pb.Failure(
                kind=pb.USER_ERROR, payload=pack_exception(task), pid=os.getpid(),
                message=f"the constructor of {spec.class_name} raised {notes.told(error)}"[:2000],
            )  # fmt: skip
        finally:
            CURRENT.reset(token)
            values.end_restoring(restored)
        self._unpin(held)
        self.settle_references(NOBODY, restored)    # the creator, too, lets go of the arguments now
        if failure is None and calls is not None:
            with self.worker.lock:
                self.concurrency = self.concurrency or calls
                while self.queue:
                    calls.submit(*self.queue.popleft())
            termination.install(self)
        ready = wire.ActorReady(actor_id=spec.actor_id, attempt=start.attempt)
        if failure is not None:
            ready.failure.CopyFrom(failure)
        self.worker.raylet.send(wire.ToRaylet(actor_ready=ready))
        if failure is not None:
            if failure.kind == pb.ACTOR_DIED:
                actor_exit.run_handlers(None)
            self.leave(failure.message, pb.BY_USER_ERROR if failure.kind == pb.USER_ERROR else pb.BY_USER)

    def _concurrent_calls(self, spec: pb.ActorSpec) -> Any:
        """What runs the calls of an actor that takes several at once; None for all others."""
        if not (spec.is_async or spec.max_concurrency > 1 or spec.concurrency_groups):
            return None
        from miniray.runtime import concurrency

        return concurrency.of(self, spec)

    # ---- ends

    def leave_soon(self) -> None:
        """The actor has called `exit_actor()`, and is about to raise."""
        actor_exit.leave_soon(self)

    def stop(self) -> None:
        """The worker library shuts down."""
        self.stopping = True

    def system_exit(self, error: SystemExit) -> NoReturn:
        """User code called sys.exit: the process ends, as it would without us."""
        with contextlib.suppress(Exception):    # user code may have closed its streams
            self.worker.say_last_words()
            sys.stdout.flush()
            sys.stderr.flush()
        with self.worker.lock:
            self.worker.log.flush()
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        reason = f"user code called sys.exit({str(error.code)[:200]}), exit code {code}"
        exiting = wire.Exiting(reason=reason, ended_by=pb.BY_NOBODY if code else pb.BY_USER)
        self.worker.raylet.send(wire.ToRaylet(exiting=exiting))
        os._exit(code)

    def leave(self, reason: str, ended_by: pb.EndedBy = pb.BY_NOBODY) -> None:
        """End this process on purpose."""
        try:
            self.worker.say_last_words()
            sys.stdout.flush()
            sys.stderr.flush()
            with self.worker.lock:
                self.worker.log.flush()
            exiting = wire.Exiting(reason=reason, intended=True, ended_by=ended_by)
            self.worker.raylet.send(wire.ToRaylet(exiting=exiting))
        finally:
            os._exit(0)
