"""Options that `start`, `head` and `node` share, declared once, and how they become the daemons'.

Secrets are not among them: a token comes from the environment or from a file. Names are Ray's
where Ray has the option; what Ray's command line takes and miniray has no use for is accepted and
ignored, so that scripts keep working.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from miniray import config, labels
from miniray.runtime import sessions
from miniray.runtime.daemon import HeadOptions, NodeOptions

DEFAULT_PORT = 6379
F = TypeVar("F", bound=Callable[..., Any])


def json_map(kind: Callable[[Any], Any]) -> Callable[[str], dict[str, Any]]:
    """Converts '{"TPU": 4}' to a dict of `kind`; also takes TPU=4,FPGA=1."""

    def convert(text: str) -> dict[str, Any]:
        try:
            if text.lstrip().startswith("{"):
                found = json.loads(text)
            else:
                found = dict(pair.split("=", 1) for pair in text.split(","))
            return {str(name): kind(value) for name, value in found.items()}
        except ValueError as error:
            raise click.BadParameter(
                f"{text!r} is neither a JSON object nor NAME=VALUE,NAME=VALUE: {error}"
            ) from error

    return convert


def label_map(text: str) -> dict[str, str]:
    """Converts '{"zone": "a"}' or zone=a,disk=ssd to labels; quotes around the whole are taken off."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    try:
        if text.startswith("{"):
            found = json.loads(text)
        else:
            found = dict(pair.split("=", 1) for pair in text.split(",") if pair)
    except ValueError as error:
        raise click.BadParameter(
            f"Label string is not a key-value pair. {text!r} is neither a JSON object nor "
            f"KEY=VALUE,KEY=VALUE: {error}"
        ) from error
    wrong = next((problem for pair in found.items() if (problem := labels.pair_error(*pair))), None)
    if wrong:
        raise click.BadParameter(f"Label string is not a key-value pair. {wrong}")
    return {str(key): value for key, value in found.items()}


HEAD = (
    click.option("--port", default=DEFAULT_PORT, show_default=True, help="TCP port of the head; 0: any."),
    click.option(
        "--storage", metavar="URL", envvar="MINIRAY_STORAGE",
        help="Where the head's tables live: a path, or redis://HOST:PORT/DB (needs miniray[redis]).",
    ),
    click.option(
        "--http-port", "--dashboard-port", "http_port", type=click.IntRange(0, 65535), metavar="PORT",
        help="Serve health, metrics and the JSON API over HTTP; 0: any port. Off by default.",
    ),
    click.option(
        "--http-host", "--dashboard-host", "http_host", default="127.0.0.1", show_default=True,
        help="Address to serve HTTP on.",
    ),
    click.option(
        "--http-origin", "http_origins", multiple=True, metavar="URL",
        help="Origin under which a proxy shows the HTTP server, https://ray.lan say; may be repeated.",
    ),
)
BOTH = (
    click.option(
        "--host", "--node-ip-address", "host", default="127.0.0.1", show_default=True,
        help="Address to listen on and to be reached at.",
    ),
    click.option(
        "--plain-text", is_flag=True,
        help="Allow a --host that is not loopback: whoever reads the network reads token and data.",
    ),
)  # fmt: skip
NODE = (
    click.option("--node-port", type=int, default=0, help="First of two TCP ports for other nodes; 0: any."),
    click.option("--num-cpus", type=float, help="CPUs offered (default: what this process may use)."),
    click.option("--num-gpus", type=float, help="GPUs offered (default: those found)."),
    click.option("--memory", type=int, metavar="BYTES", help="Memory offered to tasks that ask for it."),
    click.option("--resources", type=json_map(float), metavar="MAP", help="e.g. special=2, or as JSON."),
    click.option("--labels", type=label_map, metavar="MAP", help="e.g. zone=a,disk=ssd."),
    click.option("--object-store-memory", type=int, metavar="BYTES", help="Size of the object store."),
    click.option("--node-name", help="A name for people."),
)
IGNORED = (
    "--include-dashboard", "--ray-client-server-port",
    "--min-worker-port", "--max-worker-port", "--worker-port-list", "--object-manager-port",
    "--node-manager-port", "--redis-password", "--log-style", "--log-color", "--temp-dir",
)  # fmt: skip
IGNORED_FLAGS = ("--disable-usage-stats", "--verbose", "--no-redirect-output")


def _apply(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


head_options = _apply(*HEAD)
shared_options = _apply(*BOTH)
node_options = _apply(*NODE)


def ignored_ray_options(function: F) -> F:
    """Take Ray's options that have no meaning here, and drop them."""
    for name in IGNORED:
        function = click.option(name, hidden=True, expose_value=False)(function)
    for name in IGNORED_FLAGS:
        function = click.option(name, is_flag=True, hidden=True, expose_value=False)(function)
    return function


def check_host(host: str, plain_text: bool, option: str = "--host") -> None:
    """UsageError when traffic would leave this machine unencrypted and nobody said that it may."""
    try:
        loopback = all(
            ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None)
        )
    except OSError as error:
        raise click.UsageError(f"{option} {host}: {error}") from error
    if not (loopback or plain_text):
        raise click.UsageError(
            f"{option} {host} is not loopback and the control plane is not encrypted: add --plain-text if "
            "everyone on that network may read it, else keep it inside a VPN or an SSH tunnel"
        )


def head_daemon(values: dict[str, Any], token: str) -> HeadOptions:
    """The head's options out of a command's values."""
    if values["http_port"] is not None:
        check_host(values["http_host"], values["plain_text"], "--http-host")
    return HeadOptions(
        host=values["host"],
        port=values["port"],
        token=token,
        storage=values["storage"] or "",
        http_host=values["http_host"],
        http_port=values["http_port"],
        http_origins=[checked_origin(origin) for origin in values["http_origins"]],
    )


def checked_origin(text: str) -> str:
    """An origin as browsers write it. UsageError for anything else."""
    parts = urlsplit(text)
    whole = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in ("http", "https") or not parts.hostname or text != whole:
        raise click.UsageError(f"--http-origin {text!r}: an origin is https://ray.lan:8443, say; no path")
    return text


def node_daemon(values: dict[str, Any], token: str, address: str, *, is_head: bool = False) -> NodeOptions:
    """A node's options out of a command's values."""
    return NodeOptions(
        host=values["host"],
        port=values["node_port"],
        data_port=values["node_port"] + 1 if values["node_port"] else 0,
        gcs_address=address,
        token=token,
        num_cpus=values["num_cpus"],
        num_gpus=values["num_gpus"],
        memory=values["memory"],
        resources=values["resources"] or {},
        labels=values["labels"] or {},
        object_store_memory=values["object_store_memory"],
        node_name=values["node_name"] or "",
        is_head=is_head,
    )


def cluster_token(address: str | None = None) -> str:
    """The token from the environment, a token file, or a session of this cluster here; "" if none."""
    token = str(config.get("auth_token"))
    if token:
        return token
    path = str(config.get("auth_token_path"))
    if path:
        try:
            return Path(path).expanduser().read_text().strip()
        except OSError as error:
            raise click.ClickException(f"MINIRAY_AUTH_TOKEN_PATH: {error}") from error
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


def require_token(address: str) -> str:
    """The token of the cluster at `address`. ClickException that says where to get it."""
    token = cluster_token(address)
    if not token:
        raise click.ClickException(
            f"the cluster at {address} needs its token: set MINIRAY_AUTH_TOKEN or MINIRAY_AUTH_TOKEN_PATH "
            "(on the head's machine it is in the file `token` of the session directory)"
        )
    return token
