"""One way to ask a cluster something, for the commands that look at it.

A cluster with a head on a TCP port is asked there (`rpc.Call`). A local session listens on no
port: the command attaches to its socket as a driver does, asks, and leaves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from miniray import config
from miniray.commands import credentials
from miniray.runtime import sessions
from miniray.runtime.join_string import JoinString

Request = Callable[[str, Any], Any]
"""request(field of ControlRequest, message) -> ControlReply; ClickException when it was refused."""


def _wanted(address: str | None) -> str:
    return address or str(config.get("address")) or str(config.get("join")) or "auto"


def clusters(address: str | None) -> list[sessions.Session | None]:
    """Where to look for what may be in any cluster: in all that run here, newest first; each is for
    `connect`. [None] when one was named, or nothing runs here."""
    if _wanted(address) != "auto":
        return [None]
    found: dict[str, sessions.Session] = {}
    for session in sessions.living():
        if session.kind == "node" or session.address:
            found.setdefault(session.address or session.directory, session)
    return list(found.values()) or [None]


@contextmanager
def connect(
    address: str | None, session: sessions.Session | None = None
) -> Iterator[tuple[Request, str]]:
    """(request, where it goes) for --address, MINIRAY_ADDRESS, the newest session here, or `session`."""
    wanted = _wanted(address)
    session = session or sessions.find(wanted)
    if session is not None and not session.address:
        with _attached(session) as request:
            yield request, f"local session {os.path.basename(session.directory)}"
        return
    if session is not None:
        wanted = session.address
    if wanted in ("auto", "local"):
        raise click.ClickException(
            "no session of this user is running here: give --address HOST:PORT, or `miniray start --head`"
        )
    target = credentials.target(wanted)
    if target.fingerprint:  # for `rpc`, which is given the token
        os.environ["MINIRAY_JOIN"] = str(JoinString(target.address, target.token, target.fingerprint))
    with _called(target.address, target.token) as request:
        yield request, target.address


@contextmanager
def _called(address: str, token: str) -> Iterator[Request]:
    import asyncio

    from miniray._proto import gcs_pb2
    from miniray.runtime import rpc

    def request(field: str, message: Any) -> Any:
        wanted = gcs_pb2.ControlRequest(**{field: message})
        try:
            reply = asyncio.run(rpc.call_head(address, token, wanted))
        except rpc.RpcError as error:
            raise click.ClickException(str(error)) from error
        if reply.failure.kind:
            raise click.ClickException(reply.failure.message)
        return reply

    yield request


@contextmanager
def _attached(session: sessions.Session) -> Iterator[Request]:
    from miniray.exceptions import RayError
    from miniray.runtime import driver

    try:
        core = driver.connect_driver(
            socket_path=session.socket, token=session.token(), namespace="", runtime_env="",
            entrypoint="miniray command line", sys_path=[], metadata={}, log_to_driver=False,
        )  # fmt: skip
    except OSError as error:
        name = os.path.basename(session.directory)
        raise click.ClickException(f"session {name} has ended, or refuses: {error}") from error

    def request(field: str, message: Any) -> Any:
        try:
            return core.request(field, message)
        except RayError as error:
            raise click.ClickException(str(error)) from error

    try:
        yield request
    finally:
        core.shutdown()
