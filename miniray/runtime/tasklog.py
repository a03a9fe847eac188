"""Task events: finished tasks of this owner, in packed rows, for the GCS's event store.

Rows are packed in batches by whoever drains, never on the path of a call. Beyond the owner's
bound they are dropped and counted; the count travels with the next batch.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import events
from miniray.core.ids import actor_of_task, task_of_object
from miniray.core.tasks import CANCELLED, TaskRecord
from miniray.runtime.errors import described

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

EVERY_S = 0.5
BATCH = 2000


class TaskLog:
    """Packs and sends what `owner.finished` gathers."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._due = 0.0
        self._offset = time.time() - time.monotonic()

    def pause(self) -> float:
        """Seconds until there is something to send."""
        return EVERY_S if self._worker.owner.finished else 3600.0

    def tick(self, now: float) -> None:
        """Under the worker's lock: send when it is due."""
        if self._worker.owner.finished and now >= self._due:
            self._due = now + EVERY_S
            self._send(BATCH)

    def flush(self) -> None:
        """Send everything."""
        while self._worker.owner.finished:
            self._send(BATCH)

    def _send(self, limit: int) -> None:
        owner = self._worker.owner
        batch = owner.finished[:limit]
        del owner.finished[:limit]
        rows = b"".join([self._row(record) for record in batch])
        for record in batch:
            if record.done and not owner.lineage.keeps(record):
                record.arguments = b""      # nobody will run it again
        message = gcs.TaskEventBatch(job_id=self._worker.job_id, rows=rows, dropped=owner.finished_dropped)
        owner.finished_dropped = 0
        self._worker.raylet.send(wire.ToRaylet(task_events=message))

    def _row(self, record: TaskRecord) -> bytes:
        remote: Any = record.remote
        node, worker = remote.address if remote is not None else (b"", b"")
        arguments = record.arguments
        inputs = () if type(arguments) is bytes else [task_of_object(e.id) for e in arguments.slots]
        offset = self._offset
        return events.pack_row(
            task_id=record.id,
            name=record.label,
            state="FAILED" if record.error is not None or record.state == CANCELLED else "FINISHED",
            parent_task_id=record.parent,
            dependencies=inputs,
            actor_id=actor_of_task(record.id) if record.client is not None else b"",
            node_id=node,
            worker_id=worker,
            attempt=record.attempt,
            submitted_at=record.submitted_at + offset,
            started_at=record.pushed_at + offset if record.pushed_at else 0.0,
            ended_at=record.ended_at + offset,
            error=described(record.error),
            kind="ACTOR_TASK" if record.client is not None else "NORMAL_TASK",
        )
