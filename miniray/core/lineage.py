"""Lineage: how a lost object is made again, and what must be remembered for that.

An object whose copies are all lost is rebuilt by running its task again. Its arguments may have
been freed since: then their tasks run first, and so on. So a finished task whose results are in
stores keeps its arguments' *entries*: one that is in a store and can be made again is freed all the
same but keeps its task, others simply stay, and both go with the last task that refers to them::

    a (freed) ◀── held ── task of b ◀── b (freed) ◀── held ── task of c ◀── c (STORED, referenced)

A call of an actor may run again if it was given retries; a dead actor's fails with its cause.
What nobody can make again: values of `put`, objects of other owners, and results of tasks and calls
that were cancelled or have no attempt left. What is remembered has a limit in
bytes: beyond it the oldest tasks are forgotten, and their results cannot be rebuilt any more.
Pure; part of `Owner`, shares its directory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import ids
from .directory import FREED, INLINE, PENDING, STORED, Directory, ObjectEntry
from .tasks import TaskRecord

LIMIT_BYTES = 1 << 30
RECORD_BYTES = 600
"""What one task costs beside its arguments: its record, the entries of its results."""


@dataclass(slots=True, frozen=True)
class NotRebuilt:
    """Why a lost object stays lost. `reason` is one of Ray's names, `entry` what cannot be made."""

    reason: str
    entry: ObjectEntry


class Lineage:
    """Which finished tasks may have to run again; see the module head."""

    def __init__(self, directory: Directory, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.forgotten = 0
        """Tasks forgotten because of the limit."""
        self.consider: Callable[[ObjectEntry], None] = lambda entry: None
        """`Ownership.consider`, once that is made."""
        self.argument_bytes: Callable[[TaskRecord], int] = lambda record: 0
        """Bytes of a task's own encoded arguments, without the objects among them; the shell knows."""
        self._kept: dict[TaskRecord, int] = {}
        """Ended tasks that may run again, oldest first, with the bytes remembered for each."""

    def keeps(self, record: TaskRecord) -> bool:
        """Whether an ended task may have to run again: its arguments are still needed."""
        return record in self._kept

    def done(self, record: TaskRecord) -> None:
        """A task has ended and its arguments are unpinned next: remember it if it may run again."""
        if record.retries_left != 0 and any(entry.state == STORED for entry in record.returns):
            size = RECORD_BYTES + self.argument_bytes(record)
            for entry in record.held or ():
                entry.more().lineage += 1
                if entry.state == INLINE:
                    size += entry.size
            self._kept[record] = size
            self.bytes += size
            while self.bytes > self.limit_bytes:
                self._forget_oldest()
        else:
            record.held = None
            record.dependencies = None

    def _forget_oldest(self) -> None:
        record = next(iter(self._kept))
        self.forgotten += 1
        for entry in record.returns:
            entry.task = None
        self._cut(self._release(record))

    def _release(self, record: TaskRecord) -> list[ObjectEntry]:
        """The task will never run again. Returns what it took that nobody needs to make any more."""
        self.bytes -= self._kept.pop(record, 0)
        held, record.held, record.dependencies = record.held or (), None, None
        useless = []
        for one in held:
            one.more().lineage -= 1
            if one.more().lineage:
                continue
            if one.state == FREED:
                useless.append(one)
            else:
                self.consider(one)
        return useless

    def freed(self, entry: ObjectEntry) -> None:
        """Nothing can reach the object: forget its task, unless a later task may need it made."""
        if entry.rare is None or not entry.rare.lineage:
            self._cut([entry])

    def _cut(self, entries: list[ObjectEntry]) -> None:
        """These freed objects will never be made again; nor, perhaps, what they were made of."""
        for entry in entries:       # grows meanwhile
            record: TaskRecord | None = entry.task
            entry.task = None
            if record is not None and record.done and all(one.task is None for one in record.returns):
                entries.extend(self._release(record))

    def plan(self, lost: ObjectEntry) -> list[TaskRecord] | NotRebuilt:
        """The tasks to run again for a lost object, its own first; or why it cannot be made."""
        records: dict[TaskRecord, None] = {}
        wanted = [lost]
        for entry in wanted:        # grows meanwhile
            record: TaskRecord | None = entry.task
            if record is not None and (record in records or not record.done):
                continue
            reason = self._obstacle(entry, record)
            if record is None or reason:
                return NotRebuilt(reason, entry)
            records[record] = None
            wanted.extend(one for one in record.held or () if one.state == FREED)
        return list(records)

    def can_make(self, entry: ObjectEntry) -> bool:
        """Whether the object may be freed although a task that took it may have to run again."""
        return entry.state != INLINE and (entry.owner is not None or not self._obstacle(entry, entry.task))

    def _obstacle(self, entry: ObjectEntry, record: TaskRecord | None) -> str:
        if ids.is_put(entry.id):
            return "PUT"
        if entry.owner is not None:
            return "BORROWED"
        if record is None:
            return "LINEAGE_EVICTED"
        if record.cancel_requested:
            return "TASK_CANCELLED"
        if record.retries_left == 0:
            return "MAX_ATTEMPTS_EXCEEDED" if record.attempt else "RETRIES_DISABLED"
        return "" if record in self._kept else "LINEAGE_EVICTED"

    def reopen(self, record: TaskRecord) -> None:
        """The task runs again: its arguments are pinned, freed ones are awaited like new ones."""
        self.bytes -= self._kept.pop(record, 0)
        for entry in record.held or ():
            entry.more().lineage -= 1
            entry.pins += 1
            if entry.state == FREED:
                entry.state = PENDING
                self._directory.objects[entry.id] = entry

    def check(self) -> None:
        """Who is remembered has ended, can be reached from a result, and is counted."""
        assert self.bytes == sum(self._kept.values()) <= max(self.limit_bytes, 0), self.bytes
        counts: dict[ObjectEntry, int] = {}
        for record in self._kept:
            assert record.done and any(entry.task is record for entry in record.returns), record
            for entry in record.held or ():
                counts[entry] = counts.get(entry, 0) + 1
        for entry in (*counts, *self._directory.objects.values()):
            if entry.rare is not None:
                assert entry.rare.lineage == counts.get(entry, 0), entry
