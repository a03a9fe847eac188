"""`miniray status`: the cluster on one screen: nodes, what is used, what is waiting and why."""

from __future__ import annotations

from typing import Any

import click

from miniray.commands import tables
from miniray.commands.cluster_client import connect
from miniray.options import UNIT
from miniray.printable import on_one_line
from miniray.runtime.host import endpoint

ADDRESS = click.option("--address", metavar="HOST:PORT", help="Which cluster; default: the one running here.")
STATES = ("alive", "draining", "dead")


@click.command()
@ADDRESS
def status(address: str | None) -> None:
    """Nodes, resources and what is waiting for them."""
    from miniray._proto import gcs_pb2

    with connect(address) as (request, where):
        reply = request("status", gcs_pb2.StatusQuery()).status
    version = f", miniray {reply.version}" if reply.version else ""
    click.echo(f"{where}: up {tables.duration(reply.uptime_s)}{version}")
    click.echo(
        f"{tables.count(len(reply.nodes), 'node')}, {tables.count(reply.jobs_running, 'job')} running, "
        f"{tables.count(reply.actors_alive, 'actor')} alive, {reply.actors_pending} waiting"
    )
    click.echo()
    click.echo(tables.table(("node", "name", "host", "state", "CPU", "GPU", "store"), rows(reply.nodes)))
    click.echo("\nIn use")
    for name, (used, total) in usage(reply.nodes).items():
        click.echo(f"  {tables.amount(name, used)} of {tables.amount(name, total)} {on_one_line(name)}")
    if reply.demand:
        click.echo("\nWaiting")
        for demand in reply.demand:
            shape = {name: value / UNIT for name, value in sorted(demand.resources.amounts.items())}
            because = f" ({on_one_line(demand.reason)})" if demand.reason else ""
            what = f"pending {demand.kind}s" if demand.kind else "pending tasks/actors"
            click.echo(f" {shape}: {demand.count}+ {what}{because}")


def rows(nodes: Any) -> list[tuple[object, ...]]:
    """One row per node; "used/total" where the node offers the resource."""
    return [
        (
            node.node_id, node.node_name, endpoint(node.host, node.port) if node.host else "(socket)",
            STATES[node.state], _share(node, "CPU"), _share(node, "GPU"), tables.size(node.store_bytes),
        )
        for node in nodes
    ]  # fmt: skip


def usage(nodes: Any) -> dict[str, tuple[int, int]]:
    """resource -> (used, total) over the living nodes, in units of 1/10,000."""
    total: dict[str, tuple[int, int]] = {}
    for node in nodes:
        if STATES[node.state] == "dead":
            continue
        for name, offered in sorted(node.total.amounts.items()):
            if ":" not in name:
                used, seen = total.get(name, (0, 0))
                free = node.available.amounts.get(name, 0)
                total[name] = (used + offered - free, seen + offered)
    return total


def _share(node: Any, name: str) -> str:
    offered = node.total.amounts.get(name, 0)
    if not offered:
        return ""
    used = offered - node.available.amounts.get(name, 0)
    return f"{tables.amount(name, used)}/{tables.amount(name, offered)}"
