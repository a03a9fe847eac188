"""`miniray start`: a head with a node, or a node that joins one, as background daemons.

This command waits until the daemons can be reached, prints how to connect, and leaves. What they
write to stderr is kept in the state directory: it outlives the session.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Any

import click

from miniray import config
from miniray.commands import credentials
from miniray.commands import options as opts
from miniray.commands.stop import Target, end
from miniray.runtime import agent, launch, sessions, state_directory
from miniray.runtime.daemon import HeadOptions, NodeOptions
from miniray.runtime.join_string import JoinString

LOGS_KEPT = 40


@click.command()
@click.option("--head", "is_head", is_flag=True, help="Start a cluster: a head and a node.")
@click.option("--address", metavar="HOST:PORT", help="Join the cluster of this head; auto: the one here.")
@click.option("--block", is_flag=True, help="Stay until a daemon ends, and end them all on Ctrl-C.")
@opts.head_options
@opts.shared_options
@opts.node_options
@opts.ignored_ray_options
def start(is_head: bool, address: str | None, block: bool, join: str | None, **values: Any) -> None:
    """Start a head with a node, or a node that joins one, in the background."""
    if is_head == bool(address or join or (config.get("join") and not is_head)):
        raise click.UsageError("give either --head, or --join STRING, or --address HOST:PORT")
    started: list[Target] = []
    try:
        if is_head:
            token = credentials.cluster_token(token_file=values["token_file"])
            target, head = run("head", opts.head_daemon(values, token))
            started.append(target)
            cluster = credentials.Target(head["address"], head["token"], bytes.fromhex(head["fingerprint"]))
        else:
            cluster = credentials.target(address, join, values["token_file"])
        started.append(run("node", opts.node_daemon(values, cluster, is_head=is_head))[0])
    except BaseException:
        end(started[::-1], force=False)
        raise
    announce(is_head, cluster, started)
    if block:
        stay(started)


def run(kind: str, options: HeadOptions | NodeOptions) -> tuple[Target, dict[str, Any]]:
    """Start one daemon: it, and what it says of itself. ClickException with its last words if it fails."""
    log = log_file(kind)
    with open(log, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
        try:
            ready = launch.start_daemon(kind, options, output=output.fileno())
        except RuntimeError as error:
            lines = agent.tail_of(str(log)).strip().splitlines()
            said = f"\n{lines[-1]}\n(all of it: {log})" if lines else ""
            raise click.ClickException(f"{error}{said}") from error
    for session in sessions.living():
        if session.pid == ready["pid"]:
            return Target(session), ready
    raise click.ClickException(f"the {kind} ended right after its start: {log}")


def log_file(kind: str) -> Path:
    """A new log in $XDG_STATE_HOME/miniray/logs (~/.local/state/…); old ones go."""
    logs = Path(state_directory.make("logs"))
    for old in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-LOGS_KEPT]:
        old.unlink(missing_ok=True)
    return logs / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def announce(is_head: bool, cluster: credentials.Target, started: list[Target]) -> None:
    """One screen: what runs, how to connect, how to stop."""
    address, node = cluster.address, started[-1].session
    if not is_head:
        click.echo(f"Joined the cluster at {address} as node {node.node_id[:12]}.")
        click.echo("  Leave it:  miniray stop")
        return
    click.echo(f"A head and a node are running at {address}.\n")
    click.echo(f"  Run a program:  MINIRAY_ADDRESS={address} python program.py")
    click.echo(f"  or in it:       ray.init(address='{address}')")
    click.echo(f"  Add a node:     miniray start --address='{address}'")
    if cluster.fingerprint:
        joining = JoinString(address, cluster.token, cluster.fingerprint)
        click.echo(f"  elsewhere:      miniray start --join {joining}")
        click.echo("                  (who has it can run code here; `miniray token rotate` revokes it)")
    else:
        token = os.path.join(node.directory, "token")
        click.echo(f"                  elsewhere with MINIRAY_AUTH_TOKEN from {token}")
    click.echo(f"  Look:           miniray status --address={address}")
    if started[0].session.http:
        click.echo(f"  over HTTP:      {started[0].session.http}/api/v1/status, with the token as bearer")
    click.echo("  Stop:           miniray stop")


def stay(started: list[Target]) -> None:
    """Until a daemon ends or Ctrl-C, then end them all."""
    try:
        select.select([target.fd for target in started if target.fd is not None], [], [])
    except KeyboardInterrupt:
        pass
    finally:
        end(started[::-1], force=False)
