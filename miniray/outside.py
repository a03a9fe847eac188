"""`init("miniray://HOST:PORT")`: a driver on a machine without a node, which reaches one port of the cluster.

The driver gets a node of its own, which takes no work and ends with it, and whose connections all go
through the head's port (`runtime.tunnel`). So everything is what it is elsewhere: objects that are put are
in shared memory of this machine, and what is got comes there. `ray://` is another name for it, as is a join
string behind either, or alone. Ray's client is another thing: a proxy in the cluster that a driver talks to.
"""

from __future__ import annotations

import os

from miniray import config
from miniray.runtime.launch import Launch, LocalSession


def start(where: str, store_bytes: int | None = None) -> LocalSession:
    """Start this driver's node, with a store of so many bytes. ConnectionError: why it cannot join."""
    from miniray.runtime.daemon import NodeOptions

    address, token, fingerprint = _target(where.partition("://")[2].rstrip("/"))
    if not token:
        raise ConnectionError(
            f"the cluster at {address} needs its token: set MINIRAY_JOIN to its join string (`miniray token "
            "show` on the head's machine), or MINIRAY_AUTH_TOKEN"
        )
    options = NodeOptions(
        gcs_address=address, token=token, fingerprint=fingerprint.hex(), behind_head=True,
        plain=bool(config.get("insecure_plaintext")), node_name=f"client {os.uname().nodename}",
        driver_pid=os.getpid(), object_store_memory=store_bytes,
    )  # fmt: skip
    with Launch("node") as launch:
        try:
            launch.send(options)
            session = LocalSession(launch.ready())
        except RuntimeError as error:
            raise ConnectionError(str(error)) from None
    session.cluster = address
    return session


def _target(rest: str) -> tuple[str, str, bytes]:
    """(HOST:PORT, token, fingerprint of the CA) by the address, the environment, or sessions here."""
    from miniray.runtime import join_string, sessions

    if join_string.looks_like_one(rest):
        found = join_string.parse(rest)
        return found.address, found.token, found.fingerprint
    text = str(config.get("join"))
    if text and join_string.looks_like_one(text):
        found = join_string.parse(text)
        if found.address == rest:
            return rest, found.token, found.fingerprint
    token = str(config.get("auth_token"))
    path = str(config.get("auth_token_path"))
    if not token and path:
        with open(os.path.expanduser(path)) as file:
            token = file.read().strip()
    if not token:
        token = next((one.token() for one in sessions.living() if one.address == rest), "")
    return rest, token, b""
