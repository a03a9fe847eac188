"""What is in the cluster: list, get and summarize tasks, actors, objects, nodes, jobs, groups, workers.

Rows are dicts whose fields are attributes too; names follow Ray's state API. `filters` are
(field, "=" or "!=", value) triples, all of which must hold; text is compared without case.
Tasks, objects and workers are asked for at every process of the cluster; with
`raise_on_missing_output` a list that would lack some of them is RayStateApiException.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from miniray import api
from miniray.explanations import Explanation, Stack, key_of
from miniray.state_rows import Row
from miniray.util.state import sources
from miniray.util.state.common import (
    DEFAULT_LIMIT,
    ActorState,
    Filters,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    TaskState,
    WorkerState,
    checked,
)

if TYPE_CHECKING:
    from miniray.util.state.client import StateApiClient as StateApiClient

R = TypeVar("R", bound=Row)


def _holds(row: Row, condition: tuple[str, str, Any]) -> bool:
    field, operator, wanted = condition
    field = field.lower()
    if field not in row:
        raise ValueError(f"Invalid filter key {field!r}. Available ones are {sorted(row)}.")
    equal = row[field] == wanted or str(row[field]).lower() == str(wanted).lower()
    return equal == (operator == "=")


def _select(rows: Iterable[R], filters: Filters | None, limit: int) -> list[R]:
    out: list[R] = []
    conditions = checked(filters)
    for row in rows:
        if len(out) >= limit:
            break
        if all(_holds(row, condition) for condition in conditions):
            out.append(row)
    return out


def list_actors(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[ActorState]:
    """Actors of all jobs, dead ones too."""
    return _select(sources.actors(), filters, limit)


def list_tasks(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[TaskState]:
    """Tasks, actor calls and actor creations of all jobs: the newest `limit`, those under way too."""
    return _select(sources.tasks(timeout, raise_on_missing_output), filters, sources.MOST_ROWS)[-limit:]


def list_nodes(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[NodeState]:
    """Nodes, dead ones too."""
    return _select(sources.nodes(), filters, limit)


def list_jobs(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[JobState]:
    """Jobs: one per driver."""
    return _select(sources.jobs(), filters, limit)


def list_placement_groups(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[PlacementGroupState]:
    """Placement groups, removed ones too."""
    return _select(sources.groups(), filters, limit)


def list_workers(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[WorkerState]:
    """Drivers and worker processes of all nodes, those that have ended lately too."""
    return _select(sources.workers(timeout, raise_on_missing_output), filters, limit)


def list_objects(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[ObjectState]:
    """Objects of the whole cluster: one row for each process that owns or borrows one."""
    return _select(sources.objects(timeout, raise_on_missing_output), filters, limit)


def _one(rows: Iterable[R], field: str, id: str) -> R | None:
    return next((row for row in rows if row[field] == id), None)


def get_actor(id: str, address: str | None = None, timeout: float = 30) -> ActorState | None:
    """The actor with this id (hex), or None."""
    return _one(sources.actors(), "actor_id", id)


def get_node(id: str, address: str | None = None, timeout: float = 30) -> NodeState | None:
    """The node with this id (hex), or None."""
    return _one(sources.nodes(), "node_id", id)


def get_job(id: str, address: str | None = None, timeout: float = 30) -> JobState | None:
    """The job with this id (hex), or None."""
    return _one(sources.jobs(), "job_id", id)


def get_placement_group(
    id: str, address: str | None = None, timeout: float = 30
) -> PlacementGroupState | None:
    """The placement group with this id (hex), or None."""
    return _one(sources.groups(), "placement_group_id", id)


def get_worker(id: str, address: str | None = None, timeout: float = 30) -> WorkerState | None:
    """The worker with this id (hex), or None."""
    return _one(sources.workers(timeout, False), "worker_id", id)


def get_task(id: Any, address: str | None = None, timeout: float = 30) -> TaskState | list[TaskState] | None:
    """The task with this id (hex), or that makes this ObjectRef; all attempts if there were several."""
    raw = bytes.fromhex(id) if isinstance(id, str) else id.task_id().binary()
    attempts = [row for row in sources.tasks(timeout, False, raw) if row.task_id == raw.hex()]
    return attempts if len(attempts) > 1 else next(iter(attempts), None)


def get_objects(id: str, address: str | None = None, timeout: float = 30) -> list[ObjectState]:
    """What each process knows of the object with this id (hex)."""
    return [row for row in sources.objects(timeout, False) if row.object_id == id]


def explain(id: Any, timeout: float = 5.0) -> Explanation:
    """Why a task, actor, object, node, worker, job or placement group is as it is.

    `id` is an ObjectRef, an actor handle, a placement group, or any id, also in hex. The result has
    `kind` ("" when nothing is known), `sentence`, `chain` (each link the reason for the one before)
    and `story`; as text it is what `miniray why` prints. Tasks of other jobs are asked for at their
    drivers, for `timeout` seconds at most.
    """
    from miniray.runtime import explaining

    return Explanation(explaining.explain(api.connected_worker(), key_of(id), timeout))


def stacks(worker_id: str = "", timeout: float = 5.0) -> list[Stack]:
    """What every process of the cluster executes now, or those whose worker id (hex) begins so.

    A process that does not answer is listed with the reason, and with its stacks where a signal can
    get them.
    """
    from miniray.runtime import explaining

    worker = api.connected_worker()
    key = bytes.fromhex(worker_id)
    found = explaining.inquire(
        lambda inquiry: worker.request("inquiry", inquiry).findings, timeout, kind="STACK", key=key)
    return [Stack(finding) for finding in found]


def _counted(rows: Iterable[Row], field: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[str(row[field])] = counts.get(str(row[field]), 0) + 1
    return counts


def _grouped(rows: Iterable[R], field: str) -> dict[str, list[R]]:
    groups: dict[str, list[R]] = {}
    for row in rows:
        groups.setdefault(row[field], []).append(row)
    return groups


def summarize_tasks(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Tasks by function and state: {"cluster": {"summary": {name: …}, "total_tasks": n, …}}."""
    rows = sources.tasks(timeout, raise_on_missing_output)
    kinds = _counted(rows, "type")
    summary = {
        name: {
            "func_or_class_name": name,
            "type": group[0].type,
            "state_counts": _counted(group, "state"),
        }
        for name, group in _grouped(rows, "func_or_class_name").items()
    }
    totals = {
        "total_tasks": kinds.get("NORMAL_TASK", 0),
        "total_actor_tasks": kinds.get("ACTOR_TASK", 0),
        "total_actor_scheduled": kinds.get("ACTOR_CREATION_TASK", 0),
    }
    return {"cluster": {"summary": summary, **totals, "summary_by": "func_name"}}


