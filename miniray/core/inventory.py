"""What one process knows of its tasks and objects, as rows for a census (`core.census`).

An owner knows all of its tasks that have not ended; the process that runs one knows that it runs.
Pure; reads the machines of `core.owner`, under the lock of their shell.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.directory import FAILED, STATE_NAMES, ObjectEntry
from miniray.core.ids import actor_of_task, task_of_object
from miniray.core.owner import Owner
from miniray.core.tasks import PUSHED, TaskRecord


def tasks(owner: Owner, limit: int, wall_offset: float) -> list[gcs.TaskRow]:
    """What has not ended of this process; `wall_offset` turns its times into seconds since the epoch."""
    return [_task(record, wall_offset) for record in islice(_unfinished(owner), limit or None)]


def _unfinished(owner: Owner) -> Iterator[TaskRecord]:
    seen: dict[TaskRecord, None] = {}
    sources = (
        (entry.task for entry in owner.directory.objects.values()),
        (record for lane in owner.submission.lanes.values() for record in lane.queue),
        (record for client in owner.calls.clients.values() for record in client.queue),
        (record for remote in owner.remotes.values() for record in remote.inflight.values()),
    )
    for source in sources:
        for record in source:
            if record is not None and not record.done and record not in seen:
                seen[record] = None
                yield record


def _task(record: TaskRecord, wall_offset: float) -> gcs.TaskRow:
    node, worker = record.remote.address if record.state == PUSHED else (b"", b"")
    arguments = record.arguments
    inputs = () if isinstance(arguments, bytes) else [task_of_object(entry.id) for entry in arguments.slots]
    is_call = record.client is not None
    return gcs.TaskRow(
        task_id=record.id, name=record.label, state=_state(record), parent_task_id=record.parent,
        dependencies=inputs, actor_id=actor_of_task(record.id) if is_call else b"",
        node_id=node, worker_id=worker, attempt=record.attempt, job_id=record.id[20:],
        submitted_at=record.submitted_at + wall_offset, kind="ACTOR_TASK" if is_call else "NORMAL_TASK",
    )  # fmt: skip


def _state(record: TaskRecord) -> str:
    if record.done:
        failed = record.error is not None or any(entry.state == FAILED for entry in record.returns)
        return "FAILED" if failed else "FINISHED"
    if record.unresolved:
        return "PENDING_ARGS_AVAIL"
    return "SUBMITTED_TO_WORKER" if record.state == PUSHED else "PENDING_NODE_ASSIGNMENT"


def objects(owner: Owner, limit: int, pid: int, is_driver: bool) -> list[gcs.ObjectRow]:
    """The objects that this process owns or borrows."""
    holder = pb.Address(node_id=owner.me[0], worker_id=owner.me[1])
    entries: Iterator[ObjectEntry] = islice(owner.directory.objects.values(), limit or None)
    return [
        gcs.ObjectRow(
            object_id=entry.id, holder=holder, pid=pid, is_driver=is_driver, size=entry.size or 0,
            state=STATE_NAMES[entry.state], references=entry.local, pins=entry.pins,
            locations=entry.locations, attempt=entry.task.attempt if entry.task is not None else 0,
            task_state=_state(entry.task) if entry.task is not None else "",
            is_actor_handle=entry.rare is not None and entry.rare.stands_for is not None,
        )
        for entry in entries
    ]  # fmt: skip
