"""Generators as tasks: items travel to the owner one by one while the task runs.

With ``num_returns="streaming"`` the caller gets an ObjectRefGenerator at once, and each item is an
object of its own as soon as it is yielded; with ``"dynamic"`` it gets one reference to a generator
of all items. Item ``i`` (from 0) of a task is its return number ``i + 2``. A producer that is
`generator_backpressure` items ahead of its consumer is not resumed until the consumer has taken
one, or is gone.

If the task fails after some items, the next item is its error and the stream ends behind it. With
a fixed number of returns a generator fills them one by one, each stored before the next is made.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miniray.core import ids
from miniray.core.directory import FAILED, FREED, PENDING, STORED, ObjectEntry, freed
from miniray.core.owner import Result
from miniray.core.tasks import DYNAMIC, TaskRecord
from miniray.runtime import frames, past_session
from miniray.runtime import returns as returned
from miniray.runtime.errors import pack_exception, task_error
from miniray.runtime.waiting import Callback, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniray.ids import ObjectRef
    from miniray.runtime.executor import Executor
    from miniray.runtime.task_context import Function
    from miniray.runtime.worker import CoreWorker

NO_LIMIT = 2**32 - 1
"""The count of taken items that lets a producer run to its end."""

SWEEP_ITEMS = 64
"""A stream's list of items in stores is swept of freed ones when it has doubled, and got this longer."""

logger = logging.getLogger(__name__)


class Stream:
    """The owner's side. Fields change under the worker's lock only."""

    def __init__(self, worker: CoreWorker, record: TaskRecord) -> None:
        self.worker = worker
        self.record = record
        self.refs: dict[int, ObjectRef[Any]] = {}
        self.arrived = 0  # items 0 … arrived - 1 have come
        self.taken = 0  # items the consumer has asked for
        self.length: int | None = None
        self.abandoned = False  # nobody will ask for items any more
        self._sweep_at = SWEEP_ITEMS
        self._waiters: list[Any] = []

    # ---- what the machine and the peers report, under the lock

    def item(self, now: float, index: int, result: Result, address: Any) -> None:
        """An item arrived; of one that was seen before, in an earlier attempt, this is another copy."""
        directory = self.worker.owner.directory
        oid = ids.object_id(self.record.id, index + 2)
        if index < self.arrived:
            self.worker.owner.settle(now, directory.find(oid) or freed(oid), result, address)
            self._acknowledge()     # the new attempt does not know what was taken before
            return
        entry = directory.own(oid)
        entry.task = self.record
        if result.state == STORED:
            self._remember(entry)
        ref = self.worker.new_ref(entry)
        if not self.abandoned:
            self.refs[index] = ref
        self.arrived = index + 1
        self.worker.owner.settle(now, entry, result, address)
        self._tell()

    def _remember(self, entry: ObjectEntry) -> None:
        """The item may be lost and made again: it is one of the task's returns as long as it lives."""
        returns = self.record.returns
        if len(returns) >= self._sweep_at:
            returns[1:] = [one for one in returns[1:] if one.state != FREED]
            self._sweep_at = 2 * len(returns) + SWEEP_ITEMS
        returns.append(entry)

    def ended(self, results: list[Result], more: Sequence[ObjectEntry] = ()) -> None:
        """The task is over. `more`: the references inside the last result, if it is an error."""
        if self.length is not None:
            self._fail_missing(results)
            return
        if results and results[-1].state == FAILED:
            self._append_error(results[-1].value, more)
        self.length = self.arrived
        if self.record.template.num_returns == DYNAMIC:
            self.refs.clear()  # the value of the one reference holds them
        self._tell()

    def failed(self, error: Any) -> None:
        """The task failed as a whole: its worker died, or it was cancelled."""
        self.ended([Result(FAILED, error)])

    def _fail_missing(self, results: list[Result]) -> None:
        """Run again for lost items, the task has not made all that it made the first time."""
        missing = [entry for entry in self.record.returns if entry.state == PENDING]
        if not missing:
            return
        error = results[-1].value if results and results[-1].state == FAILED else None
        if error is None:
            text = f"run again for a lost item, it yielded {len(missing)} items fewer than the first time"
            error = pack_exception(task_error(ValueError(text), self.record.name))
        for entry in missing:
            self.worker.owner.complete(time.monotonic(), entry, FAILED, error)

    def _append_error(self, error: Any, inner: Sequence[ObjectEntry]) -> None:
        owner = self.worker.owner
        entry = owner.directory.know(ids.object_id(self.record.id, self.arrived + 2), None)
        self.refs[self.arrived] = self.worker.new_ref(entry)
        self.arrived += 1
        if inner:
            owner.ownership.contains(entry, inner)
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
                if worker.closing:
                    past_session.refuse(self.record.returns[:1], "A generator of Ray objects")
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
        self._acknowledge()
        return self.refs.pop(index)

    def _acknowledge(self) -> None:
        """Tell a producer that minds how many items were taken."""
        record = self.record
        if record.template.generator_backpressure > 0 and not record.done and record.remote is not None:
            count = NO_LIMIT if self.abandoned else self.taken
            header = frames.STREAM_HEADER.pack(frames.STREAM_ACK, 0, 0, record.call, count)
            self.worker.peers.send(record.remote.address, header)
            self.worker.peers.end_turn()

    def when_more(self, then: Callable[[], None]) -> bool:
        """Call `then` when `take` would not block; False if that is so already."""
        with self.worker.lock:
            if self.taken < self.arrived or self.length is not None or self.worker.closing:
                return False
            self._waiters.append(Callback(self.worker.callbacks, then))
            return True

    @property
    def finished(self) -> bool:
        """The task is over and every item was taken."""
        return self.length is not None and self.taken >= self.length

    def dropped(self) -> None:
        """The consumer is gone: items that were not taken are freed, and the producer waits no more.

        Called by a destructor, anywhere: the lock is for the drainer to take.
        """
        self.abandoned = True
        self.refs.clear()
        worker = self.worker
        if self.length is None and self.record.template.generator_backpressure > 0 and not worker.closing:
            worker.callbacks.append(self._let_run)
            worker.pump.wake()

    def _let_run(self) -> None:
        with self.worker.lock:
            self._acknowledge()


