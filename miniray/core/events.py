"""Task events: owners pack one row per task, the GCS keeps bounded blobs and decodes on query.

A row is the state of one attempt of a task at the time it was packed; a later row of the same
attempt replaces it. So a finished task costs one row; only tasks that wait or run for long are
reported before their end. Layout, little-endian::

    u32 row length | u8 state | u8 kind | u16 attempt | u16 name, error, dependencies lengths
    f64 submitted, started, ended (seconds since the epoch, 0: not yet)
    24 task | 24 parent task | 28 node | 28 worker | name | error | dependencies x 24

The actor is part of the task id. A batch is rows one after the other; nothing is parsed when it
arrives (0.1 µs a row), and `EventStore` keeps at most `max_bytes` per job and in all: the oldest
batches go first, and the rows lost are counted, never silently.

`pack_row` runs at owners, the store in `Head`. Pure; no thread of its own.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from miniray._proto import gcs_pb2 as gcs
from miniray.core.ids import ACTOR_ID_SIZE, NO_ACTOR, TASK_ID_SIZE, actor_of_task

STATES = (
    "PENDING_ARGS_AVAIL",
    "PENDING_NODE_ASSIGNMENT",
    "SUBMITTED_TO_WORKER",
    "RUNNING",
    "FINISHED",
    "FAILED",
)
"""In the order a task goes through them."""

KINDS = ("NORMAL_TASK", "ACTOR_CREATION_TASK", "ACTOR_TASK")

_STATE_CODES = {name: code for code, name in enumerate(STATES)}
_KIND_CODES = {name: code for code, name in enumerate(KINDS)}

TYPICAL_ROW_BYTES = 200
"""A row with a short name and one or two dependencies; `_ROW` alone is 142."""

MAX_JOB_BYTES = 100_000 * TYPICAL_ROW_BYTES
MAX_TOTAL_BYTES = 128 << 20

_ROW = struct.Struct("<IBBHHHHddd24s24s28s28s")
_ROW_LENGTH = struct.Struct("<I")
_MAX_TEXT = 2000


def pack_row(
    *,
    task_id: bytes,
    name: str,
    state: str,
    parent_task_id: bytes = b"",
    dependencies: Iterable[bytes] = (),
    actor_id: bytes = b"",
    node_id: bytes = b"",
    worker_id: bytes = b"",
    attempt: int = 0,
    submitted_at: float = 0.0,
    started_at: float = 0.0,
    ended_at: float = 0.0,
    error: str = "",
    kind: str = "NORMAL_TASK",
) -> bytes:
    """One packed row; fields as in `TaskRow`.

    `dependencies` are ids of tasks; times are seconds since the epoch, 0.0 for what has not
    happened; ids may be b"" when unknown. `actor_id` must be the one inside `task_id`, where it
    is read back from. Name and error are cut to 2,000 bytes, dependencies to 65,535 ids.
    """
    name_bytes = name.encode()[:_MAX_TEXT]
    error_bytes = error.encode()[:_MAX_TEXT] if error else b""
    inputs = b"".join(dependencies)[: 0xFFFF * TASK_ID_SIZE] if dependencies else b""
    return (
        _ROW.pack(
            _ROW.size + len(name_bytes) + len(error_bytes) + len(inputs),
            _STATE_CODES[state], _KIND_CODES[kind], attempt & 0xFFFF,
            len(name_bytes), len(error_bytes), len(inputs) // TASK_ID_SIZE,
            submitted_at, started_at, ended_at, task_id, parent_task_id, node_id, worker_id,
        )
        + name_bytes
        + error_bytes
        + inputs
    )  # fmt: skip


def unpack_rows(rows: bytes, edges: bool = True) -> Iterator[gcs.TaskRow]:
    """The rows of a batch. Stops at the first byte that cannot be a row (a foreign sender's)."""
    for start in _starts(rows):
        yield _unpack(rows, start, edges)


def _starts(rows: bytes) -> Iterator[int]:
    """Where each whole row of a batch begins."""
    at, end = 0, len(rows)
    while at + _ROW.size <= end:
        (length,) = _ROW_LENGTH.unpack_from(rows, at)
        if length < _ROW.size or at + length > end:
            return
        yield at
        at += length


def _unpack(rows: bytes, start: int, edges: bool) -> gcs.TaskRow:
    (
        length, state, kind, attempt, name_length, error_length, count,
        submitted_at, started_at, ended_at, task_id, parent, node_id, worker_id,
    ) = _ROW.unpack_from(rows, start)  # fmt: skip
    at = start + _ROW.size
    name = rows[at : at + name_length].decode(errors="replace")
    at += name_length
    error = rows[at : at + error_length].decode(errors="replace")
    at += error_length
    row = gcs.TaskRow(
        task_id=task_id,
        name=name,
        state=STATES[state] if state < len(STATES) else "UNKNOWN",
        parent_task_id=parent if any(parent) else b"",
        node_id=node_id if any(node_id) else b"",
        worker_id=worker_id if any(worker_id) else b"",
        attempt=attempt,
        submitted_at=submitted_at,
        started_at=started_at,
        ended_at=ended_at,
        error=error,
        job_id=task_id[20:],
        kind=KINDS[kind] if kind < len(KINDS) else "UNKNOWN",
    )
    actor = actor_of_task(task_id)
    if actor[: len(NO_ACTOR)] != NO_ACTOR and len(actor) == ACTOR_ID_SIZE:
        row.actor_id = actor
    if edges and at + count * TASK_ID_SIZE <= start + length:
        row.dependencies.extend(
            rows[i : i + TASK_ID_SIZE] for i in range(at, at + count * TASK_ID_SIZE, TASK_ID_SIZE)
        )
    return row


@dataclass(slots=True)
class _JobEvents:
    """The batches of one job, oldest first, and what was lost."""

    batches: deque[bytes] = field(default_factory=deque)
    bytes: int = 0
    dropped: int = 0


class EventStore:
    """Bounded task events of all jobs."""

    def __init__(self, max_job_bytes: int = MAX_JOB_BYTES, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._max_job_bytes = max_job_bytes
        self._max_total_bytes = max_total_bytes
        self._jobs: dict[bytes, _JobEvents] = {}
        self._bytes = 0

    def arrived(self, batch: gcs.TaskEventBatch) -> None:
        """An owner's batch; `dropped` counts rows that the owner could not keep."""
        job = self._jobs.get(batch.job_id)
        if job is None:
            job = self._jobs[batch.job_id] = _JobEvents()
        rows = batch.rows
        job.dropped += batch.dropped
        job.batches.append(rows)
        job.bytes += len(rows)
        self._bytes += len(rows)
        while job.bytes > self._max_job_bytes:
            self._drop_oldest(job)
        while self._bytes > self._max_total_bytes:
            # the job that spoke longest ago gives way first
            victim = next(job for job in self._jobs.values() if job.batches)
            self._drop_oldest(victim)

    def _drop_oldest(self, job: _JobEvents) -> None:
        rows = job.batches.popleft()
        job.bytes -= len(rows)
        self._bytes -= len(rows)
        job.dropped += sum(1 for _ in _starts(rows))

    def job_forgotten(self, job_id: bytes) -> None:
        """Drop all of a job's events."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._bytes -= job.bytes

    def query(self, query: gcs.TaskQuery) -> gcs.TaskRows:
        """The newest row of each attempt that matches, newest last, at most `limit` (0: all).

        Costs about 4 µs per stored row of the jobs asked for.
        """
        jobs: Iterable[_JobEvents] = self._jobs.values()
        if query.job_id:
            jobs = [job for job_id, job in self._jobs.items() if job_id == query.job_id]
        elif query.task_id:
            jobs = [job for job_id, job in self._jobs.items() if job_id == query.task_id[20:]]
        latest: dict[tuple[bytes, int], gcs.TaskRow] = {}
        dropped = 0
        for job in jobs:
            dropped += job.dropped
            for rows in job.batches:
                if query.task_id and query.task_id not in rows:
                    continue
                for row in unpack_rows(rows, query.edges or bool(query.task_id)):
                    if query.task_id and row.task_id != query.task_id:
                        continue
                    key = (row.task_id, row.attempt)
                    old = latest.pop(key, None)
                    latest[key] = old if old is not None and _is_later(old, row) else row
        found = [
            row
            for row in latest.values()
            if (not query.state or row.state == query.state) and (not query.name or row.name == query.name)
        ]
        if query.limit > 0:
            found = found[-query.limit :]
        return gcs.TaskRows(tasks=found, dropped=dropped)

    def check(self) -> None:
        """Assert that the byte counts are right and within their limits."""
        for job in self._jobs.values():
            assert job.bytes == sum(map(len, job.batches)) <= self._max_job_bytes
        assert self._bytes == sum(job.bytes for job in self._jobs.values()) <= self._max_total_bytes

    def dump(self) -> dict[str, Any]:
        """Bytes and losses per job."""
        return {
            job_id.hex(): {"bytes": job.bytes, "dropped": job.dropped} for job_id, job in self._jobs.items()
        }


def _is_later(a: gcs.TaskRow, b: gcs.TaskRow) -> bool:
    """Whether `a` describes the attempt at a later time than `b` (batches may overtake)."""
    return STATES.index(a.state) > STATES.index(b.state) if a.state in STATES and b.state in STATES else False
