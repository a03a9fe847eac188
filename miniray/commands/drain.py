"""`miniray drain NODE`: a node takes no new work, lets what runs end, and leaves the cluster."""

from __future__ import annotations

from typing import Any

import click

from miniray import config
from miniray.commands.cluster_client import connect
from miniray.commands.status import ADDRESS
from miniray.runtime.host import endpoint


@click.command()
@click.argument("node")
@click.option("--deadline", type=float, metavar="SECONDS", help="Leave then, whatever runs (default: 30).")
@click.option("--reason", default="", help="What the cluster is told, and shows.")
@ADDRESS
def drain(node: str, deadline: float | None, reason: str, address: str | None) -> None:
    """Take a node out of the cluster in order.

    NODE is the beginning of its id, its name or its address. It gets no new work from now on, and leaves
    when what runs there has ended and objects that only it has are on other nodes; what still runs at the
    deadline is ended and, where it may be, run again elsewhere. Its log names objects that had to stay.
    """
    from miniray._proto import gcs_pb2

    limit = float(config.get("drain_s")) if deadline is None else deadline
    with connect(address) as (request, where):
        chosen = choose(node, request("node_list", gcs_pb2.NodeList()).nodes.nodes, where)
        request("drain", gcs_pb2.DrainRequest(
            node_id=chosen.node_id, deadline_s=limit, reason=reason or "it was drained"))
    click.echo(f"Node {chosen.node_id.hex()[:12]} ({chosen.node_name}) takes no new work; "
               f"it leaves when what runs has ended, {limit:g} s from now at the latest.")


def choose(text: str, nodes: Any, where: str) -> Any:
    """The one living node that is meant. ClickException when there is none, or more."""
    from miniray._proto import common_pb2

    living = [node for node in nodes if node.state != common_pb2.NODE_DEAD]
    found = [n for n in living if text in (n.node_name, n.host, endpoint(n.host, n.port))
             or (len(text) >= 4 and n.node_id.hex().startswith(text.lower()))]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{node.node_id.hex()[:12]} ({node.node_name})" for node in found or living)
    how = f"{len(found)} nodes match" if found else "no living node matches"
    raise click.ClickException(f"{how} {text!r} in the cluster at {where}: {known}")
