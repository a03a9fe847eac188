"""Objects in the node's store, as a worker reads and writes them.

Writing takes no round trip while there is room; a full store asks the raylet to make some and
waits its turn. Reading maps the segment: arrays are views that pin the object until they die. An
object of another node is pulled by the raylet first; if a copy is gone the owner is asked for
another, and the owner runs the task again when the last one is lost.

Any thread, outside the worker's lock.
"""

from __future__ import annotations

import concurrent.futures
import time
from typing import TYPE_CHECKING, Any

from miniray import _native
from miniray._proto import common_pb2 as pb
from miniray._proto import worker_pb2 as wire
from miniray.core.directory import FAILED, INLINE, PENDING, STORED, UNKNOWN, Address, ObjectEntry
from miniray.exceptions import GetTimeoutError, ObjectStoreFullError, RaySystemError
from miniray.runtime import awaiting, frames
from miniray.runtime.errors import exception_of, raised, unpack_exception

if TYPE_CHECKING:
    from miniray.runtime.packed import Serialized
    from miniray.runtime.worker import CoreWorker

ROOM_TIMEOUT_S = 600.0
WAIT_PULL_S = 5.0
ARGUMENTS_SHARE = 0.9
"""Arguments of one task that take more of the store than this are not waited for."""


def write(worker: CoreWorker, oid: bytes, packed: Serialized, size: int, owner: Address) -> None:
    """Create and seal the object in the node's store. ObjectStoreFullError when it can never fit."""
    parts = packed.parts()
    while True:
        try:
            worker.store.put(oid, parts)
            break
        except _native.ObjectExists:
            return  # an earlier attempt of the same task made it
        except _native.StoreFull:
            make_room(worker, oid, size)
    sealed = wire.ObjectSealed(object_id=oid, size=size)
    sealed.owner.node_id, sealed.owner.worker_id = owner
    worker.raylet.send(wire.ToRaylet(object_sealed=sealed))


def make_room(worker: CoreWorker, oid: bytes, size: int) -> None:
    """Ask the raylet to evict or spill; returns when it is worth trying again."""
    reply, number = worker.control.expect()
    worker.raylet.send(wire.ToRaylet(make_room=wire.MakeRoom(request_id=number, bytes=size, object_id=oid)))
    if not reply.wait(ROOM_TIMEOUT_S):
        raise ObjectStoreFullError(
            f"no room for object {oid.hex()} ({size} bytes) after {ROOM_TIMEOUT_S:.0f} s"
        )
    if reply.value is None:
        raise RaySystemError("the connection to the raylet ended")
    if reply.value.failure.kind:
        raise exception_of(reply.value.failure, object_id=oid)


def read(worker: CoreWorker, entry: ObjectEntry, deadline: float | None) -> Any:
    """The value of an entry that is or was ready: one that is being made again is waited for."""
    while entry.state == STORED:
        buffer = worker.store.get(entry.id)
        if buffer is not None:
            return worker.load(entry, buffer)
        pull(worker, entry, deadline)
    if entry.state in (PENDING, UNKNOWN):
        awaiting.await_one(worker, entry, deadline)
        return read(worker, entry, deadline)
    if entry.state != INLINE:
        raise worker.load_error(entry)
    return worker.load(entry, entry.value)


def buffer_of(worker: CoreWorker, entry: ObjectEntry) -> Any:
    """The packed bytes of an entry that is or was ready, pinned if they are in the store."""
    while entry.state == STORED:
        buffer = worker.store.get(entry.id)
        if buffer is not None:
            return buffer
        pull(worker, entry, None)
    if entry.state in (PENDING, UNKNOWN):
        awaiting.await_one(worker, entry, None)
        return buffer_of(worker, entry)
    if entry.state != INLINE:
        raise worker.load_error(entry)
    return entry.value


def pull(
    worker: CoreWorker, entry: ObjectEntry, deadline: float | None, priority: int = wire.PullRequest.GET
) -> None:
    """Bring a copy to this node, or learn that the entry changed."""
    reply = request_pull(worker, entry, priority)
    left = None if deadline is None else deadline - time.monotonic()
    executor = worker.executor
    lends = priority != wire.PullRequest.ARGUMENT  # a task that has not begun does not make way for more
    waiting = lends and executor is not None and executor.on_task_thread() and not reply.wait(0.002)
    if waiting:
        executor.blocked()
    try:
        arrived = reply.wait(left)
    finally:
        if waiting:
            executor.unblocked()
    if not arrived:
        where = ", ".join(n.hex()[:12] for n in entry.locations) or "no node"
        raise GetTimeoutError(
            f"Get timed out: object {entry.id.hex()} ({entry.size} bytes) is being pulled from {where}"
        )
    answer = reply.value
    if answer is None:
        raise RaySystemError("the connection to the raylet ended")
    if answer.failure.kind in (pb.STORE_FULL, pb.OUT_OF_DISK):
        raise exception_of(answer.failure, object_id=entry.id)
    if answer.failure.kind:
        copies_lost(worker, entry, list(answer.failed_nodes) or entry.locations)


