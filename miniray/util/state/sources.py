"""Where the rows of the state API come from: the tables of the GCS, and a census of all processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from miniray import api, state_rows
from miniray.util.state import common, rows
from miniray.util.state.exception import RayStateApiException

if TYPE_CHECKING:
    from miniray._proto import gcs_pb2 as gcs

MOST_ROWS = 100_000
"""Looked at for filters and summaries, of the GCS's and of each process."""

logger = logging.getLogger("miniray")


def _request(field: str, message: Any) -> gcs.ControlReply:
    return api.connected_worker().request(field, message)


def actors() -> Iterator[common.ActorState]:
    """Actors of all jobs."""
    return map(common.ActorState, map(state_rows.actor_row, _actor_infos()))


def _actor_infos() -> Any:
    from miniray._proto import gcs_pb2 as gcs

    return _request("actor_list", gcs.ActorList(all_namespaces=True)).actors.actors


def nodes() -> Iterator[common.NodeState]:
    """Nodes, dead ones too."""
    from miniray._proto import gcs_pb2 as gcs

    found = _request("node_list", gcs.NodeList()).nodes.nodes
    return map(common.NodeState, map(state_rows.node_row, found))


def _node_addresses() -> dict[bytes, str]:
    return {bytes.fromhex(node.node_id): node.node_ip for node in nodes()}


def jobs() -> Iterator[common.JobState]:
    """Jobs: one per driver."""
    from miniray._proto import gcs_pb2 as gcs

    found = _request("job_list", gcs.JobList()).jobs.jobs
    return map(common.JobState, map(state_rows.job_row, found))


def groups() -> Iterator[common.PlacementGroupState]:
    """Placement groups, removed ones too."""
    from miniray.util.placement_group import placement_group_table

    return map(rows.group, placement_group_table().values())


def census(kind: gcs.CensusQuery.Kind, limit: int, timeout: float, strict: bool) -> gcs.Census:
    """What all processes tell; RayStateApiException if some do not, or a warning unless `strict`."""
    from miniray._proto import gcs_pb2 as gcs
    from miniray.runtime import census

    def request(query: gcs.CensusQuery) -> gcs.Census:
        return _request("census", query).census

    found = census.take(request, kind, limit, timeout)
    if found.missing:
        name = gcs.CensusQuery.Kind.Name(kind).lower()
        text = f"{found.missing} processes or nodes have not told their {name} in time"
        if strict:
            raise RayStateApiException(f"{text}: raise_on_missing_output=False lists what the others told")
        logger.warning("%s: the list is incomplete", text)
    return found


def workers(timeout: float, strict: bool) -> Iterator[common.WorkerState]:
    """Drivers and worker processes, those that have ended lately too."""
    from miniray._proto import gcs_pb2 as gcs

    addresses = _node_addresses()
    found = census(gcs.CensusQuery.WORKERS, 0, timeout, strict)
    return (rows.worker(row, addresses) for row in found.workers)


def objects(timeout: float, strict: bool) -> Iterator[common.ObjectState]:
    """Objects, as each process sees those that it owns or borrows."""
    from miniray._proto import gcs_pb2 as gcs

    addresses = _node_addresses()
    found = census(gcs.CensusQuery.OBJECTS, MOST_ROWS, timeout, strict)
    return (rows.object_(row, addresses) for row in found.objects)


def tasks(timeout: float, strict: bool, task_id: bytes = b"") -> list[common.TaskState]:
    """Tasks, actor calls and actor creations, oldest first: what runs and waits, and what has ended.

    Processes report what has ended before they answer, so the table is asked after them.
    """
    from miniray._proto import gcs_pb2 as gcs
    from miniray.core.census import merged

    live = census(gcs.CensusQuery.TASKS, MOST_ROWS, timeout, strict).tasks
    query = gcs.TaskQuery(limit=MOST_ROWS, edges=True, task_id=task_id)
    found = merged(_request("task_query", query).tasks.tasks, live)
    tasks = map(common.TaskState, map(state_rows.task_row, found))
    return [*map(rows.creation, _actor_infos()), *tasks]
