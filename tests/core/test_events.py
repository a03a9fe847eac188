"""Task events: rows survive packing, the newest state wins, losses are counted."""

from __future__ import annotations

import sys
from collections.abc import Callable

from miniray._proto import gcs_pb2 as gcs
from miniray.core import events, ids

JOB = ids.job_id(1)
NODE, WORKER = b"n" * 28, b"w" * 28


def task(number: int, actor: bytes | None = None) -> bytes:
    return ids.task_id(number.to_bytes(8, "little"), JOB, actor)


def row(number: int, state: str = "FINISHED", attempt: int = 0, name: str = "f", **extra: object) -> bytes:
    return events.pack_row(
        task_id=task(number), name=name, state=state, attempt=attempt, node_id=NODE, worker_id=WORKER,
        submitted_at=1.0, started_at=2.0, ended_at=3.0, **extra,
    )  # fmt: skip


def batch(*rows: bytes, job: bytes = JOB, dropped: int = 0) -> gcs.TaskEventBatch:
    return gcs.TaskEventBatch(job_id=job, rows=b"".join(rows), dropped=dropped)


def test_every_field_survives_packing() -> None:
    actor = ids.actor_id(b"a" * 12, JOB)
    packed = events.pack_row(
        task_id=task(1, actor), name="Klass.method", state="FAILED", parent_task_id=task(2), actor_id=actor,
        dependencies=[task(3), task(4)], node_id=NODE, worker_id=WORKER, attempt=2, submitted_at=10.5,
        started_at=11.5, ended_at=12.5, error="ValueError: ü", kind="ACTOR_TASK",
    )  # fmt: skip
    (got,) = events.unpack_rows(packed)
    assert got == gcs.TaskRow(
        task_id=task(1, actor), name="Klass.method", state="FAILED", parent_task_id=task(2),
        dependencies=[task(3), task(4)], actor_id=actor, node_id=NODE, worker_id=WORKER, attempt=2,
        submitted_at=10.5, started_at=11.5, ended_at=12.5, error="ValueError: ü",
        job_id=JOB, kind="ACTOR_TASK",
    )  # fmt: skip


def test_rows_follow_one_another_and_garbage_ends_the_batch() -> None:
    rows = row(1) + row(2, name="g", error="x" * 5000) + row(3)
    assert [r.name for r in events.unpack_rows(rows)] == ["f", "g", "f"]
    assert len(list(events.unpack_rows(rows + b"\x01\x00\x00\x00garbage"))) == 3
    assert len(list(events.unpack_rows(rows[:-1]))) == 2


def test_the_newest_state_of_an_attempt_wins_in_any_order() -> None:
    store = events.EventStore()
    store.arrived(batch(row(1, "FINISHED")))
    store.arrived(batch(row(1, "RUNNING"), row(2, "RUNNING")))
    store.arrived(batch(row(2, "RUNNING", attempt=1)))
    found = store.query(gcs.TaskQuery(job_id=JOB)).tasks
    assert [(r.task_id, r.attempt, r.state) for r in found] == [
        (task(1), 0, "FINISHED"),
        (task(2), 0, "RUNNING"),
        (task(2), 1, "RUNNING"),
    ]


def test_queries_filter_by_job_task_state_name_and_limit() -> None:
    store = events.EventStore()
    other = ids.job_id(2)
    store.arrived(batch(*(row(n, name="f" if n % 2 else "g") for n in range(10))))
    store.arrived(batch(row(99), job=other))
    assert len(store.query(gcs.TaskQuery()).tasks) == 11
    assert len(store.query(gcs.TaskQuery(job_id=JOB, name="g")).tasks) == 5
    assert len(store.query(gcs.TaskQuery(job_id=JOB, state="RUNNING")).tasks) == 0
    assert [r.task_id for r in store.query(gcs.TaskQuery(job_id=JOB, limit=2)).tasks] == [task(8), task(9)]
    assert [r.task_id for r in store.query(gcs.TaskQuery(task_id=task(4))).tasks] == [task(4)]


def test_dependencies_are_left_out_unless_asked_for() -> None:
    store = events.EventStore()
    store.arrived(batch(row(1, dependencies=[task(7)])))
    assert not store.query(gcs.TaskQuery(job_id=JOB)).tasks[0].dependencies
    assert list(store.query(gcs.TaskQuery(job_id=JOB, edges=True)).tasks[0].dependencies) == [task(7)]


def test_overflow_drops_the_oldest_batches_and_counts_their_rows() -> None:
    one = len(row(0))
    store = events.EventStore(max_job_bytes=one * 10)
    for start in range(0, 20, 4):
        store.arrived(batch(*(row(n) for n in range(start, start + 4)), dropped=1))
        store.check()
    found = store.query(gcs.TaskQuery(job_id=JOB))
    assert [int.from_bytes(r.task_id[:8], "little") for r in found.tasks] == list(range(12, 20))
    assert found.dropped == 12 + 5


def test_the_total_is_bounded_over_all_jobs() -> None:
    one = len(row(0))
    store = events.EventStore(max_job_bytes=one * 10, max_total_bytes=one * 12)
    for number in range(1, 4):
        store.arrived(batch(*(row(n) for n in range(5)), job=ids.job_id(number)))
        store.check()
    assert store.query(gcs.TaskQuery(job_id=ids.job_id(1))).dropped == 5
    store.job_forgotten(ids.job_id(2))
    store.check()


def calls_of(work: Callable[[], object]) -> int:
    """Python and C functions that are called: what a step costs, whatever else the machine does."""
    made = 0

    def seen(_frame: object, event: str, _arg: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return made


def test_packing_and_accepting_cost_few_steps() -> None:
    row(1)
    assert calls_of(lambda: row(1)) <= 20
    store = events.EventStore()
    message = batch(row(1) * 100)
    store.arrived(message)
    assert calls_of(lambda: store.arrived(message)) <= 20, "however many rows the batch has"
