"""Generators as tasks: items travel to the owner one by one while the task runs.

With ``num_returns="streaming"`` the caller gets an ObjectRefGenerator at once, and each item is an
object of its own as soon as it is yielded; with ``"dynamic"`` it gets one reference to a generator
of all items. Item ``i`` (from 0) of a task is its return number ``i + 2``. A producer that is
`generator_backpressure` items ahead of its consumer waits.

If the task fails after some items, the next item is its error and the stream ends behind it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from miniray.core import ids
from miniray.core.directory import FAILED
from miniray.core.owner import Result
from miniray.core.tasks import DYNAMIC, TaskRecord
from miniray.runtime import frames
from miniray.runtime.waiting import Callback, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniray.ids import ObjectRef
    from miniray.runtime.executor import Executor
    from miniray.runtime.worker import CoreWorker


class Stream:
    """The owner's side. Fields change under the worker's lock only."""

    def __init__(self, worker: CoreWorker, record: TaskRecord) -> None:
        self.worker = worker
        self.record = record
        self.refs: dict[int, ObjectRef[Any]] = {}
        self.arrived = 0  # items 0 … arrived - 1 have come
        self.taken = 0  # items the consumer has asked for
        self.length: int | None = None
        self._waiters: list[Any] = []

    # ---- what the machine and the peers report, under the lock

    def item(self, now: float, index: int, result: Result, address: Any) -> None:
        """An item arrived; one that was seen before (a retry of the task) is ignored."""
        if index < self.arrived:
            return
        directory = self.worker.owner.directory
        entry = directory.own(ids.object_id(self.record.id, index + 2))
        entry.task = self.record
        self.refs[index] = self.worker.new_ref(entry)
        self.arrived = index + 1
        self.worker.owner.settle(now, entry, result, address)
        self._tell()

    def ended(self, results: list[Result]) -> None:
        """The task is over."""
        if self.length is not None:
            return
        if results and results[0].state == FAILED:
            self._append_error(results[0].value)
        self.length = self.arrived
        if self.record.template.num_returns == DYNAMIC:
            self.refs.clear()  # the value of the one reference holds them
        self._tell()

    def failed(self, error: Any) -> None:
        """The task failed as a whole: its worker died, or it was cancelled."""
        self.ended([Result(FAILED, error)])

    def _append_error(self, error: Any) -> None:
        owner = self.worker.owner
        entry = owner.directory.own(ids.object_id(self.record.id, self.arrived + 2))
        self.refs[self.arrived] = self.worker.new_ref(entry)
        self.arrived += 1
        owner.complete(time.monotonic(), entry, FAILED, error)

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        self.worker.owner.out.extend((waiter, None) for waiter in waiters)

    # ---- the consumer

    def take(self, deadline: float | None) -> ObjectRef[Any] | None:
        """The next item's reference, None at the end. Blocks; TimeoutError past `deadline`."""
        worker = self.worker
        while True:
            with worker.lock:
                if self.taken < self.arrived:
                    return self._take_one()
                if self.length is not None:
                    return None
                waiter = Waiter(1)
                self._waiters.append(waiter)
            if not worker.wait_yielding(waiter, deadline):
                raise TimeoutError

    def _take_one(self) -> ObjectRef[Any]:
        index = self.taken
        self.taken += 1
        remote = self.record.remote
        if self.record.template.generator_backpressure > 0 and not self.record.done and remote is not None:
            header = frames.STREAM_HEADER.pack(frames.STREAM_ACK, 0, 0, self.record.call, self.taken)
            self.worker.peers.send(remote.address, header)
            self.worker.peers.end_turn()
        return self.refs.pop(index)

    def when_more(self, then: Callable[[], None]) -> bool:
        """Call `then` when `take` would not block; False if that is so already."""
        with self.worker.lock:
            if self.taken < self.arrived or self.length is not None:
                return False
            self._waiters.append(Callback(self.worker.callbacks, then))
            return True

    @property
    def finished(self) -> bool:
        """The task is over and every item was taken."""
        return self.length is not None and self.taken >= self.length

    def dropped(self) -> None:
        """The consumer is gone: items that were not taken are freed."""
        self.refs.clear()


def generator(worker: CoreWorker, record: TaskRecord, done: ObjectRef[Any]) -> Any:
    """What a streaming or dynamic call returns. Under the worker's lock, before submission."""
    record.stream = Stream(worker, record)
    if record.template.num_returns == DYNAMIC:
        return done
    from miniray.generator import ObjectRefGenerator

    return ObjectRefGenerator(record.stream, done)


# ---- the worker's side


class Progress:
    """How far the consumer of one running stream is."""

    __slots__ = ("consumed", "changed")

    def __init__(self) -> None:
        self.consumed = 0
        self.changed = threading.Event()

    def wait_for(self, produced: int, limit: int) -> None:
        """Until the producer is less than `limit` items ahead."""
        while produced - self.consumed >= limit:
            self.changed.wait(1.0)
            self.changed.clear()


_running: dict[tuple[Any, int], Progress] = {}


def consumed(peer: Any, call: int, count: int) -> None:
    """The consumer has taken `count` items: a waiting producer may go on."""
    progress = _running.get((peer, call))
    if progress is not None:
        progress.consumed = count
        progress.changed.set()


def produce(
    executor: Executor, value: Any, returns: int, tid: bytes, peer: Any, call: int, limit: int
) -> list[Result]:
    """Send each item as it is yielded; the reply ends the stream."""
    if not hasattr(value, "__iter__"):
        raise ValueError(
            "num_returns='streaming' or 'dynamic' needs a generator, "
            f"but the task returned {type(value).__name__}"
        )
    count = 0
    progress = _running[(peer, call)] = Progress()
    try:
        for item in value:
            if limit > 0:
                progress.wait_for(count, limit)
            send_item(executor, item, count, tid, peer, call)
            count += 1
    finally:
        del _running[(peer, call)]
    return [last_result(executor, count, returns, tid, peer)]


def send_item(executor: Executor, item: Any, index: int, tid: bytes, peer: Any, call: int) -> None:
    """One item to the owner."""
    result = executor.result(item, ids.object_id(tid, index + 2), peer)
    header = frames.STREAM_HEADER.pack(frames.STREAM_ITEM, 0, 0, call, index)
    with executor.worker.lock:
        executor.worker.peers.send(peer.address, header + b"".join(frames.pack_result(result)))
        executor.worker.peers.end_turn()


def last_result(executor: Executor, count: int, returns: int, tid: bytes, peer: Any) -> Result:
    """The value of the task itself: None, or for "dynamic" a generator of the items' references."""
    value: Any = None
    if returns == DYNAMIC:
        from miniray.generator import DynamicObjectRefGenerator

        restore, owner = executor.worker.ref_restored, frames.pack_address(peer.address)
        value = DynamicObjectRefGenerator([restore(ids.object_id(tid, i + 2), owner) for i in range(count)])
    return executor.result(value, ids.object_id(tid, 1), peer)
