"""Lineage: how a lost object is made again, and what must be remembered for that.

An object whose copies are all lost is rebuilt by running its task again. Its arguments may have
been freed since: then their tasks run first, and so on. So a finished task whose results are in
stores keeps its arguments' *entries*: one that is in a store is freed all the same but keeps its
task, one that is inline simply stays, and both go with the last task that refers to them::

    a (freed) ◀── held ── task of b ◀── b (freed) ◀── held ── task of c ◀── c (STORED, referenced)

What nobody can make again: values of `put`, results of actors, objects of other owners, and
results of tasks with no attempt left. Pure; part of `Owner`, shares its directory.
"""

from __future__ import annotations

from collections.abc import Callable

from .directory import FREED, PENDING, STORED, Directory, ObjectEntry
from .tasks import TaskRecord


class Lineage:
    """Which finished tasks may have to run again; see the module head."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.consider: Callable[[ObjectEntry], None] = lambda entry: None
        """`Ownership.consider`, once that is made."""

    def done(self, record: TaskRecord) -> None:
        """A task has ended and its arguments are unpinned: remember them if it may run again."""
        if (
            record.held is not None
            and record.client is None
            and record.retries_left != 0
            and any(entry.state == STORED for entry in record.returns)
        ):
            for entry in record.held:
                entry.more().lineage += 1
        else:
            record.held = None
            record.dependencies = None

    def freed(self, entry: ObjectEntry) -> None:
        """Nothing can reach the object: forget its task, unless a later task may need it made."""
        if entry.rare is None or not entry.rare.lineage:
            self._cut([entry])

    def _cut(self, entries: list[ObjectEntry]) -> None:
        """These freed objects will never be made again; nor, perhaps, what they were made of."""
        for entry in entries:       # grows meanwhile
            record: TaskRecord | None = entry.task
            entry.task = None
            if record is None or not record.done or record.held is None:
                continue
            if any(one.task is not None for one in record.returns):
                continue
            held, record.held, record.dependencies = record.held, None, None
            for one in held:
                one.more().lineage -= 1
                if one.more().lineage:
                    continue
                if one.state == FREED:
                    entries.append(one)
                else:
                    self.consider(one)

    def plan(self, lost: ObjectEntry) -> list[TaskRecord] | None:
        """The tasks to run again for a lost object, its own first; None when it cannot be made."""
        records: dict[TaskRecord, None] = {}
        wanted = [lost]
        for entry in wanted:        # grows meanwhile
            record: TaskRecord | None = entry.task
            if record is None or record.client is not None or record.arguments is None:
                return None
            if record in records or not record.done:
                continue
            if record.retries_left == 0:
                return None
            records[record] = None
            wanted.extend(one for one in record.held or () if one.state == FREED)
        return list(records)

    def reopen(self, record: TaskRecord) -> None:
        """The task runs again: its arguments are pinned, freed ones are awaited like new ones."""
        for entry in record.held or ():
            entry.more().lineage -= 1
            entry.pins += 1
            if entry.state == FREED:
                entry.state = PENDING
                self._directory.objects[entry.id] = entry
