"""What is in the cluster: list, get and summarize tasks, actors, nodes, jobs, groups, workers.

Rows are dicts whose fields are attributes too; names follow Ray's state API. `filters` are
(field, "=" or "!=", value) triples, all of which must hold; text is compared without case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from miniray import api
from miniray.explanations import Explanation, key_of
from miniray.state_rows import ACTOR_STATES, Row, actor_row, job_row, node_row, task_row

if TYPE_CHECKING:
    from miniray._proto import gcs_pb2 as gcs

Filters = list[tuple[str, str, Any]]

LIMIT = 100
SUMMARY_LIMIT = 100_000


def _request(field: str, message: Any) -> gcs.ControlReply:
    return api.connected_worker().request(field, message)


def _holds(row: Row, condition: tuple[str, str, Any]) -> bool:
    field, operator, wanted = condition
    if operator not in ("=", "!="):
        raise ValueError(f"Unsupported filter predicate {operator!r}: use '=' or '!='.")
    if field not in row:
        raise ValueError(f"Invalid filter key {field!r}. Available ones are {sorted(row)}.")
    equal = row[field] == wanted or str(row[field]).lower() == str(wanted).lower()
    return equal == (operator == "=")


def _select(rows: Iterable[Row], filters: Filters | None, limit: int) -> list[Row]:
    out: list[Row] = []
    for row in rows:
        if len(out) >= limit:
            break
        if all(_holds(row, condition) for condition in filters or ()):
            out.append(row)
    return out


# ---- sources ----


def _group(table: dict[str, Any]) -> Row:
    return Row(
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


def _actors() -> Iterator[Row]:
    from miniray._proto import gcs_pb2 as gcs

    message = gcs.ActorList(all_namespaces=True)
    return map(actor_row, _request("actor_list", message).actors.actors)


def _tasks(limit: int, **query: Any) -> Iterator[Row]:
    from miniray._proto import gcs_pb2 as gcs

    return map(task_row, _request("task_query", gcs.TaskQuery(limit=limit, edges=True, **query)).tasks.tasks)


def _nodes() -> Iterator[Row]:
    from miniray._proto import gcs_pb2 as gcs

    return map(node_row, _request("node_list", gcs.NodeList()).nodes.nodes)


def _jobs() -> Iterator[Row]:
    from miniray._proto import gcs_pb2 as gcs

    return map(job_row, _request("job_list", gcs.JobList()).jobs.jobs)


def _groups() -> Iterator[Row]:
    from miniray.util.placement_group import placement_group_table

    return map(_group, placement_group_table().values())


def _workers() -> Iterator[Row]:
    """Processes that are seen from outside: drivers, actors, and workers that ran a task."""
    from miniray._proto import gcs_pb2 as gcs

    seen: dict[str, Row] = {}
    for job in _request("job_list", gcs.JobList()).jobs.jobs:
        seen[job.driver.worker_id.hex()] = Row(
            worker_id=job.driver.worker_id.hex(),
            is_alive=job.state == 0,
            worker_type="DRIVER",
            node_id=job.driver.node_id.hex(),
            pid=job.driver_pid,
        )
    for info in _request("actor_list", gcs.ActorList(all_namespaces=True)).actors.actors:
        if info.address.worker_id:
            seen[info.address.worker_id.hex()] = Row(
                worker_id=info.address.worker_id.hex(),
                is_alive=ACTOR_STATES[info.state] == "ALIVE",
                worker_type="WORKER",
                node_id=info.address.node_id.hex(),
                pid=info.pid,
            )
    for task in _tasks(SUMMARY_LIMIT):
        if task.worker_id and task.worker_id not in seen:
            seen[task.worker_id] = Row(
                worker_id=task.worker_id, is_alive=True, worker_type="WORKER", node_id=task.node_id, pid=0
            )
    return iter(seen.values())


def _objects() -> Iterator[Row]:
    """The objects that this process knows of."""
    from miniray.core.directory import STATE_NAMES

    worker = api.connected_worker()
    with worker.lock:
        entries = list(worker.owner.directory.objects.values())
    for entry in entries:
        yield Row(
            object_id=entry.id.hex(),
            object_size=entry.size,
            task_status=STATE_NAMES[entry.state],
            reference_type="LOCAL_REFERENCE" if entry.local else "USED_BY_PENDING_TASK",
            type="DRIVER" if worker.is_driver else "WORKER",
            local_references=entry.local,
            locations=[node.hex() for node in entry.locations],
        )


# ---- the interface ----


def list_actors(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Row]:
    """Actors of all jobs, dead ones too."""
    return _select(_actors(), filters, limit)


def list_tasks(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Row]:
    """Tasks and actor calls of all jobs; the head keeps the latest ones."""
    return _select(_tasks(SUMMARY_LIMIT if filters else limit), filters, limit)


def list_nodes(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Row]:
    """Nodes, dead ones too."""
    return _select(_nodes(), filters, limit)


def list_jobs(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Row]:
    """Jobs: one per driver."""
    return _select(_jobs(), filters, limit)


def list_placement_groups(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Row]:
    """Placement groups, removed ones too."""
    return _select(_groups(), filters, limit)


def list_workers(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Row]:
    """Drivers, actors, and worker processes that have run a task."""
    return _select(_workers(), filters, limit)


def list_objects(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = LIMIT,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[Row]:
    """Objects that this process owns or borrows."""
    return _select(_objects(), filters, limit)


def _one(rows: Iterable[Row], field: str, id: str) -> Row | None:
    return next((row for row in rows if row[field] == id), None)


def get_actor(id: str, address: str | None = None, timeout: float = 30) -> Row | None:
    """The actor with this id (hex), or None."""
    return _one(_actors(), "actor_id", id)


def get_node(id: str, address: str | None = None, timeout: float = 30) -> Row | None:
    """The node with this id (hex), or None."""
    return _one(_nodes(), "node_id", id)


def get_job(id: str, address: str | None = None, timeout: float = 30) -> Row | None:
    """The job with this id (hex), or None."""
    return _one(_jobs(), "job_id", id)


def get_placement_group(id: str, address: str | None = None, timeout: float = 30) -> Row | None:
    """The placement group with this id (hex), or None."""
    return _one(_groups(), "placement_group_id", id)


def get_worker(id: str, address: str | None = None, timeout: float = 30) -> Row | None:
    """The worker with this id (hex), or None."""
    return _one(_workers(), "worker_id", id)


def get_task(id: Any, address: str | None = None, timeout: float = 30) -> Row | None:
    """The task with this id (hex), or that makes this ObjectRef; None if it is not known."""
    raw = bytes.fromhex(id) if isinstance(id, str) else id.task_id().binary()
    return _one(_tasks(SUMMARY_LIMIT, task_id=raw), "task_id", raw.hex())


def get_objects(id: str, address: str | None = None, timeout: float = 30) -> list[Row]:
    """What this process knows of the object with this id (hex)."""
    return [row for row in _objects() if row.object_id == id]


def explain(id: Any, timeout: float = 5.0) -> Explanation:
    """Why a task, actor, object, node, worker, job or placement group is as it is.

    `id` is an ObjectRef, an actor handle, a placement group, or any id, also in hex. The result has
    `kind` ("" when nothing is known), `sentence`, `chain` (each link the reason for the one before)
    and `story`; as text it is what `miniray why` prints. Tasks of other jobs are asked for at their
    drivers, for `timeout` seconds at most.
    """
    from miniray.runtime import explaining

    return Explanation(explaining.explain(api.connected_worker(), key_of(id), timeout))


def _count(rows: Iterable[Row], name: Callable[[Row], str], kind: Callable[[Row], str]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    total = 0
    for row in rows:
        total += 1
        entry = summary.setdefault(name(row), {"type": kind(row), "state_counts": {}})
        entry["state_counts"][row.state] = entry["state_counts"].get(row.state, 0) + 1
    return {"cluster": {"summary": summary, "total": total}}


def summarize_tasks(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Tasks by function and state: {"cluster": {"summary": {name: …}, "total": n}}."""
    return _count(_tasks(SUMMARY_LIMIT), lambda row: row.name, lambda row: row.type)


def summarize_actors(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Actors by class and state: {"cluster": {"summary": {class: …}, "total": n}}."""
    return _count(_actors(), lambda row: row.class_name, lambda row: "ACTOR")


def summarize_objects(
    address: str | None = None, timeout: float = 30, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """The objects of this process: {"cluster": {"total_objects": n, "total_size_mb": x}}."""
    rows = list(_objects())
    size = sum(row.object_size for row in rows)
    return {"cluster": {"total_objects": len(rows), "total_size_mb": size / 2**20}}
