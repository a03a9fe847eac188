"""`miniray-head` and `miniray-node`: the daemons in the foreground, for supervisors.

SIGTERM ends a head, and an idle node, in under two seconds; a node with running tasks drains first
(MINIRAY_DRAIN_S), and a second SIGTERM ends it at once. Nothing heavy is imported here: the node
forks its zygote from this very process.
"""

from __future__ import annotations

import secrets
import sys
from typing import Any

import click

from miniray.commands import options as opts
from miniray.runtime import daemon


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@opts.head_options
@opts.shared_options
def head(**values: Any) -> None:
    """Run the head (the GCS) in the foreground.

    The token comes from MINIRAY_AUTH_TOKEN or MINIRAY_AUTH_TOKEN_PATH; without either the head makes
    one and keeps it in the file `token` of its session directory.
    """
    opts.check_host(values["host"], values["plain_text"])
    token = opts.cluster_token() or secrets.token_hex(32)
    sys.exit(daemon.run_head(opts.head_daemon(values, token)))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--address", metavar="HOST:PORT", required=True, envvar="MINIRAY_ADDRESS", help="The head.")
@opts.shared_options
@opts.node_options
def node(address: str, **values: Any) -> None:
    """Run a node in the foreground and join the head at --address."""
    opts.check_host(values["host"], values["plain_text"])
    token = opts.require_token(address)
    sys.exit(daemon.run_node(opts.node_daemon(values, token, address)))
