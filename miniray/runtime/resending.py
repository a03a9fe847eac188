"""TCP that goes on soon after a cable is back: what got lost is sent again every second.

The kernel doubles the time between attempts, so a network that was away for five seconds may be waited
for five more by connections whose other end has long been in reach. Linux 6.15 and later can be told a
longest time (`TCP_RTO_MAX_MS`); where it cannot, all stays as it was. A listening socket passes the
option on to what it accepts. gRPC hides its sockets: they are found among this process's descriptors.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

TCP_RTO_MAX_MS = 44
"""From linux/tcp.h; the socket module has no name for it yet."""
RESEND_MS = 1000
"""The shortest that the kernel takes."""

Socket = socket.socket


def resend_soon(sock: Socket) -> None:
    """Of a connection, or of all that a listening socket will accept."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, RESEND_MS)


def is_hasty(sock: Socket) -> bool:
    """Whether it resends soon, or cannot be told to."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS) == RESEND_MS
    except OSError:
        return True


def resend_soon_from(port: int) -> None:
    """Of whatever this process accepts on a port."""
    for sock in _own():
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.getsockname()[1] == port:
            resend_soon(sock)


def resend_soon_to(address: str) -> None:
    """Of the connection that this process has just made to "host:port"."""
    port = int(address.rpartition(":")[2])
    for sock in _own():
        with contextlib.suppress(OSError):
            if sock.getpeername()[1] == port and not is_hasty(sock):
                resend_soon(sock)
                return


def _own() -> Iterator[Socket]:
    """TCP sockets of this process; those with the highest descriptors, the newest as a rule, first."""
    for number in sorted(map(int, os.listdir("/proc/self/fd")), reverse=True):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                with socket.socket(fileno=os.dup(number)) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
                        yield sock
