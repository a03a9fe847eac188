"""`miniray autoscale`: nodes come when work waits for them and go when they are idle, while this runs."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from typing import TYPE_CHECKING

import click

from miniray.commands.status import ADDRESS

if TYPE_CHECKING:
    from miniray.autoscaler import Autoscaler, NodeKind

KIND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+):(?P<resources>[^:]+)(:(?P<min>\d+)-(?P<max>\d+))?")


@click.command()
@click.option("--node", "nodes", multiple=True, required=True, metavar="NAME:CPU=4,GPU=1[:MIN-MAX]",
              help="A kind of node and how many there may be (default 0-10); may be repeated.")
@click.option("--start-command", metavar="COMMAND",
              help="Starts a machine that joins with $MINIRAY_NODE_LABELS; default: nodes of this machine.")
@click.option("--stop-command", metavar="COMMAND", help="Lets $MINIRAY_NODE_HANDLE go, which has left.")
@click.option("--max-nodes", default=100, show_default=True, help="Of all kinds together.")
@click.option("--idle", default=300.0, show_default=True, metavar="SECONDS", help="Then a node goes.")
@click.option("--interval", default=1.0, show_default=True, metavar="SECONDS", help="Between two looks.")
@ADDRESS
def autoscale(
    nodes: tuple[str, ...], start_command: str | None, stop_command: str | None, max_nodes: int, idle: float,
    interval: float, address: str | None,
) -> None:
    """Have nodes come when work waits for them and go when they are idle, until this is ended.

    What waits is what `miniray status` shows. Without commands the nodes are processes of this machine,
    which end with this one; with them they are whatever the commands start, and stay.
    """
    from miniray.autoscaler import Autoscaler, CommandProvider, LocalProvider
    from miniray.commands import credentials
    from miniray.runtime.join_string import JoinString

    kinds = [kind_of(text) for text in nodes]
    if bool(start_command) != bool(stop_command):
        raise click.UsageError("--start-command and --stop-command go together")
    target = credentials.target(address)
    if target.fingerprint:
        os.environ["MINIRAY_JOIN"] = str(JoinString(target.address, target.token, target.fingerprint))
    provider: CommandProvider | LocalProvider
    if start_command and stop_command:
        provider = CommandProvider(target.address, start_command, stop_command)
    else:
        provider = LocalProvider(target.address, target.token)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    scaler = Autoscaler(provider, kinds, target.address, token=target.token, max_nodes=max_nodes,
                        idle_s=idle, interval_s=interval)  # fmt: skip
    click.echo(f"Scales the cluster at {target.address}; ends with Ctrl-C.")
    try:
        _until_told(scaler)
    finally:
        provider.close()


def _until_told(scaler: Autoscaler) -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with scaler:
        ended.wait()


def kind_of(text: str) -> NodeKind:
    """A kind of node by its option. BadParameter says what is wrong with it."""
    from miniray.autoscaler import NodeKind
    from miniray.commands.options import json_map

    found = KIND.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not NAME:CPU=4,GPU=1 or NAME:CPU=4,GPU=1:MIN-MAX")
    try:
        amounts = json_map(float)(found["resources"])
    except click.BadParameter as error:
        raise click.BadParameter(f"{text!r}: {error.message}") from None
    least, most = int(found["min"] or 0), int(found["max"] or 10)
    if least > most or any(amount < 0 for amount in amounts.values()):
        raise click.BadParameter(f"{text!r}: the least number is above the most, or an amount is below 0")
    return NodeKind(found["name"], amounts, least, most)
