"""The `miniray` command: names of the sub-commands, and nothing that is slow to import.

Each sub-command lives in `miniray.commands` and is imported when it is called, so `miniray
--version` loads neither gRPC, protobuf nor numpy, and a daemon can fork its zygote before it
loads anything. `miniray-head` and `miniray-node` are `miniray head` and `miniray node`.

Exit codes: 0 done, 1 it failed (one line on stderr says what and what to do), 2 wrong usage.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

COMMANDS = {
    "start": ("miniray.commands.start:start", "Start a head, or join one, in the background."),
    "stop": ("miniray.commands.stop:stop", "End every session of this user on this machine."),
    "status": ("miniray.commands.status:status", "Nodes, resources and what is waiting for them."),
    "drain": ("miniray.commands.drain:drain", "Take a node out of the cluster in order."),
    "autoscale": ("miniray.commands.autoscale:autoscale", "Have nodes come and go with what waits."),
    "list": ("miniray.commands.listing:listing", "List tasks, actors, nodes or jobs."),
    "job": ("miniray.commands.jobs:job", "Submit, follow, list and stop jobs that the cluster runs."),
    "why": ("miniray.commands.why:why", "Why a task, actor, object, node or group is as it is."),
    "stack": ("miniray.commands.stack:stack", "What every worker executes."),
    "storage": ("miniray.commands.storage:storage", "Check or repair the head's tables."),
    "metrics": ("miniray.commands.metrics:metrics", "What programs count, for Prometheus."),
    "token": ("miniray.commands.token:token", "Show, or replace, the cluster's token and join string."),
    "microbenchmark": ("miniray.commands.microbenchmark:microbenchmark", "Figures for this machine."),
    "head": ("miniray.commands.daemons:head", "Run the head in the foreground (miniray-head)."),
    "node": ("miniray.commands.daemons:node", "Run a node in the foreground (miniray-node)."),
}
"""name -> (where it is, one line for --help)."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = COMMANDS.get(cmd_name)
        return load(found[0]) if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def load(target: str) -> click.Command:
    """The command that "module:attribute" names."""
    module, _, attribute = target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command), target
    return command


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from miniray import __version__

        click.echo(f"miniray, version {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip
def cli() -> None:
    """miniray: tasks, actors and objects on one machine or many."""


def _hide_secrets() -> None:
    """A join string is in the command line no longer than it takes to get here."""
    if any("mr1_" in argument for argument in sys.argv):
        from miniray.commands.credentials import hide_arguments

        hide_arguments()


def main() -> NoReturn:
    """Entry point of `miniray` and `python -m miniray`."""
    _hide_secrets()
    cli(prog_name="miniray")
    raise AssertionError("click leaves through SystemExit")


def head_main() -> NoReturn:
    """Entry point of `miniray-head`."""
    load(COMMANDS["head"][0]).main(prog_name="miniray-head")
    raise AssertionError("click leaves through SystemExit")


def node_main() -> NoReturn:
    """Entry point of `miniray-node`."""
    _hide_secrets()
    load(COMMANDS["node"][0]).main(prog_name="miniray-node")
    raise AssertionError("click leaves through SystemExit")
