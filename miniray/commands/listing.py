"""`miniray list tasks|actors|objects|workers|nodes|jobs`: a table, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from miniray.commands import tables
from miniray.commands.cluster_client import Request, connect
from miniray.commands.status import ADDRESS, STATES
from miniray.runtime.host import endpoint

CENSUS_S = 10.0
"""Processes that have not answered by then are left out."""

JOB_STATES = ("running", "finished", "failed")


@click.command(name="list")
@click.argument("what", type=click.Choice(["tasks", "actors", "objects", "workers", "nodes", "jobs"]))
@ADDRESS
@click.option("--limit", default=100, show_default=True, help="Rows shown at most.")
@click.option("--state", help="Only rows in this state.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one array.")
def listing(what: str, address: str | None, limit: int, state: str | None, as_json: bool) -> None:
    """List tasks, actors, objects, workers, nodes or jobs."""
    header, ask = TABLES[what]
    with connect(address) as (request, _where):
        found = ask(request, limit)
    if state is not None:
        column = header.index("state")
        found = [row for row in found if str(row[column]).lower() == state.lower()]
    shown = found[:limit]
    if as_json:
        click.echo(json.dumps([dict(zip(header, map(_plain, row))) for row in shown], indent=1))
        return
    click.echo(tables.table(header, shown) if shown else f"no {what}")
    if len(found) > len(shown):
        click.echo(f"({len(found) - len(shown)} more: --limit)")


Row = tuple[object, ...]


def tasks(request: Request, limit: int) -> list[Row]:
    """Newest last; what runs and waits, too."""
    from miniray.runtime import census

    return [
        (
            task.task_id, task.name, task.state, task.kind, task.attempt, task.node_id, task.worker_id,
            tables.duration(task.ended_at - task.started_at) if task.ended_at and task.started_at else "",
            task.error.splitlines()[-1] if task.error else "",
        )
        for task in census.tasks(request, limit, CENSUS_S)
    ]  # fmt: skip


def actors(request: Request, _limit: int) -> list[Row]:
    """All actors the head knows of, dead ones too."""
    from miniray._proto import common_pb2, gcs_pb2

    reply = request("actor_list", gcs_pb2.ActorList(all_namespaces=True)).actors
    return [
        (
            actor.spec.actor_id, actor.spec.class_name, actor.spec.name,
            common_pb2.ActorState.Name(actor.state), actor.pid or "", actor.address.node_id,
            actor.restarts, actor.death.message or actor.pending_reason,
        )
        for actor in reply.actors
    ]  # fmt: skip


def nodes(request: Request, _limit: int) -> list[Row]:
    """All nodes, dead ones with the cause."""
    from miniray._proto import gcs_pb2

    reply = request("node_list", gcs_pb2.NodeList()).nodes
    return [
        (
            node.node_id, node.node_name, endpoint(node.host, node.port) if node.host else "(socket)",
            STATES[node.state], tables.resources(node.total.amounts), tables.ago(node.started_at),
            node.death.message,
        )
        for node in reply.nodes
    ]  # fmt: skip


def jobs(request: Request, _limit: int) -> list[Row]:
    """All jobs."""
    from miniray._proto import gcs_pb2

    reply = request("job_list", gcs_pb2.JobList()).jobs
    return [
        (
            job.job_id, JOB_STATES[job.state], job.driver_pid, job.namespace, tables.ago(job.started_at),
            job.entrypoint,
        )
        for job in reply.jobs
    ]  # fmt: skip


def workers(request: Request, _limit: int) -> list[Row]:
    """Worker processes and drivers, those that ended lately with the cause."""
    from miniray._proto import gcs_pb2

    return [
        (
            row.address.worker_id, "driver" if row.is_driver else "worker",
            "alive" if row.is_alive else "dead", row.pid, row.address.node_id, row.job_id,
            tables.duration(row.started_ago_s) if row.is_alive else "", row.end.message,
        )
        for row in _census(request, gcs_pb2.CensusQuery.WORKERS, 0).workers
    ]  # fmt: skip


def objects(request: Request, limit: int) -> list[Row]:
    """Objects, once for each process that owns or borrows one."""
    from miniray._proto import gcs_pb2

    return [
        (
            row.object_id, row.state, tables.size(row.size), row.pid, row.references, row.pins,
            " ".join(node_id.hex()[:16] for node_id in row.locations),
        )
        for row in _census(request, gcs_pb2.CensusQuery.OBJECTS, limit).objects
    ]  # fmt: skip


def _census(request: Request, kind: Any, limit: int) -> Any:
    from miniray.runtime import census

    return census.take(lambda query: request("census", query).census, kind, limit, CENSUS_S)


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Request, int], list[Row]]]] = {
    "tasks": (("task", "name", "state", "kind", "attempt", "node", "worker", "took", "error"), tasks),
    "actors": (("actor", "class", "name", "state", "pid", "node", "restarts", "reason"), actors),
    "nodes": (("node", "name", "host", "state", "offers", "up", "reason"), nodes),
    "workers": (("worker", "kind", "state", "pid", "node", "job", "up", "reason"), workers),
    "objects": (("object", "state", "size", "pid", "references", "pins", "copies"), objects),
    "jobs": (("job", "state", "pid", "namespace", "age", "entrypoint"), jobs),
}


def _plain(cell: Any) -> Any:
    return cell.hex() if isinstance(cell, bytes) else cell