def request_pull(worker: CoreWorker, entry: ObjectEntry, priority: int) -> Any:
    """Start a pull; returns the place for its answer."""
    reply, number = worker.control.expect()
    message = wire.PullRequest(
        request_id=number,
        object_id=entry.id,
        locations=entry.locations,
        size=entry.size,
        priority=priority,  # type: ignore[arg-type]
    )
    owner = entry.owner or worker.address
    message.owner.node_id, message.owner.worker_id = owner
    worker.raylet.send(wire.ToRaylet(pull=message))
    return reply


def copies_lost(worker: CoreWorker, entry: ObjectEntry, nodes: list[bytes]) -> None:
    """None of `nodes` could deliver. The owner decides what follows."""
    with worker.lock:
        if entry.state != STORED:
            return
        if entry.owner is None:
            for node in nodes:
                worker.copy_lost(entry.id, node)
        else:
            entry.more().locations.clear()
            entry.state = PENDING
            *others, last = nodes or [bytes(28)]
            for node in others:
                lost = frames.pack_object(frames.LOST, entry.id, (node, bytes(28)), frames.MORE_LOST)
                worker.peers.send(entry.owner, lost)
            worker.peers.send(entry.owner, frames.pack_object(frames.LOST, entry.id, (last, bytes(28))))
        worker.drain()


def bring_ready(worker: CoreWorker, entries: list[ObjectEntry], deadline: float | None) -> None:
    """Have copies here of remote objects that a `wait` reports ready, as far as the time allows.

    What takes longer than `WAIT_PULL_S` comes later: it is ready all the same.
    """
    pulls = [
        request_pull(worker, entry, wire.PullRequest.WAIT)
        for entry in entries
        if entry.state == STORED
        and worker.address[0] not in entry.locations
        and not worker.store.contains(entry.id)
    ]
    latest = time.monotonic() + WAIT_PULL_S
    until = latest if deadline is None else min(deadline, latest)
    for reply in pulls:
        reply.wait(max(0.0, until - time.monotonic()))


def fetch(
    worker: CoreWorker, slot: frames.Slot, caller: Address, held: list[ObjectEntry], raw: bool = False
) -> Any:
    """The value of an argument slot on the worker that runs the task; raises its error.

    What it needs to keep until the task's end is pinned and noted in `held`.
    """
    if slot.state == FAILED:
        raise raised(unpack_exception(slot.payload))
    if slot.state == INLINE and raw:
        return slot.payload
    entry = _holder(worker, slot, caller)
    held.append(entry)
    if slot.state == INLINE:
        return worker.load(entry, slot.payload)
    if worker.executor is not None and worker.executor.actor_spec is None:
        _bring(worker, entry, caller, held)
    return buffer_of(worker, entry) if raw else read(worker, entry, None)


class ArgumentLost(Exception):
    """All copies of an argument are gone: its owner, who sent the task, has to make it again first."""


class ArgumentsDoNotFit(Exception):
    """There is no room here for one more argument while others hold what is there."""


def _bring(worker: CoreWorker, entry: ObjectEntry, caller: Address, held: list[ObjectEntry]) -> None:
    """Have a copy here before the task starts.

    ArgumentLost rather than waiting for it to be made again: that may need just what this task
    holds. ArgumentsDoNotFit rather than holding some arguments while others hold the room for the
    rest; ObjectStoreFullError when they can never be here together.
    """
    try:
        while entry.state == STORED and not worker.store.contains(entry.id):
            pull(worker, entry, None, wire.PullRequest.ARGUMENT)
    except ObjectStoreFullError:
        together = sum({one.id: one.size for one in held}.values())
        if together > ARGUMENTS_SHARE * worker.store.capacity:
            raise
        raise ArgumentsDoNotFit from None
    if entry.state == PENDING and entry.owner == caller:
        raise ArgumentLost


def _holder(worker: CoreWorker, slot: frames.Slot, caller: Address) -> ObjectEntry:
    """The pinned entry of an argument object; the caller keeps the object until the reply."""
    with worker.lock:
        directory = worker.owner.directory
        entry = directory.find(slot.object_id)
        if entry is None:
            owner = slot.owner or caller
            entry = directory.know(slot.object_id, None if owner == worker.address else owner)
        entry.pins += 1
        if slot.state == STORED and not entry.ready:
            for node in slot.nodes:
                entry.more().locations[node] = None
            worker.owner.complete(time.monotonic(), entry, STORED, None, slot.size)
        return entry


def future(worker: CoreWorker, ref: Any) -> concurrent.futures.Future[Any]:
    """A future that gets the object's value or error."""
    result: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def ready() -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            value = worker.get([ref])[0]
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(value)

    worker.when_ready(ref, ready)
    return result
