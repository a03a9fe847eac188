"""What the HTTP surface answers: `/healthz`, `/metrics` and the JSON API below `/api/v1`.

::

    /api/v1/status                      nodes, jobs, actors, what waits and why
    /api/v1/nodes | actors | tasks | jobs | placement_groups | objects
                                        {"rows", "more"}; ?limit=  ?state=  ?job_id=
    /api/v1/actors/ID                   one row
    /api/v1/why/ID                      sentence, chain, story

Rows are those of `miniray.util.state`. Objects belong to the processes that made them, so the head
knows the stores they are in, and asks an object's owner for `why`. Everything here only reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from miniray import exposition, state_rows
from miniray._proto import gcs_pb2 as gcs
from miniray.core.kv import JOB_PREFIX
from miniray.explanations import Explanation
from miniray.state_rows import Row

Ask = Callable[[str, Any], Awaitable[gcs.ControlReply]]
"""ask(field of ControlRequest, message): one question to the head."""

LIMIT = 100
MOST_ROWS = 10_000
WHY_S = 5.0
POLL_S = 0.05
_ID = re.compile(r"[0-9a-f]{8,64}")
_PARAMETERS = ("limit", "state", "job_id")


def application(ask: Ask) -> Starlette:
    """The application behind the guard."""
    views = Views(ask)
    routes = [
        Route("/healthz", views.health),
        Route("/metrics", views.metrics),
        Route("/api/v1/status", views.status),
        Route("/api/v1/why/{id}", views.why),
        Route("/api/v1/{kind}", views.listing),
        Route("/api/v1/{kind}/{id}", views.one),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _on_http_error, Exception: _on_error})


class Views:
    """One method per route."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def health(self, request: Request) -> Response:
        """Whether the head's loop turns; says nothing else."""
        return PlainTextResponse("ok")

    async def metrics(self, request: Request) -> Response:
        """What programs recorded, and figures of the cluster."""
        status = (await self._ask("status", gcs.StatusQuery())).status
        text = cluster_figures(status) + exposition.exposition([one async for one in self._reports()])
        return Response(text, media_type=exposition.CONTENT_TYPE)

    async def _reports(self) -> Any:
        for job in (await self._ask("job_list", gcs.JobList())).jobs.jobs:
            space = JOB_PREFIX + job.job_id
            names = await self._ask("kv_keys", gcs.KvKeys(namespace=space, prefix=exposition.KEY_PREFIX))
            for key in names.kv_names.keys:
                stored = (await self._ask("kv_get", gcs.KvGet(namespace=space, key=key))).kv
                report = exposition.parsed(stored.value) if stored.found else None
                if report is not None:
                    yield report

    async def status(self, request: Request) -> Response:
        """The cluster on one screen."""
        _parameters(request, ())
        found = (await self._ask("status", gcs.StatusQuery())).status
        return _json({
            "nodes": [state_rows.node_row(node) for node in found.nodes],
            "waiting": [
                {"resources": state_rows.amounts(one.resources), "count": one.count, "reason": one.reason}
                for one in found.demand
            ],
            "actors_alive": found.actors_alive, "actors_pending": found.actors_pending,
            "jobs_running": found.jobs_running, "uptime_s": found.uptime_s, "version": found.version,
        })  # fmt: skip

    async def listing(self, request: Request) -> Response:
        """Rows of one kind."""
        given = _parameters(request, _PARAMETERS)
        limit = _limit(given.get("limit", str(LIMIT)))
        rows = await self._rows(request.path_params["kind"], given, limit + 1)
        return _json({"rows": rows[:limit], "more": len(rows) > limit})

    async def one(self, request: Request) -> Response:
        """The row with this id."""
        _parameters(request, ())
        kind, key = request.path_params["kind"], _id(request.path_params["id"])
        rows = await self._rows(kind, {"task_id": key}, MOST_ROWS)
        field = _KINDS[kind]
        for row in rows:
            if row[field] == key:
                return _json(row)
        raise HTTPException(404, f"there is no {kind} row with the id {key}")

    async def why(self, request: Request) -> Response:
        """Why something is as it is; asks the driver that knows."""
        _parameters(request, ())
        key = bytes.fromhex(_id(request.path_params["id"]))
        query = gcs.ExplainQuery(id=key, ticket=os.urandom(16))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WHY_S
        while True:
            found = (await self._ask("explain", query)).explanation
            if not found.asked or loop.time() > deadline:
                break
            await asyncio.sleep(POLL_S)
        if not found.kind:
            raise HTTPException(404, str(Explanation(found)))
        told = Explanation(found)
        return _json({"kind": told.kind, "sentence": told.sentence, "chain": told.chain, "story": told.story})

    async def _rows(self, kind: str, given: dict[str, str], limit: int) -> list[Row]:
        """Rows of a kind; of tasks, which are many, at most `limit`."""
        if kind not in _KINDS:
            raise HTTPException(404, f"there is no {kind[:40]!r} here, but {', '.join(_KINDS)}")
        rows: list[Row]
        if kind == "tasks":
            query = gcs.TaskQuery(
                limit=limit, edges=True, job_id=bytes.fromhex(given.get("job_id", "")),
                task_id=bytes.fromhex(given.get("task_id", "")), state=given.get("state", ""),
            )  # fmt: skip
            found = (await self._ask("task_query", query)).tasks
            rows = list(map(state_rows.task_row, found.tasks))
        elif kind == "actors":
            actors = (await self._ask("actor_list", gcs.ActorList(all_namespaces=True))).actors
            rows = list(map(state_rows.actor_row, actors.actors))
        elif kind == "jobs":
            rows = list(map(state_rows.job_row, (await self._ask("job_list", gcs.JobList())).jobs.jobs))
        elif kind == "placement_groups":
            groups = (await self._ask("group_lookup", gcs.GroupLookup())).groups
            rows = list(map(state_rows.group_row, groups.groups))
        else:
            row = state_rows.node_row if kind == "nodes" else state_rows.store_row
            rows = list(map(row, (await self._ask("node_list", gcs.NodeList())).nodes.nodes))
        if "state" in given:
            rows = [row for row in rows if row.get("state", row.get("status")) == given["state"]]
        if "job_id" in given:
            rows = [row for row in rows if row.get("job_id", row.get("creator_job_id")) == given["job_id"]]
        return rows


