"""`miniray token show` and `miniray token rotate`: the join string of a cluster, and another one for it.

A rotation refuses the former token, and with it every join string made of it, to whoever connects
from then on. Nodes that are connected get the new one over their connections; nothing restarts.
"""

from __future__ import annotations

import asyncio

import click

from miniray.commands import credentials
from miniray.runtime.join_string import JoinString


@click.group()
def token() -> None:
    """Show, or replace, the cluster's token."""


@token.command()
@click.option("--address", metavar="HOST:PORT", default="", help="A cluster with a daemon on this machine.")
def show(address: str) -> None:
    """Print the join string: a secret, for `miniray-node --join` and `ray.init`."""
    click.echo(str(credentials.own_join_string(address)))


@token.command()
@click.option("--address", metavar="HOST:PORT", help="The cluster; its join string does, too.")
def rotate(address: str | None) -> None:
    """Replace the token: former join strings hold no more. Prints the new one."""
    target = credentials.target(address)
    new, fingerprint = asyncio.run(_rotate(target))
    click.echo(str(JoinString(target.address, new, fingerprint)))


async def _rotate(target: credentials.Target) -> tuple[str, bytes]:
    from miniray.runtime import admission, rpc
    from miniray.runtime.access import Access, fingerprint
    from miniray.runtime.meeting import introduce

    try:
        if target.fingerprint:
            access: Access = await introduce(target.address, target.token, target.fingerprint)
        else:
            access = await admission.admit(target.address, target.token)
        reply = await rpc.rotate_token(target.address, access)
    except (OSError, rpc.RpcError) as error:
        raise click.ClickException(str(error)) from error
    if reply.failure.kind:
        raise click.ClickException(reply.failure.message)
    identity = access.identity
    return reply.token, fingerprint(identity.ca) if identity is not None and not identity.by_host else b""
