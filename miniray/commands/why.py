"""`miniray why ID`: why a task, actor, object, node or placement group is as it is."""

from __future__ import annotations

import click

from miniray.commands.cluster_client import Request, connect
from miniray.commands.status import ADDRESS
from miniray.explanations import Explanation

ASK_S = 10.0


@click.command()
@click.argument("id_or_name", metavar="ID")
@ADDRESS
def why(id_or_name: str, address: str | None) -> None:
    """Say in one sentence how the thing with this ID is, and the chain of reasons behind it.

    ID is hex as `miniray list` prints it, the beginning of one, or the name of an actor.
    """
    from miniray.runtime import explaining

    with connect(address) as (request, _where):
        key = find(request, id_or_name)
        found = explaining.ask(lambda query: request("explain", query).explanation, key, ASK_S)
    explanation = Explanation(found)
    click.echo(str(explanation))
    if not explanation.kind:
        raise SystemExit(1)


def find(request: Request, text: str) -> bytes:
    """The id that `text` stands for."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) in (4, 16, 18, 24, 28):
        return key
    matching = [one for one in known(request) if text in one[1:] or one[0].hex().startswith(text.lower())]
    keys = list(dict.fromkeys(one[0] for one in matching))
    if len(keys) == 1:
        return keys[0]
    problem = f"{len(keys)} ids begin with" if keys else "nothing here has the id or name"
    raise click.ClickException(f"{problem} {text!r}: `miniray list tasks|actors|nodes` shows them")


def known(request: Request) -> list[tuple[bytes, str]]:
    """(id, name) of what the head knows; the name only where it is one's own."""
    from miniray._proto import gcs_pb2

    actors = request("actor_list", gcs_pb2.ActorList(all_namespaces=True)).actors.actors
    groups = request("group_lookup", gcs_pb2.GroupLookup()).groups.groups
    tasks = request("task_query", gcs_pb2.TaskQuery(limit=10_000)).tasks.tasks
    nodes = request("node_list", gcs_pb2.NodeList()).nodes.nodes
    return [
        *((actor.spec.actor_id, actor.spec.name) for actor in actors),
        *((group.placement_group_id, group.name) for group in groups),
        *((node.node_id, node.node_name) for node in nodes),
        *((task.task_id, "") for task in tasks),
    ]