_KINDS = {
    "nodes": "node_id",
    "actors": "actor_id",
    "tasks": "task_id",
    "jobs": "job_id",
    "placement_groups": "placement_group_id",
    "objects": "node_id",
}
"""Kinds of rows -> the field of their id."""


def cluster_figures(status: gcs.ClusterStatus) -> str:
    """The cluster's own gauges."""
    nodes = [state_rows.node_row(node) for node in status.nodes]
    alive = [node for node in nodes if node.state == "ALIVE"]
    free = {node.node_id.hex(): state_rows.amounts(node.available) for node in status.nodes}
    totals = [(node.node_id, name, amount) for node in alive for name, amount in node.resources_total.items()]
    figures: list[tuple[str, str, list[tuple[exposition.Labels, float]]]] = [
        ("miniray_nodes_alive", "nodes that are part of the cluster", [([], len(alive))]),
        ("miniray_actors_alive", "actors that run", [([], status.actors_alive)]),
        ("miniray_actors_pending", "actors that wait for a place", [([], status.actors_pending)]),
        ("miniray_jobs_running", "drivers that are connected", [([], status.jobs_running)]),
        ("miniray_uptime_seconds", "since the head was started", [([], status.uptime_s)]),
        ("miniray_resource_total", "what a node offers",
         [([("NodeId", node), ("resource", name)], amount) for node, name, amount in totals]),
        ("miniray_resource_free", "what of it nobody uses",
         [([("NodeId", node), ("resource", name)], free[node].get(name, 0.0)) for node, name, _ in totals]),
    ]  # fmt: skip
    lines: list[str] = []
    for name, description, samples in figures:
        lines += exposition.heading(name, "gauge", description)
        lines += [exposition.sample(name, labels, value) for labels, value in samples]
    return "".join(f"{line}\n" for line in lines)


def _parameters(request: Request, allowed: Iterable[str]) -> dict[str, str]:
    """The query's parameters; 400 for one that is not known, whose value is not repeated."""
    given = request.query_params.multi_items()
    if len(dict(given)) != len(given) or not set(dict(given)) <= set(allowed):
        known = ", ".join(allowed) or "none"
        raise HTTPException(400, f"parameters here: {known}, each once; a token belongs in a header")
    found = dict(given)
    if "job_id" in found:
        found["job_id"] = _id(found["job_id"])
    return found


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 9 and 0 < int(text) <= MOST_ROWS:
        return int(text)
    raise HTTPException(400, f"limit is a number from 1 to {MOST_ROWS}")


def _id(text: str) -> str:
    if len(text) % 2 or not _ID.fullmatch(text):
        raise HTTPException(400, "an id is hexadecimal, whole, and in small letters")
    return text


def _json(value: Any) -> Response:
    return Response(json.dumps(value, default=str), media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = json.dumps({"error": {"status": error.status_code, "message": error.detail}})
    return Response(body, error.status_code, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    body = json.dumps({"error": {"status": 500, "message": "the head could not answer: its log says why"}})
    return Response(body, 500, media_type="application/json")