def generator(worker: CoreWorker, record: TaskRecord, done: ObjectRef[Any]) -> Any:
    """What a streaming or dynamic call returns. Under the worker's lock, before submission."""
    record.stream = Stream(worker, record)
    record.track()
    if record.template.num_returns == DYNAMIC:
        return done
    from miniray.generator import ObjectRefGenerator

    return ObjectRefGenerator(record.stream, done)


# ---- the worker's side


class Progress:
    """How far the consumer of one running stream is."""

    __slots__ = ("limit", "consumed", "changed")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.consumed = 0
        self.changed = threading.Event()

    def wait_for(self, produced: int) -> None:
        """Until the producer is less than `limit` items ahead."""
        while 0 < self.limit <= produced - self.consumed:
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
    executor: Executor, value: Any, returns: int, tid: bytes, peer: Any, call: int, function: Function
) -> list[Result]:
    """Send each item as it is yielded; the reply ends the stream.

    A "dynamic" task that raises has two results: the generator, whose last item is to be the error,
    and the error.
    """
    items = returned.stream(value)
    count = 0
    progress = _running[(peer, call)] = Progress(function.backpressure)
    try:
        for item in items:
            send_item(executor, item, count, tid, peer, call)
            count += 1
            progress.wait_for(count)
    except Exception as error:
        if returns != DYNAMIC:
            raise
        return [
            last_result(executor, count + 1, returns, tid, peer),
            *_failures(executor, error, function, peer, 1),
        ]
    finally:
        del _running[(peer, call)]
    return [last_result(executor, count, returns, tid, peer)]


def fill(
    executor: Executor, items: Any, returns: int, tid: bytes, peer: Any, function: Function
) -> list[Result]:
    """The results of a generator with a fixed number of returns; an error takes the places left."""
    results: list[Result] = []
    try:
        for item in items:
            if len(results) == returns:
                logger.error(
                    "%s yielded more than its num_returns=%d values: the others are dropped",
                    function.name, returns,
                )  # fmt: skip
                items.close()
                break
            results.append(executor.result(item, ids.object_id(tid, len(results) + 1), peer))
        if len(results) < returns:
            raise returned.too_few(function.name, len(results), returns)
    except Exception as error:
        results.extend(_failures(executor, error, function, peer, returns - len(results)))
    return results


def _failures(
    executor: Executor, error: BaseException, function: Function, peer: Any, count: int
) -> list[Result]:
    from miniray.runtime import failing  # no driver needs it

    return failing.failures(executor, error, function, peer, count)


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
