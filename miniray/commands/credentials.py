"""Which cluster a command is about, and with what it may speak to it: address, token, CA.

In this order: what the command line says, the environment (MINIRAY_JOIN, MINIRAY_ADDRESS,
MINIRAY_AUTH_TOKEN, MINIRAY_AUTH_TOKEN_FILE), and the sessions of this user on this machine. A join
string is good wherever an address is.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from miniray import config
from miniray.runtime import join_string, sessions


@dataclass(frozen=True)
class Target:
    """A cluster to join or to ask."""

    address: str
    token: str
    fingerprint: bytes = b""
    """SHA-256 of its CA, if it is known."""

    @property
    def host(self) -> str:
        """The HOST of HOST:PORT."""
        return self.address.rpartition(":")[0].strip("[]")


def hide_arguments() -> None:
    """Wipe the command line of this process where `ps` shows it, if there is a secret in it."""
    if any(join_string.PREFIX in argument for argument in sys.argv):
        import setproctitle

        shown = [argument if join_string.PREFIX not in argument else "***" for argument in sys.argv]
        setproctitle.setproctitle(" ".join([os.path.basename(shown[0]), *shown[1:]]))


def is_loopback(host: str) -> bool:
    """True when a host is this machine alone. UsageError for an unknown one."""
    import ipaddress
    import socket

    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise click.UsageError(f"{host}: {error}") from error
    return all(ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_loopback for one in found)


def warn_of_plain_text(host: str) -> None:
    """In red."""
    click.secho(
        f"INSECURE: connections of {host} are not encrypted. Whoever is on the network can read the token "
        "and all data, change it, and run code here.", fg="red", bold=True, err=True)  # fmt: skip


def read_join(text: str) -> join_string.JoinString:
    """The join string of an option: itself, @FILE, or - for stdin. ClickException."""
    try:
        if text == "-":
            text = sys.stdin.readline()
        elif text.startswith("@"):
            text = Path(text[1:]).expanduser().read_text()
        return join_string.parse(text)
    except OSError as error:
        raise click.ClickException(f"--join: {error}") from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def joined(text: str) -> Target:
    """The cluster of a join string."""
    found = read_join(text)
    return Target(found.address, found.token, found.fingerprint)


def target(address: str | None, join: str | None = None, token_file: str | None = None) -> Target:
    """The cluster that is meant. ClickException that says what is missing."""
    text = join or (address if address and join_string.looks_like_one(address) else "")
    if not text and not address and not config.get("address"):
        text = str(config.get("join"))
    if text:
        return joined(text)
    where = address or str(config.get("address"))
    if join_string.looks_like_one(where):
        return joined(where)
    if where in ("", "auto"):
        where = running_here()
    token = cluster_token(where, token_file)
    if not token:
        raise click.ClickException(
            f"the cluster at {where} needs its token: use its join string (`miniray token show` on the "
            "head's machine), or set MINIRAY_AUTH_TOKEN or MINIRAY_AUTH_TOKEN_FILE"
        )
    return Target(where, token)


def cluster_token(address: str | None = None, token_file: str | None = None) -> str:
    """The token from a file, the environment, or a session of this cluster here; "" if none."""
    token = str(config.get("auth_token"))
    path = token_file or ("" if token else str(config.get("auth_token_path")))
    if path:
        try:
            return Path(path).expanduser().read_text().strip()
        except OSError as error:
            raise click.ClickException(f"the file of the token: {error}") from error
    if token:
        return token
    for session in sessions.living() if address else []:
        if session.address == address:
            return session.token()
    return ""


def running_here() -> str:
    """HOST:PORT of the cluster that runs on this machine. ClickException when there is none."""
    for session in sessions.living():
        if session.address:
            return session.address
    raise click.ClickException("no cluster runs on this machine: give --address HOST:PORT, or start a --head")


def own_join_string(address: str) -> join_string.JoinString:
    """That of a cluster with a session on this machine. ClickException when there is none."""
    from miniray.runtime.access import Identity, fingerprint

    for session in sessions.living():
        if session.address and address in ("", "auto", session.address):
            identity = Identity.load(session.directory)
            ca = fingerprint(identity.ca) if identity is not None and not identity.by_host else b""
            return join_string.JoinString(session.address, session.token(), ca)
    raise click.ClickException(f"no cluster {address} runs on this machine: ask on the machine of its head")
