"""`miniray-head` and `miniray-node`: the daemons in the foreground, for supervisors.

SIGTERM ends a head, and an idle node, in under two seconds; a node with running tasks drains first
(MINIRAY_DRAIN_S), and a second SIGTERM ends it at once. Nothing heavy is imported here: the node
forks its zygote from this very process.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from miniray import config
from miniray.commands import credentials
from miniray.commands import options as opts
from miniray.runtime import daemon


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@opts.head_options
@opts.shared_options
def head(**values: Any) -> None:
    """Run the head (the GCS) in the foreground.

    The token comes from --token-file, MINIRAY_AUTH_TOKEN or MINIRAY_AUTH_TOKEN_FILE; without any the head
    makes one. With a --host beyond loopback it prints a join string for `miniray-node --join`.
    """
    token = credentials.cluster_token(token_file=values["token_file"])
    sys.exit(daemon.run_head(opts.head_daemon(values, token)))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--address", metavar="HOST:PORT", envvar="MINIRAY_ADDRESS", help="The head.")
@opts.shared_options
@opts.node_options
def node(address: str | None, join: str | None, **values: Any) -> None:
    """Run a node in the foreground and join the head of --join, or at --address."""
    if not (address or join or config.get("join")):
        raise click.UsageError("say which cluster: --join STRING, or --address HOST:PORT")
    target = credentials.target(address, join, values["token_file"])
    sys.exit(daemon.run_node(opts.node_daemon(values, target)))
