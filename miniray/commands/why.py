"""`miniray why ID`: why a task, actor, object, node or placement group is as it is."""

from __future__ import annotations

from typing import Any

import click

from miniray.commands.cluster_client import Request, clusters, connect
from miniray.commands.status import ADDRESS
from miniray.explanations import Explanation
from miniray.printable import on_one_line

ASK_S = 10.0
SHOWN = 20
"""Of things that have one name, so many are listed."""


@click.command()
@click.argument("id_or_name", metavar="ID", default="")
@click.option("--catalogue", is_flag=True, help="Print every situation that can be named, as Markdown.")
@ADDRESS
def why(id_or_name: str, catalogue: bool, address: str | None) -> None:
    """Say in one sentence how the thing with this ID is, and the chain of reasons behind it.

    ID is hex as `miniray list` prints it, the beginning of one, or a name: of an actor, an actor class, a
    placement group, a node, or of a function or method: what has not ended or has failed comes first.
    """
    if catalogue:
        from miniray.core import situations

        click.echo(situations.page(), nl=False)
        return
    if not id_or_name:
        raise click.UsageError("which task, actor, object, node or group? Give an id or a name")
    explanation, where = anywhere(id_or_name, address)
    if where:
        click.echo(f"of {where}:", err=True)
    click.echo(str(explanation))
    if not explanation.kind:
        raise SystemExit(1)


def anywhere(id_or_name: str, address: str | None) -> tuple[Explanation, str]:
    """What the first cluster says that knows it, and which one that is if there are several here."""
    from miniray.runtime import explaining

    answers: list[tuple[Explanation, str]] = []
    problem: click.ClickException | None = None
    several = clusters(address)
    for session in several:
        try:
            with connect(address, session) as (request, where):
                key = find(request, id_or_name)
                found = explaining.ask(lambda query: request("explain", query).explanation, key, ASK_S)
        except click.ClickException as error:
            problem = problem or error
            continue
        answers.append((Explanation(found), where if len(several) > 1 else ""))
        if answers[-1][0].kind not in ("", "unknown"):
            return answers[-1]
    if not answers and problem is not None:
        raise problem
    if problem is not None:
        click.echo(f"one cluster could not be asked: {problem.message}", err=True)
    answers.sort(key=lambda answer: not answer[0].kind)
    return answers[0]


def find(request: Request, text: str) -> bytes:
    """The id that `text` stands for."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) in (4, 16, 18, 24, 28):
        return key
    names: dict[bytes, str] = {}
    for one, *called in [*known(request), *unfinished(request, text), *ended(request)]:
        if text in called or one.hex().startswith(text.lower()):
            names.setdefault(one, called[0])
    if len(names) > 1:
        first = next(iter(names))
        click.echo(f"{len(names)} things here are called {text!r}; this is the first of them. All:", err=True)
        for one in list(names)[:SHOWN]:
            click.echo(f"  {one.hex()} {on_one_line(names[one])}", err=True)
        return first
    if names:
        return next(iter(names))
    problem = f"nothing here has the id or name {text!r}"
    raise click.ClickException(f"{problem}: `miniray list tasks|actors|nodes` shows what there is")


def unfinished(request: Request, text: str) -> list[tuple[bytes, str, str]]:
    """(id, name, method) of tasks that their owners know by this name or beginning of an id."""
    from miniray.runtime import explaining

    found = explaining.inquire(
        lambda inquiry: request("inquiry", inquiry).findings, ASK_S, kind="NAMES", name=text)
    return [(named.id, named.name, named.name.rpartition(".")[2]) for one in found for named in one.names]


def known(request: Request) -> list[Any]:
    """(id, names…) of what the head knows."""
    from miniray._proto import gcs_pb2

    actors = request("actor_list", gcs_pb2.ActorList(all_namespaces=True)).actors.actors
    groups = request("group_lookup", gcs_pb2.GroupLookup()).groups.groups
    nodes = request("node_list", gcs_pb2.NodeList()).nodes.nodes
    return [
        *((actor.spec.actor_id, actor.spec.name, actor.spec.class_name) for actor in actors),
        *((group.placement_group_id, group.name) for group in groups),
        *((node.node_id, node.node_name) for node in nodes),
    ]


def ended(request: Request) -> list[Any]:
    """(id, name, method) of tasks that have ended: the failed ones first, and the latest of each first."""
    from miniray._proto import gcs_pb2

    tasks = request("task_query", gcs_pb2.TaskQuery(limit=10_000)).tasks.tasks
    latest = sorted(tasks, key=lambda task: (task.state != "FAILED", -task.ended_at))
    return [(task.task_id, task.name, task.name.rpartition(".")[2]) for task in latest]