def summarize_actors(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Actors by class and state: {"cluster": {"summary": {class: …}, "total_actors": n}}."""
    rows = list(sources.actors())
    summary = {
        name: {"class_name": name, "state_counts": _counted(group, "state")}
        for name, group in _grouped(rows, "class_name").items()
    }
    return {"cluster": {"summary": summary, "total_actors": len(rows), "summary_by": "class"}}


def summarize_objects(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """References by call site, which nobody records: {"cluster": {"summary": {"disabled": …}, …}}."""
    rows = list(sources.objects(timeout, raise_on_missing_output))
    total = {"total_objects": len(rows), "total_size_mb": _megabytes(rows)}
    summary = {
        site: {
            "total_objects": len(group),
            "total_size_mb": _megabytes(group),
            "total_num_workers": len(_counted(group, "worker_id")),
            "total_num_nodes": len(_counted(group, "ip")),
            "task_state_counts": _counted(group, "task_status"),
            "task_attempt_number_counts": _counted(group, "attempt_number"),
            "ref_type_counts": _counted(group, "reference_type"),
        }
        for site, group in _grouped(rows, "call_site").items()
    }
    return {"cluster": {"summary": summary, **total, "callsite_enabled": False, "summary_by": "callsite"}}


def _megabytes(rows: list[ObjectState]) -> float:
    return float(sum(max(0, row.object_size) for row in rows)) / 2**20


def __getattr__(name: str) -> Any:
    if name == "StateApiClient":
        from miniray.util.state.client import StateApiClient

        return StateApiClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
