"""Who listens on a loopback port: a port number is nobody's, and the next user may take it.

Where connections are not encrypted, the token is sent to whoever has the address. On loopback that must
be this user or root; else a user of this machine who takes the port of a head that has just ended is
told the token by all who look for it. The kernel lists listening sockets with their users for everybody.
Reads two files of /proc; listening sockets come first in them, and no more is read.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

from miniray.runtime.host import unmapped

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
LISTENING = "0A"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def stranger_at(address: str) -> int | None:
    """The uid of another user who listens at HOST:PORT of loopback; None when there is none. OSError."""
    host, _, port = address.rpartition(":")
    wanted = {unmapped(ipaddress.ip_address(str(row[4][0]).partition("%")[0]))
              for row in socket.getaddrinfo(host.strip("[]"), None)}
    if not port.isdigit() or not all(one.is_loopback for one in wanted):
        return None
    for table in TABLES:
        for there, uid in _listening(table, int(port)):
            if (there in wanted or there.is_unspecified) and uid not in (os.getuid(), 0):
                return uid
    return None


def _listening(table: str, port: int) -> list[tuple[_Address, int]]:
    """(address, uid) of those who listen on a port; [] where there is no such table."""
    found = []
    ending = f":{port:04X}"
    try:
        with open(table) as file:
            next(file)
            for line in file:
                fields = line.split()
                if fields[3] != LISTENING:
                    break
                if fields[1].endswith(ending):
                    found.append((_address(fields[1][: -len(ending)]), int(fields[7])))
    except (OSError, StopIteration):
        pass
    return found


def _address(text: str) -> _Address:
    """Of words of 32 bits in hexadecimal, each in this machine's order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return unmapped(ipaddress.ip_address(b"".join(words)))
