"""Id layouts: raw bytes, with Ray's sizes and nesting, so that lineage can be read off an id.

::

    JobID      4    counter given by the GCS
    ActorID   16    12 unique + JobID            (12 x 0xff: "no actor")
    TaskID    24    8 unique + ActorID
    ObjectID  28    TaskID + 4-byte index        (returns count from 1, puts from PUT_INDEX)
    NodeID, WorkerID 28 random, PlacementGroupID 18 = 14 unique + JobID

Pure: whoever needs a random part hands the bytes in. Public id *classes* live in `miniray.ids`.
"""

from __future__ import annotations

JOB_ID_SIZE = 4
ACTOR_ID_SIZE = 16
TASK_ID_SIZE = 24
OBJECT_ID_SIZE = 28
NODE_ID_SIZE = 28
WORKER_ID_SIZE = 28
PLACEMENT_GROUP_ID_SIZE = 18

NO_ACTOR = b"\xff" * 12
"""The unique part of the actor id inside a task id that belongs to no actor."""

PUT_INDEX = 0x8000_0000
"""Object indices from here on are `put`s of the task, below are its returns."""


def job_id(number: int) -> bytes:
    """JobID of the `number`-th job (1-based)."""
    return number.to_bytes(JOB_ID_SIZE, "little")


def actor_id(unique: bytes, job: bytes) -> bytes:
    """ActorID from 12 unique bytes and its job."""
    assert len(unique) == 12 and len(job) == JOB_ID_SIZE
    return unique + job


def task_id(unique: bytes, job: bytes, actor: bytes | None = None) -> bytes:
    """TaskID from 8 unique bytes; `actor` is the actor it runs on, None for a plain task."""
    assert len(unique) == 8
    return unique + (actor if actor is not None else NO_ACTOR + job)


def object_id(task: bytes, index: int) -> bytes:
    """ObjectID of the `index`-th return (1-based) or put (`PUT_INDEX` + n) of `task`."""
    return task + index.to_bytes(4, "little")


def task_of_object(oid: bytes) -> bytes:
    """TaskID of the task that makes, or put, the object."""
    return oid[:TASK_ID_SIZE]


def actor_of_task(tid: bytes) -> bytes:
    """ActorID inside a TaskID."""
    return tid[8:TASK_ID_SIZE]


def job_of_task(tid: bytes) -> bytes:
    """JobID inside a TaskID."""
    return tid[20:TASK_ID_SIZE]


def subject(key: bytes) -> bytes:
    """What a chain of waiting is about: a task and its returns are one thing; any other id is itself."""
    return task_of_object(key) if len(key) == OBJECT_ID_SIZE and not is_put(key) else key


def is_put(oid: bytes) -> bool:
    """True for an object made by `put`, False for a task's return value."""
    return bool(oid[27] & 0x80)
