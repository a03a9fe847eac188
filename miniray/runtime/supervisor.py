"""What systemd is told about a daemon: `sd_notify`'s datagrams, without its library.

A unit of `Type=notify` sets NOTIFY_SOCKET; without that variable nothing is said. Workers and the
user's processes must not inherit it, so the first use takes it out of the environment. Any thread.
"""

from __future__ import annotations

import os
import socket

_socket = ""


def adopt() -> None:
    """Take the supervisor's socket from the environment, before any other process is started."""
    global _socket
    _socket = os.environ.pop("NOTIFY_SOCKET", "")


def ready(status: str) -> None:
    """The daemon can be reached; `status` is shown by `systemctl status`."""
    _tell("READY=1", f"STATUS={status}")


def stopping(status: str) -> None:
    """It is about to end, or drains first."""
    _tell("STOPPING=1", f"STATUS={status}")


def _tell(*lines: str) -> None:
    """One datagram; a supervisor that does not listen is no reason to fail."""
    if not _socket:
        return
    address = "\0" + _socket[1:] if _socket.startswith("@") else _socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.send("\n".join(lines).encode())
        except OSError:
            pass
