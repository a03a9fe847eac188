"""Generators as the simulated processes see them; the counterpart of `runtime.streams`.

Items travel to the owner one by one while the task runs; each is an object of its own. A consumer
may go away before the end, and a task that runs again sends its items again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray.core import ids
from miniray.core.directory import FAILED, PENDING, STORED, Address, ObjectEntry, freed
from miniray.core.owner import Result
from miniray.core.tasks import TaskRecord

from .values import Ref
from .world import Coroutine, Future

if TYPE_CHECKING:
    from .worker import SimWorker


class SimStream:
    """The owner's side of one streaming task."""

    def __init__(self, worker: SimWorker, record: TaskRecord) -> None:
        self._worker = worker
        self._record = record
        self._refs: dict[int, Ref] = {}
        self._arrived = 0
        self._taken = 0
        self._length: int | None = None
        self._abandoned = False
        self._more = Future()

    def item(self, now: float, index: int, result: Result, source: Address) -> None:
        """An item has come, perhaps once more."""
        owner = self._worker.owner
        oid = ids.object_id(self._record.id, index + 2)
        if index < self._arrived:
            owner.settle(now, owner.directory.find(oid) or freed(oid), result, source)
            return
        entry = owner.directory.own(oid)
        entry.task = self._record
        if result.state == STORED:
            self._record.returns.append(entry)
        ref = Ref(self._worker, entry)
        self._arrived = index + 1
        owner.settle(now, entry, result, source)
        if self._abandoned:
            ref.drop()
        else:
            self._refs[index] = ref
        self._tell()

    def ended(self, results: list[Result], more: Sequence[ObjectEntry] = ()) -> None:
        """The task is over; run again for a lost item it may have made fewer.

        `more`: the references inside the last result, if it is an error.
        """
        error = results[-1].value if results and results[-1].state == FAILED else None
        if self._length is not None:
            missing = [entry for entry in self._record.returns if entry.state == PENDING]
            fewer = pb.Failure(kind=pb.USER_ERROR, message="it yielded fewer items than before")
            for entry in missing:
                self._worker.owner.complete(self._worker.world.now, entry, FAILED, error or fewer)
            return
        if error is not None and not self._abandoned:
            owner = self._worker.owner
            entry = owner.directory.know(ids.object_id(self._record.id, self._arrived + 2), None)
            self._refs[self._arrived] = Ref(self._worker, entry)
            self._arrived += 1
            if more:
                owner.ownership.contains(entry, more)
            owner.complete(self._worker.world.now, entry, FAILED, error)
        self._length = self._arrived
        self._tell()

    def failed(self, error: Any) -> None:
        """It failed as a whole."""
        self.ended([Result(FAILED, error)])

    def _tell(self) -> None:
        more, self._more = self._more, Future()
        more.set()

    def take(self) -> Coroutine:
        """The next item's reference, None behind the last."""
        while self._taken >= self._arrived:
            if self._length is not None:
                return None
            yield self._more
        self._taken += 1
        return self._refs.pop(self._taken - 1)

    def drop(self) -> None:
        """The consumer goes: what it has not taken is freed."""
        self._abandoned = True
        for ref in self._refs.values():
            ref.drop()
        self._refs.clear()
