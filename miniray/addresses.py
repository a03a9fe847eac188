"""Where `init` goes: from its `address` to a node of a session that runs, or to none."""

from __future__ import annotations

import socket
from typing import Any

from miniray import config, exceptions
from miniray.runtime import sessions

OUTSIDE_SCHEMES = ("miniray://", "ray://")


def resolve(address: str | None, given: list[str]) -> str | None:
    """Where to attach; None for a new local session. `given`: options that only a new session takes.

    TypeError and ValueError say what is wrong with an address.
    """
    where = _asked(address)
    if where is None and address is None and not given:
        where = _running_cluster()
    return where


def is_outside(where: str | None) -> bool:
    """True for an address that is reached through the head's port alone (`outside`)."""
    return where is not None and where.startswith(OUTSIDE_SCHEMES)


def _asked(address: str | None) -> str | None:
    if address in (None, "auto"):
        address = config.get("address") or address
    if address is None or address == "local":
        return None
    if not isinstance(address, str):
        raise TypeError(f"address must be a string, got {type(address)}")
    from miniray.runtime import join_string

    if join_string.looks_like_one(address):
        return _of_join_string(address)
    if "://" in address and not is_outside(address):
        raise ValueError(
            f"address {address!r}: 'auto' or HOST:PORT attach to a cluster with a node on this machine, "
            "miniray://HOST:PORT to any other."
        )
    return address


def _of_join_string(text: str) -> str:
    """Where a join string leads: to a node of its cluster here, else there from outside.

    AuthenticationError when it was revoked, as far as can be said on this machine.
    """
    from miniray.runtime import join_string

    joined = join_string.parse(text)
    here = [session for session in sessions.living() if session.address == joined.address]
    if here and joined.token not in [session.token() for session in here]:
        raise exceptions.AuthenticationError(
            f"the join string for {joined.address} does not hold (any more): its token was replaced. "
            "`miniray token show` on the head's machine prints the one that does"
        )
    has_node = any(session.kind == "node" and not session.is_drivers_own for session in here)
    return joined.address if has_node else f"{OUTSIDE_SCHEMES[0]}{text.strip()}"


def _running_cluster() -> str | None:
    """The address of the newest cluster with a node here; None when there is none."""
    return next((node.address for node in _nodes() if node.address and not node.is_drivers_own), None)


def _nodes() -> list[sessions.Session]:
    """All that run here, newest first."""
    return [session for session in sessions.living() if session.kind == "node"]


def _same(address: str, other: str) -> bool:
    """True when two HOST:PORT name one place: equal ports, and hosts with an address in common."""
    if address == other:
        return True
    host, _, port = address.rpartition(":")
    other_host, _, other_port = other.rpartition(":")
    if not host or not other_host or port != other_port:
        return False
    try:
        found = {row[4][0] for row in socket.getaddrinfo(host.strip("[]"), None)}
        return not found.isdisjoint(row[4][0] for row in socket.getaddrinfo(other_host.strip("[]"), None))
    except OSError:
        return False


def find(where: str, given: list[str]) -> Any:
    """A node of a running session to attach to. ConnectionError if there is none at `where`."""
    if given:
        raise ValueError(
            f"When connecting to an existing cluster, {' and '.join(given)} must not be provided: its "
            f"nodes ({where}) have said what they offer. address='local' starts a session of its own."
        )
    nodes = _nodes()
    shared = [node for node in nodes if not node.is_drivers_own]
    if where == "auto" and shared:
        # The newest cluster; a driver's local session only if there is nothing else.
        newest = next((node for node in shared if node.address), shared[0])
        where = newest.address or newest.directory
    for node in reversed(shared):  # of a cluster's nodes here the first: the head's
        if node.address and _same(where, node.address):
            return node
    for node in nodes:
        if where == node.directory:
            return node
    if where == "auto":
        raise ConnectionError(
            "Could not find any running Ray instance. Please specify the one to connect to by setting "
            "`--address` flag or `RAY_ADDRESS` environment variable (`miniray start --head` starts one)."
        )
    raise ConnectionError(
        f"no node of a cluster at {where} runs on this machine: "
        f"start one with `miniray start --join STRING`, or --address {where}; from a machine that shall "
        f"have none, connect to miniray://{where} or with the join string"
    )
