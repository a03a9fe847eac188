"""Options that `start`, `head` and `node` share, declared once, and how they become the daemons'.

Secrets come from the environment or from files; a join string may be an option, and is wiped from
the command line that `ps` shows as soon as this process runs. Names are Ray's
where Ray has the option; what Ray's command line takes and miniray has no use for is accepted and
ignored, so that scripts keep working.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from miniray import labels
from miniray.commands import credentials
from miniray.commands.credentials import Target
from miniray.runtime import host as machine
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
        "--host", "--node-ip-address", "host",
        help="Address to listen on, 0.0.0.0 for all (default: loopback; for a node that joins another "
        "machine the one that it is seen at).",
    ),
    click.option("--advertise", metavar="ADDRESS", help="Address to be reached at, where --host is not."),
    click.option("--token-file", metavar="FILE", help="File with the cluster's token."),
    click.option("--tls-ca", metavar="FILE", envvar="MINIRAY_TLS_CA", help="An own PKI: its CA,"),
    click.option("--tls-cert", metavar="FILE", envvar="MINIRAY_TLS_CERT", help="  a certificate,"),
    click.option("--tls-key", metavar="FILE", envvar="MINIRAY_TLS_KEY", help="  and its key."),
    click.option(
        "--insecure-plaintext", "--plain-text", "plain", is_flag=True, envvar="MINIRAY_INSECURE_PLAINTEXT",
        help="No encryption beyond loopback: whoever is on the network can read and change everything.",
    ),
)  # fmt: skip
NODE = (
    click.option("--join", metavar="STRING", help="A head's join string; @FILE or - (stdin) reads it there."),
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


def own_pki(values: dict[str, Any]) -> list[str]:
    """CA, certificate and key of an own PKI, or nothing. UsageError for a part of it."""
    files = [values["tls_ca"], values["tls_cert"], values["tls_key"]]
    if any(files) and not all(files):
        raise click.UsageError("an own PKI takes all of --tls-ca, --tls-cert and --tls-key")
    return [str(file) for file in files if file]


def head_daemon(values: dict[str, Any], token: str) -> HeadOptions:
    """The head's options out of a command's values; "" for a token that it makes itself."""
    listen = values["host"] or "127.0.0.1"
    plain = values["plain"]
    if not credentials.is_loopback(listen) and plain:
        credentials.warn_of_plain_text(listen)
    return HeadOptions(
        host=listen, advertise=values["advertise"] or _reachable(listen, "192.0.2.1"), port=values["port"],
        token=token, plain=plain, pki=own_pki(values), storage=values["storage"] or "",
        http_host=values["http_host"], http_port=values["http_port"],
        http_origins=[checked_origin(origin) for origin in values["http_origins"]],
    )  # fmt: skip


def checked_origin(text: str) -> str:
    """An origin as browsers write it. UsageError for anything else."""
    parts = urlsplit(text)
    whole = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in ("http", "https") or not parts.hostname or text != whole:
        raise click.UsageError(f"--http-origin {text!r}: an origin is https://ray.lan:8443, say; no path")
    return text


def _reachable(listen: str, towards: str) -> str:
    """An address to be reached at instead of "all of them"."""
    return machine.address_towards(towards) if machine.is_any(listen) else ""


def node_daemon(values: dict[str, Any], target: Target, *, is_head: bool = False) -> NodeOptions:
    """A node's options out of a command's values. UsageError when it would speak plain text unasked."""
    head, pki = target.host, own_pki(values)
    alone = credentials.is_loopback(head)
    listen = values["host"] or ("127.0.0.1" if alone else machine.address_towards(head))
    if alone and not (values["plain"] or pki or target.fingerprint or credentials.is_loopback(listen)):
        raise click.UsageError(
            f"the cluster at {target.address} is on loopback and not encrypted, so a node at {listen} cannot "
            "join it: start the head with --host ADDRESS, too"
        )
    if values["plain"] and not is_head and not credentials.is_loopback(listen):
        credentials.warn_of_plain_text(listen)
    return NodeOptions(
        host=listen,
        advertise=values["advertise"] or _reachable(listen, head),
        port=values["node_port"],
        data_port=values["node_port"] + 1 if values["node_port"] else 0,
        gcs_address=target.address,
        token=target.token,
        fingerprint=target.fingerprint.hex(),
        plain=values["plain"],
        pki=pki,
        num_cpus=values["num_cpus"],
        num_gpus=values["num_gpus"],
        memory=values["memory"],
        resources=values["resources"] or {},
        labels=values["labels"] or {},
        object_store_memory=values["object_store_memory"],
        node_name=values["node_name"] or "",
        is_head=is_head,
    )
