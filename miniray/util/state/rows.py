"""Rows of what a census tells, and of placement groups; those of the GCS's tables are in `state_rows`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from miniray.util.state.common import ObjectState, PlacementGroupState, TaskState, WorkerState

if TYPE_CHECKING:
    from miniray._proto import common_pb2 as pb
    from miniray._proto import gcs_pb2 as gcs

CREATION_STATES = ("PENDING_ARGS_AVAIL", "PENDING_NODE_ASSIGNMENT", "FINISHED", "PENDING_NODE_ASSIGNMENT")
"""Of the task that makes an actor, by the actor's state, while that is not DEAD."""


def _milliseconds(seconds: float) -> int | None:
    return int(seconds * 1000) or None


def _before_now(seconds: float) -> int | None:
    return _milliseconds(time.time() - seconds) if seconds else None


def group(table: dict[str, Any]) -> PlacementGroupState:
    """Of a placement group, as `placement_group_table` has it."""
    return PlacementGroupState(
        placement_group_id=table["placement_group_id"],
        name=table["name"],
        state=table["state"],
        strategy=table["strategy"],
        creator_job_id=table["placement_group_id"][28:],
        bundles=[
            {
                "bundle_index": index,
                "unit_resources": resources,
                "node_id": table["bundles_to_node_id"][index],
            }
            for index, resources in table["bundles"].items()
        ],
        stats=table["stats"],
    )


def creation(info: pb.ActorInfo) -> TaskState:
    """Of the task that makes an actor."""
    from miniray._proto import common_pb2 as pb

    spec = info.spec
    dead = info.state == pb.DEAD
    failed = dead and not info.address.worker_id
    running = not dead and bool(info.pid) and info.state != pb.ALIVE
    state = ("FAILED" if failed else "FINISHED") if dead else CREATION_STATES[info.state]
    return TaskState(
        task_id=("ff" * 8) + spec.actor_id.hex(),
        attempt_number=info.restarts,
        name=f"{spec.class_name}.__init__",
        state="RUNNING" if running else state,
        job_id=spec.actor_id[12:].hex(),
        actor_id=spec.actor_id.hex(),
        type="ACTOR_CREATION_TASK",
        func_or_class_name=f"{spec.class_name}.__init__",
        parent_task_id="",
        dependencies=[],
        node_id=info.address.node_id.hex() or None,
        worker_id=info.address.worker_id.hex() or None,
        worker_pid=info.pid or None,
        error_type="ACTOR_CREATION_FAILED" if failed else None,
        error_message=(info.death.message or None) if failed else None,
        creation_time_ms=None,
        start_time_ms=_milliseconds(info.started_at),
        end_time_ms=_milliseconds(info.ended_at) if failed else _milliseconds(info.started_at),
    )


def worker(row: gcs.WorkerRow, addresses: dict[bytes, str]) -> WorkerState:
    """Of a worker process or driver; `addresses` are those of the nodes."""
    return WorkerState(
        worker_id=row.address.worker_id.hex(),
        is_alive=row.is_alive,
        worker_type="DRIVER" if row.is_driver else "WORKER",
        exit_type=None if row.is_alive else exit_type(row),
        node_id=row.address.node_id.hex(),
        ip=addresses.get(row.address.node_id, ""),
        pid=row.pid,
        job_id=row.job_id.hex() or None,
        exit_detail=None if row.is_alive else _exit_detail(row),
        start_time_ms=_before_now(row.started_ago_s),
        end_time_ms=_before_now(row.ended_ago_s) or 0,
    )


def exit_type(row: gcs.WorkerRow) -> str:
    """How a worker has ended, in Ray's words."""
    from miniray._proto import common_pb2 as pb

    if row.end.kind == pb.OUT_OF_MEMORY:
        return "NODE_OUT_OF_MEMORY"
    if row.end.kind == pb.USER_ERROR or row.ended_by == pb.BY_USER_ERROR:
        return "USER_ERROR"
    if row.ended_by == pb.BY_USER:
        return "INTENDED_USER_EXIT"
    if not row.intended:
        return "SYSTEM_ERROR"
    return "INTENDED_USER_EXIT" if row.is_driver else "INTENDED_SYSTEM_EXIT"


def _exit_detail(row: gcs.WorkerRow) -> str:
    """Why a worker has ended; of a SIGKILL that is nobody's here, also who may have sent it."""
    text = row.end.message or row.end.exit_detail
    if exit_type(row) == "SYSTEM_ERROR" and row.end.exit_detail == "signal SIGKILL":
        text += " (the kernel's OOM killer, when the machine's memory ran out, or somebody's `kill -9`)"
    return text


def object_(row: gcs.ObjectRow, addresses: dict[bytes, str]) -> ObjectState:
    """Of an object as one process sees it; `addresses` are those of the nodes."""
    ready = row.state in ("INLINE", "STORED")
    return ObjectState(
        object_id=row.object_id.hex(),
        object_size=row.size if ready else -1,
        task_status=row.task_state or "NIL",
        attempt_number=row.attempt,
        reference_type=_reference_type(row),
        call_site="disabled",
        type="DRIVER" if row.is_driver else "WORKER",
        pid=row.pid,
        ip=addresses.get(row.holder.node_id, ""),
        worker_id=row.holder.worker_id.hex(),
        state=row.state,
        local_references=row.references,
        locations=[node_id.hex() for node_id in row.locations],
    )


def _reference_type(row: gcs.ObjectRow) -> str:
    if row.is_actor_handle:
        return "ACTOR_HANDLE"
    if row.pins:
        return "USED_BY_PENDING_TASK"
    return "LOCAL_REFERENCE" if row.references else "CAPTURED_IN_OBJECT"
