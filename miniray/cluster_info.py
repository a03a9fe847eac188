"""`nodes`, `cluster_resources`, `available_resources`, `timeline`: the cluster as it is now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from miniray import api
from miniray.options import UNIT
from miniray.state_rows import amounts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from miniray._proto.common_pb2 import NodeInfo, ResourceMap


def _infos() -> list[NodeInfo]:
    from miniray._proto import gcs_pb2 as gcs

    return list(api.connected_worker().request("node_list", gcs.NodeList()).nodes.nodes)


def node_row(node: NodeInfo) -> dict[str, Any]:
    """One row of `nodes()`, with Ray's keys."""
    from miniray._proto import common_pb2 as pb

    alive = node.state != pb.NODE_DEAD
    address = node.host or "127.0.0.1"
    return {
        "NodeID": node.node_id.hex(),
        "Alive": alive,
        "alive": alive,
        "NodeManagerAddress": address,
        "NodeManagerHostname": node.hostname,
        "NodeManagerPort": node.port,
        "ObjectManagerPort": node.port,
        "ObjectStoreSocketName": node.socket_path,
        "RayletSocketName": node.socket_path,
        "MetricsExportPort": 0,
        "NodeName": node.node_name or address,
        "Resources": amounts(node.total) if alive else {},
        "Labels": dict(node.labels),
        "DeathReason": node.death.kind if not alive else 0,
        "DeathReasonMessage": node.death.message,
    }


def nodes() -> list[dict[str, Any]]:
    """One dict per node that is, or was, in the cluster: NodeID (hex), Alive, Resources, Labels, …"""
    return [node_row(node) for node in _infos()]


def _sum(maps: Iterable[ResourceMap]) -> dict[str, float]:
    total: dict[str, int] = {}
    for resources in maps:
        for name, amount in resources.amounts.items():
            total[name] = total.get(name, 0) + amount
    return {name: amount / UNIT for name, amount in total.items() if amount}


def cluster_resources() -> dict[str, float]:
    """What the living nodes have in all, resource → amount."""
    return _sum(node.total for node in _living())


def available_resources() -> dict[str, float]:
    """What the living nodes have free, resource → amount; what is used up is left out.

    Nodes report changes every half second: the figures may be that old.
    """
    return _sum(node.available for node in _living())


def _living() -> list[NodeInfo]:
    from miniray._proto import common_pb2 as pb

    return [node for node in _infos() if node.state != pb.NODE_DEAD]


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """What ran where and when, as Chrome trace events (chrome://tracing, Perfetto).

    Returns the events, or writes them to `filename` as JSON and returns None.
    """
    from miniray._proto import gcs_pb2 as gcs

    rows = api.connected_worker().request("task_query", gcs.TaskQuery(limit=1_000_000)).tasks.tasks
    events = [
        {
            "cat": f"task::{row.name}",
            "name": f"task::{row.name}",
            "ph": "X",
            "pid": row.node_id.hex()[:12],
            "tid": f"worker:{row.worker_id.hex()[:12]}",
            "ts": row.started_at * 1e6,
            "dur": max(0.0, row.ended_at - row.started_at) * 1e6,
            "args": {"task_id": row.task_id.hex(), "job_id": row.job_id.hex(), "state": row.state},
        }
        for row in rows
        if row.started_at
    ]
    if filename is None:
        return events
    with open(filename, "w") as file:
        json.dump(events, file)
    return None
