"""The worker library: one `CoreWorker` per process, in drivers and workers alike.

It joins the owner machine to the world: the raylet's socket, the node's store, channels to other
workers. User threads call `submit_task`, `get`, `put`, …; whoever waits drains the rings
(`waiting.Pump`); the I/O thread reads the raylet's socket. One lock guards the machine and all
channels; user code (pickling, callbacks, tasks) runs outside it.

    user thread ─┐                 ┌─▶ frames to workers
    I/O thread  ─┼─▶ lock ▸ Owner ─┤
    drainer     ─┘                 └─▶ messages to the raylet

A process has at most one connected CoreWorker (`current()`). After a fork the child has none.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from miniray import _native, config
from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import ids
from miniray.core.directory import FAILED, INLINE, PENDING, STORED, UNKNOWN, Address, ObjectEntry
from miniray.core.owner import Owner
from miniray.core.tasks import ActorTemplate, MethodTemplate, TaskRecord, TaskTemplate
from miniray.exceptions import RaySystemError
from miniray.ids import ObjectRef
from miniray.runtime import (
    actors,
    arguments,
    awaiting,
    cancellation,
    effects,
    frames,
    local_objects,
    past_session,
    streams,
    tasklog,
    values,
)  # fmt: skip
from miniray.runtime.backpressure import Backpressure
from miniray.runtime.connections import Connections
from miniray.runtime.control import Control
from miniray.runtime.definitions import Bound, method_definition
from miniray.runtime.departures import Departures
from miniray.runtime.errors import (
    FailedArgument,
    error_of,
    failure_bytes,
    not_rebuilt,
    raised,
    unpack_exception,
    words_of,
)  # fmt: skip
from miniray.runtime.packed import REF_BYTES, Serialized
from miniray.runtime.peers import Peers
from miniray.runtime.raylet_client import RayletClient
from miniray.runtime.waiting import POLL_LIMIT, Callback, Pump, Waiter

if TYPE_CHECKING:
    from miniray.runtime.log_stream import LogStream
    from miniray.runtime.sites import Sites

INLINE_LIMIT = arguments.INLINE_LIMIT
IDLE_TICK_S = 1.0
EVENTS_EVERY_S = 0.5
logger = logging.getLogger("miniray")

_current: CoreWorker | None = None
_generation = _native.fork_generation()


def current() -> CoreWorker:
    """The connected worker of this process. RaySystemError if there is none, or after a fork."""
    if _current is None:
        raise RaySystemError("miniray is not connected: call miniray.init() first")
    if _native.fork_generation() != _generation:
        raise RaySystemError(
            "this process was forked from one that uses miniray and cannot act for it: "
            "call miniray from the parent, or start a process with the 'spawn' method"
        )
    return _current


def current_or_none() -> CoreWorker | None:
    """The connected worker of this process, if there is one and this is not a fork of it."""
    return _current if _native.fork_generation() == _generation else None


class Asker:
    """A borrower that waits for one of our objects."""

    __slots__ = ("worker", "address")

    def __init__(self, worker: CoreWorker, address: Address) -> None:
        self.worker = worker
        self.address = address

    def notify(self, entry: ObjectEntry) -> None:
        """The object is ready, or given up already. Under the worker's lock."""
        self.worker.answer(self.address, entry.id)


