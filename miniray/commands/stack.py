"""`miniray stack [WORKER]`: what every process of the cluster executes at this moment."""

from __future__ import annotations

import click

from miniray.commands.cluster_client import Request, clusters, connect
from miniray.commands.status import ADDRESS
from miniray.explanations import Stack

ASK_S = 10.0


@click.command()
@click.argument("worker", default="")
@click.option("--here", is_flag=True, help="Only processes of this machine's nodes.")
@ADDRESS
def stack(worker: str, here: bool, address: str | None) -> None:
    """Print the Python stack of every thread of every worker and driver, and the tasks they run.

    WORKER is the beginning of a worker id in hex; all of them without it. A process that does not
    answer is shown as the operating system sees it, with stacks taken by a signal where possible.
    """
    try:
        key = bytes.fromhex(worker)
    except ValueError as error:
        raise click.ClickException(f"{worker!r} is not the beginning of a worker id in hex") from error
    several = clusters(address)
    is_any = False
    for session in several:
        try:
            with connect(address, session) as (request, where):
                shown = [one for one in _ask(request, key) if not here or _is_local(one.node_id)]
        except click.ClickException:
            if len(several) == 1:
                raise
            continue    # it has ended meanwhile
        if shown and len(several) > 1:
            click.echo(f"==== {where}\n")
        for one in shown:
            click.echo(f"{one}\n")
        is_any = is_any or bool(shown)
    if not is_any:
        which = f" whose worker id begins with {worker}" if worker else ""
        raise click.ClickException(f"no process was found{which}")


def _ask(request: Request, key: bytes) -> list[Stack]:
    from miniray.runtime import explaining

    found = explaining.inquire(
        lambda inquiry: request("inquiry", inquiry).findings, ASK_S, kind="STACK", key=key)
    return [Stack(finding) for finding in found]


def _is_local(node_id: str) -> bool:
    from miniray.runtime import sessions

    return any(session.node_id == node_id for session in sessions.living())
