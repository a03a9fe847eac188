"""Rows of what a cluster holds, made of the head's messages: what the state API and the HTTP API show.

Rows are plain values under Ray's names. Nothing secret is among them: of a runtime environment's
variables only the names are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray.core import environments
from miniray.core.resources import UNIT

if TYPE_CHECKING:
    from miniray._proto import gcs_pb2 as gcs

ACTOR_STATES = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD")
JOB_STATES = ("RUNNING", "SUCCEEDED", "FAILED")


class Row(dict[str, Any]):
    """One row: `row["state"]` and `row.state` are the same."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def amounts(resources: pb.ResourceMap) -> dict[str, float]:
    """Name → amount as a float, zero amounts left out."""
    return {name: amount / UNIT for name, amount in resources.amounts.items() if amount}


def _milliseconds(seconds: float) -> int | None:
    return int(seconds * 1000) or None


def actor_row(info: pb.ActorInfo) -> Row:
    """One actor, dead or alive."""
    spec = info.spec
    death = info.death
    group = spec.creation_class.strategy.bundle.placement_group_id
    return Row(
        actor_id=spec.actor_id.hex(),
        class_name=spec.class_name,
        state=ACTOR_STATES[info.state],
        job_id=spec.actor_id[12:].hex(),
        name=spec.name,
        node_id=info.address.node_id.hex() or None,
        pid=info.pid,
        ray_namespace=spec.namespace,
        serialized_runtime_env=environments.shown(spec.creation_class.runtime_env) or "{}",
        required_resources=amounts(spec.lifetime_resources),
        death_cause={"error_message": death.message, "exit_detail": death.exit_detail}
        if death.kind
        else None,
        is_detached=spec.detached,
        placement_group_id=group.hex() or None,
        repr_name="",
        num_restarts=info.restarts,
        start_time_ms=_milliseconds(info.started_at),
        end_time_ms=_milliseconds(info.ended_at),
        pending_reason=info.pending_reason,
    )


def task_row(row: gcs.TaskRow) -> Row:
    """One finished task or actor call."""
    kind, separator, text = row.error.partition(": ")
    failed = row.state == "FAILED"
    return Row(
        task_id=row.task_id.hex(),
        attempt_number=row.attempt,
        name=row.name,
        state=row.state,
        job_id=row.job_id.hex(),
        actor_id=row.actor_id.hex() or None,
        type=row.kind or "NORMAL_TASK",
        func_or_class_name=row.name,
        parent_task_id=row.parent_task_id.hex(),
        dependencies=[task.hex() for task in row.dependencies],
        node_id=row.node_id.hex() or None,
        worker_id=row.worker_id.hex() or None,
        worker_pid=row.pid or None,
        error_type=(kind if separator else "TASK_EXECUTION_EXCEPTION") if failed else None,
        error_message=(text if separator else row.error) or None,
        creation_time_ms=_milliseconds(row.submitted_at),
        start_time_ms=_milliseconds(row.started_at),
        end_time_ms=_milliseconds(row.ended_at),
    )


def node_row(info: pb.NodeInfo) -> Row:
    """One node, dead or alive."""
    return Row(
        node_id=info.node_id.hex(),
        node_ip=info.host or "127.0.0.1",
        is_head_node=info.is_head,
        state="DEAD" if info.state == pb.NODE_DEAD else "ALIVE",
        state_message=info.death.message or None,
        node_name=info.node_name,
        resources_total=amounts(info.total),
        labels=dict(info.labels),
        start_time_ms=_milliseconds(info.started_at),
        end_time_ms=int(info.ended_at * 1000),
    )


def job_row(info: pb.JobInfo) -> Row:
    """One job."""
    return Row(
        job_id=info.job_id.hex(),
        submission_id=None,
        entrypoint=info.entrypoint,
        type="DRIVER",
        status=JOB_STATES[info.state],
        driver_info={"id": info.job_id.hex(), "pid": str(info.driver_pid)},
        metadata=dict(info.metadata),
        start_time=_milliseconds(info.started_at),
        end_time=_milliseconds(info.ended_at),
    )


def group_row(info: pb.PlacementGroupInfo) -> Row:
    """One placement group, removed or not."""
    return Row(
        placement_group_id=info.placement_group_id.hex(),
        name=info.name,
        state=pb.GroupState.Name(info.state).removeprefix("GROUP_"),
        strategy=pb.GroupStrategy.Name(info.strategy),
        creator_job_id=info.creator_job_id.hex(),
        bundles=[
            {
                "bundle_index": bundle.index,
                "unit_resources": amounts(bundle.resources),
                "node_id": bundle.node_id.hex(),
            }
            for bundle in info.bundles
        ],
        pending_reason=info.pending_reason,
    )


def store_row(info: pb.NodeInfo) -> Row:
    """The object store of one node."""
    return Row(
        node_id=info.node_id.hex(),
        state="DEAD" if info.state == pb.NODE_DEAD else "ALIVE",
        store_bytes=info.store_bytes,
    )