class CoreWorker:
    """See the module head. `address` is (node id, worker id)."""

    def __init__(self, raylet: RayletClient, info: wire.Registered, store_fd: int, is_driver: bool) -> None:
        self.raylet = raylet
        self.is_driver = is_driver
        self.node_info = info.node
        self.session_dir = info.session_dir
        self.job_id: bytes = info.job_id
        self.job: pb.JobInfo = info.job
        self.address: Address = (info.address.node_id, info.address.worker_id)
        self.store = _native.Store.attach(store_fd, info.client_slot)
        os.close(store_fd)
        self.mailbox = _native.Mailbox(self.store)
        self.lock = threading.RLock()
        self.owner = Owner(self.address, config.get("max_lineage_bytes"))
        self.owner.lineage.argument_bytes = arguments.size_of
        self.owner.argument_failed = FailedArgument
        self.owner.cancelled_error = cancellation.error
        self.owner.words_of = words_of
        self._records = _native.RecordMaker(self.owner.directory.objects, ObjectEntry, TaskRecord, ObjectRef)
        self.peers = Peers(self)
        self.departures = Departures(self)
        self.backpressure = Backpressure(self)
        self.pump = Pump(self.mailbox, self._handle, self._tick)
        self.executor: Any = None
        self.actors = actors.Actors(self)
        self.log = tasklog.TaskLog(self)
        self.connections = Connections(self)
        self.control = Control(self)
        self.output: LogStream | None = None        # in a driver that shows what workers print
        self.terms: dict[int, bytes] = {}  # by lease id: what the leased worker must know
        self.callbacks: deque[Callable[[], None]] = deque()
        self.before_leaving: list[Callable[[], None]] = []
        self.sites: Sites | None = None     # where references were made, if that is recorded
        self.closing = False
        self.default_task = b""
        self._ids: Any = None
        self._put_task = b""
        self._put_index = ids.PUT_INDEX
        if self.job_id:
            self.job_assigned(self.job_id)

    # ---- life

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return self.job.namespace

    def job_assigned(self, job_id: bytes) -> None:
        """This process works for `job_id`: ids are made for it."""
        self.job_id = job_id
        self._new_ids()
        self._put_task = self.new_task_id()
        self.default_task = self._put_task

    def start(self) -> None:
        """Start the threads."""
        if config.get("record_ref_creation_sites"):
            from miniray.runtime import sites

            sites.install(self)
        self.control.start()
        self.pump.start()

    def shutdown(self, exiting: bool = False) -> None:
        """Leave the cluster: drivers say goodbye; threads end; views of objects stay valid.

        `exiting`: the interpreter is about to end.
        """
        global _current
        if self.closing:
            return
        self.say_last_words()
        self.closing = True
        if self.executor is not None:
            self.executor.stop()
        with self.lock:
            self.log.flush()
            self.drain()
        output = self.output
        if output is not None and (output.far or self.peers.cross_nodes()):
            output.await_late_lines()
        self.raylet.send(wire.ToRaylet(exiting=wire.Exiting(reason="ray.shutdown()", intended=True)))
        if output is not None:
            self.control.await_goodbye()
        self.pump.stop(exiting)
        self.raylet.close()
        self.control.join()
        with self.lock:
            self.owner.directory.end()
            self.peers.close()
            self.connections.close()
        self.mailbox.close()
        self.store.close()
        if output is not None:
            output.close()
        if _current is self:
            _current = None

    def say_last_words(self) -> None:
        """This process is about to leave on purpose: what it has to report goes out now."""
        for report in self.before_leaving:
            report()

    # ---- ids

    def _new_ids(self) -> None:
        self._ids = _native.IdGenerator(os.urandom(5), ids.NO_ACTOR + self.job_id)

    def new_task_id(self, actor_id: bytes | None = None) -> bytes:
        """A fresh TaskID of this job, or of an actor of it."""
        try:
            return self._ids.next(actor_id)  # type: ignore[no-any-return]
        except OverflowError:
            self._new_ids()
            return self._ids.next(actor_id)  # type: ignore[no-any-return]

    def new_ref(self, entry: ObjectEntry) -> ObjectRef[Any]:
        """A live reference to an entry of this process."""
        return ObjectRef(entry.id, entry.owner, entry)

    # ---- tasks

    def submit_task(self, template: TaskTemplate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submit a task. Returns its ObjectRef, a list of them, a generator, or None for no returns."""
        encoded = arguments.encode(args, kwargs, self.store_packed, template) if args or kwargs else b""
        bound = template.bound
        if bound is None or bound.worker is not self:
            bound = template.bound = Bound(self, template)
        tid = self.new_task_id()
        return self._submit(template, tid, encoded, template.max_retries, bound.lane, None)

    def submit_actor_task(
        self, client: Any, method: MethodTemplate, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Submit an actor call; the same return forms as `submit_task`."""
        encoded = arguments.encode(args, kwargs, self.store_packed, method) if args or kwargs else b""
        if client.max_pending_calls >= 0:
            self.actors.admit(client)
        tid = self.new_task_id(client.id)
        retries = method.max_task_retries
        return self._submit(
            method, tid, encoded, client.max_task_retries if retries is None else retries, None, client
        )

    def _submit(self, template: Any, tid: bytes, encoded: Any, retries: int, lane: Any, client: Any) -> Any:
        plain = type(encoded) is bytes
        count = template.num_returns
        parent = self.executor.current_task if self.executor is not None else self.default_task
        slots, held = (None, None) if plain else (encoded.slots, encoded.held)
        if self.owner.unfinished >= self.backpressure.limit:
            self.backpressure.await_room()
        now = time.monotonic()
        with self.lock:
            if count == 1 or count < 0:
                record, result = self._records.task(
                    tid, template, encoded, slots, held, retries, lane, client, parent, now
                )
                if count < 0:
                    result = streams.generator(self, record, result)
            else:
                own = self.owner.directory.own
                returns = [own(ids.object_id(tid, i + 1)) for i in range(count)]
                result = [self.new_ref(entry) for entry in returns]
                record = TaskRecord(
                    tid, template, encoded, slots, held, returns, retries, lane, client, parent, now
                )
                for entry in returns:
                    entry.task = record
            self.owner.submitted(now, record)
            if not plain:
                encoded.alive = None    # the entries are pinned now
            if self.owner.out:
                effects.drain(self, burst=True)
        if _native.released_pending():
            self.collect_released()
        return (result or None) if count == 0 else result

    def create_actor(self, template: ActorTemplate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Register an actor; returns its id. ValueError if its name is taken."""
        return self.actors.create(template, args, kwargs)

    def actor_client(self, actor_id: bytes) -> Any:
        """This process's client of an actor."""
        return self.actors.client(actor_id)

    def kill_actor(self, actor_id: bytes, no_restart: bool = True) -> None:
        """End an actor at once."""
        self.actors.kill(actor_id, no_restart)

    def handle_token(self, actor_id: bytes) -> ObjectRef[Any] | None:
        """The reference that the first handle of an actor made here carries; None later or elsewhere."""
        return self.actors.token(actor_id)

    def definition(self, template: Any) -> bytes:
        """What a peer must know of a function or method, once."""
        if isinstance(template, MethodTemplate):
            return method_definition(template)
        return template.bound.definition  # type: ignore[no-any-return]

    def may_retry(self, record: TaskRecord, error: bytes) -> bool:
        """User code raised: does the caller want another attempt?"""
        wanted = record.template.retry_exceptions
        if not wanted or record.retries_left == 0 or record.cancel_requested:
            return False
        if wanted is True:
            return True
        restored = values.begin_restoring()
        try:
            cause = unpack_exception(error)
        finally:
            values.end_restoring(restored)
        return isinstance(getattr(cause, "cause", cause), tuple(wanted))

    def task_context(self) -> Any:
        """What runs on the calling thread or coroutine (`executor.TaskContext`); None outside of tasks."""
        return self.executor.context() if self.executor is not None else None

    def cancel(self, ref: ObjectRef[Any], force: bool = False, recursive: bool = True) -> None:
        """Give up the task behind `ref`; no effect when it has ended."""
        cancellation.cancel(self, ref.entry, force, recursive)

    # ---- objects

    def put(self, value: Any, owner: Any = None) -> ObjectRef[Any]:
        """Store a value; small ones stay in this process until somebody asks."""
        if isinstance(value, ObjectRef):
            raise TypeError(
                "Calling 'put' on an ray.ObjectRef is not allowed. If you really want to do this, you can "
                "wrap the ray.ObjectRef in a list and call 'put' on it."
            )
        return self.store_packed(values.serialize(value))

    def store_packed(self, packed: Serialized) -> ObjectRef[Any]:
        """Own an already serialized value."""
        if packed.refs:
            past_session.refuse([ref.entry for ref in packed.refs], "Ray object")
        self._put_index = index = self._put_index + 1
        oid = ids.object_id(self._put_task, index)
        size = packed.nbytes
        if size > INLINE_LIMIT:
            local_objects.write(self, oid, packed, size, self.address)
        with self.lock:
            entry = self.owner.directory.own(oid)
            if size > INLINE_LIMIT:
                entry.state = STORED
                entry.more().locations[self.address[0]] = None
            else:
                entry.state = INLINE
                entry.value = packed.pack()
            entry.size = size
            if packed.refs:
                self.owner.ownership.contains(entry, [ref.entry for ref in packed.refs])
            ref = self.new_ref(entry)
        self.collect_released()
        return ref

    def get(self, refs: Sequence[ObjectRef[Any]], timeout: float | None = None) -> list[Any]:
        """The values, in order. Raises the first error met, or GetTimeoutError saying what is missing."""
        deadline = None if timeout is None else time.monotonic() + timeout
        first = _native.first_pending(refs)
        if first >= 0 and not awaiting.attended(self, refs, first, timeout):
            failed = awaiting.await_all(self, refs, deadline, timeout)
            if failed is not None:      # without waiting for the others
                raise self.load_error(failed)
        out: list[Any] = []
        try:
            for ref in refs:
                entry: ObjectEntry = ref.entry
                state = entry.state
                if state == INLINE:
                    plain = entry.rare is None and entry.owner is None  # no references inside
                    out.append(values.deserialize(entry.value) if plain else self.load(entry, entry.value))
                elif state in (STORED, PENDING, UNKNOWN):   # lost since it was ready: it is made again
                    out.append(local_objects.read(self, entry, deadline))
                else:
                    raise self.load_error(entry)
        except Exception as error:
            awaiting.note_unreadable(error, refs[len(out)].entry)
            raise
        self.collect_released()
        return out

    def load(self, entry: ObjectEntry, payload: Any) -> Any:
        """Deserialize a value; references inside it are borrowed while `entry` holds them."""
        restored = values.begin_restoring()
        try:
            value = values.deserialize(payload)
        finally:
            values.end_restoring(restored)
        if restored:
            self._borrow(restored, entry)
        return value

    def load_error(self, entry: ObjectEntry) -> BaseException:
        """What `get` raises for a failed object; references inside are borrowed like those in a value."""
        restored = values.begin_restoring()
        try:
            error = raised(error_of(entry))
        finally:
            values.end_restoring(restored)
        if restored:
            self._borrow(restored, entry)
        return error

    def _borrow(self, restored: list[ObjectEntry], entry: ObjectEntry) -> None:
        with self.lock:
            for inner in restored:
                if inner.owner is not None:
                    self.owner.ownership.borrow(inner, entry)
            self.drain()
        values.note_outside(restored)  # a task's reply waits for the owners' answers

    def collect_released(self) -> None:
        """Count off the ObjectRefs that died."""
        if _native.released_pending():
            self._released(_native.drain_released())

    def wait_yielding(self, waiter: Waiter, deadline: float | None) -> bool:
        """Wait; a task that waits long gives its CPU and its queue back meanwhile."""
        return awaiting.wait_yielding(self, waiter, deadline)

    def wait(
        self,
        refs: Sequence[ObjectRef[Any]],
        num_returns: int,
        timeout: float | None,
        fetch_local: bool = True,
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Split `refs` into (ready, not ready), at most `num_returns` ready ones, both in input order."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ready, rest = _native.split_ready(refs, num_returns)
        if len(ready) < num_returns:
            awaiting.await_some(self, rest, num_returns - len(ready), timeout)
            ready, rest = _native.split_ready(refs, num_returns)
        if fetch_local:
            local_objects.bring_ready(self, [ref.entry for ref in ready], deadline)
        return ready, rest

    def when_ready(self, ref: ObjectRef[Any], then: Callable[[], None]) -> None:
        """Call `then` once the object is ready, outside all locks, on some thread of this process."""
        with self.lock:
            if not ref.entry.ready:
                past_session.refuse([ref.entry])
                self.owner.await_entry(ref.entry, Callback(self.callbacks, then))
                self.drain()
                return
        then()

    def as_future(self, ref: ObjectRef[Any]) -> Any:
        """A concurrent.futures.Future of the object's value."""
        return local_objects.future(self, ref)

    def owner_bytes(self, ref: ObjectRef[Any]) -> bytes:
        """The owner's address as it travels with the reference: 56 bytes."""
        return frames.pack_address(ref.entry.owner or self.address)

    def ref_restored(self, oid: bytes, owner_address: bytes) -> ObjectRef[Any]:
        """A reference arrived in a message or a value."""
        with self.lock:
            ref: ObjectRef[Any] | None = self._records.known(oid)
            if ref is None:
                ref = self.new_ref(self._meet(oid, owner_address))
        values.restored(ref.entry)
        return ref

    def ref_if_known(self, oid: bytes) -> ObjectRef[Any] | None:
        """One more reference of an object that this process has one of."""
        self.collect_released()
        with self.lock:
            ref: ObjectRef[Any] | None = self._records.known(oid)
            return ref

    def refs_restored(self, table: bytes) -> list[ObjectRef[Any]]:
        """The references inside a value arrived: ids and owners' addresses in one table."""
        with self.lock:
            refs, unknown = self._records.known_all(table, REF_BYTES)
            for index in unknown:
                row = table[index * REF_BYTES : (index + 1) * REF_BYTES]
                refs[index] = self.new_ref(self._meet(row[:28], row[28:]))
        values.restored_all(refs)
        return refs

    def _meet(self, oid: bytes, owner_address: bytes) -> ObjectEntry:
        """An object this process knew nothing of. Under the lock."""
        owner = frames.unpack_address(owner_address) if owner_address else None
        if owner is not None and owner != self.address:
            return self.owner.directory.know(oid, owner)
        entry = self.owner.directory.know(oid, None)
        failure = pb.Failure(kind=pb.OBJECT_LOST, message="it was freed: nothing referred to it any more")
        self.owner.complete(time.monotonic(), entry, FAILED, failure)
        return entry

    def answer(self, asker: Address, oid: bytes) -> None:
        """A borrower asks for one of our objects. Under the lock."""
        entry = self.owner.directory.find(oid)
        if entry is None:
            entry = ObjectEntry(oid)
            entry.state = FAILED
            entry.value = pb.Failure(kind=pb.OBJECT_LOST, message="its owner has freed it")
        if entry.ready:
            self.peers.send(asker, frames.pack_answer(entry, failure_bytes))
        else:
            self.owner.await_entry(entry, Asker(self, asker))

    def copy_lost(self, oid: bytes, node: bytes, teller: Address | None = None, why: str = "") -> None:
        """A copy that should be on `node` is not there: another one, or run its task again."""
        owner = self.owner
        if owner.location_removed(time.monotonic(), oid, node):
            entry = owner.directory.find(oid)
            assert entry is not None
            refusal = owner.rebuild(time.monotonic(), entry)
            if refusal is not None:
                owner.lost(entry, not_rebuilt(refusal, oid, node, why))
        if teller is not None:
            self.answer(teller, oid)

    def drain(self, burst: bool = False) -> None:
        """Carry out what the machine decided. Under the lock. `burst`: more calls may follow at once."""
        effects.drain(self, burst)

    def _released(self, released: list[ObjectEntry]) -> None:
        with self.lock:
            while released:
                self.owner.ownership.released(released)
                released = _native.drain_released()
            if self.owner.out:
                self.drain()

    # ---- turns

    def _handle(self, batch: list[Any]) -> None:
        """A turn of the drainer."""
        with self.lock:
            if batch:
                self.peers.handle(batch)
            if self.departures.pending():
                self.departures.turn(len(batch) < POLL_LIMIT)
            if self.owner.out or self.peers.turn:
                self.drain()
            if self.backpressure.waiting:
                self.backpressure.turn()
        if self.callbacks:
            self.run_callbacks()
        self.collect_released()

    def give_back_idle_leases(self) -> None:
        """What ends with something else, a placement group say, shall not end workers that only wait here."""
        with self.lock:
            self.owner.submission.give_back_idle()
            self.drain()

    def request(self, field: str, message: Any, timeout: float | None = 60.0) -> gcs.ControlReply:
        """One control-plane request; raises the typed error of a refusal, GetTimeoutError if no answer."""
        return self.control.request(field, message, timeout)

    def subscribe(self, channel: str, key: bytes, callback: Callable[[Any], None]) -> None:
        """`callback(publication)` for each later publication; runs on the I/O thread."""
        self.control.subscribe(channel, key, callback)

    def run_callbacks(self) -> None:
        """Call what waited for objects that are ready now. Without the lock."""
        with self.backpressure.exemption():
            while self.callbacks:
                try:
                    callback = self.callbacks.popleft()
                except IndexError:
                    return
                callback()

    def run_callbacks_apart(self) -> None:
        """The same from the I/O thread, which they may have to wait for: an object's bytes are asked for."""
        threading.Thread(target=self.run_callbacks, name="callbacks", daemon=True).start()

    def _tick(self) -> float:
        """Housekeeping of the drainer; returns seconds until the next."""
        now = time.monotonic()
        with self.lock:
            self.owner.tick(now)
            self.departures.tick(now)
            self.log.tick(now)
            if self.control.loss is not None:
                self.control.fail_unfinished(now)
            self.drain()
            due = self.owner.next_deadline()
        if self.executor is not None:
            self.executor.tick(now)
        self.collect_released()
        if self.callbacks:
            self.run_callbacks()
        pause = IDLE_TICK_S if due is None else max(0.001, min(IDLE_TICK_S, due - now))
        return min(pause, self.log.pause())


def set_current(worker: CoreWorker) -> None:
    """Make `worker` this process's own."""
    global _current, _generation
    _current = worker
    _generation = _native.fork_generation()


@atexit.register
def _at_exit() -> None:
    worker = current_or_none()
    if worker is not None and worker.is_driver:
        with contextlib.suppress(Exception):
            worker.shutdown(exiting=True)
