"""Who stays when too many are connected to a gRPC server, which has no limit for that itself.

A connection on which no call with the token was made is a stranger's. gRPC closes those that are silent
for long, but until then each takes a descriptor, and whoever opens them fast enough takes all. So once
a second the descriptors of this process are counted; where there are many more than usual, the sockets
of our port are looked at, and of the strangers those that were there longest are shut down. Who
has just come is spared until the next look, to show the token.

gRPC keeps its sockets to itself, but they are this process's: each is looked at through a duplicate of
its descriptor, on a number that is set aside for that, so it works where no descriptor is left.
Event loop's thread; a look at 5,000 connections takes some 50 ms.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import socket
from typing import Any
from urllib.parse import unquote

from miniray.runtime.host import unmapped

MAX_STRANGERS = 256
"""Connections without the token that are kept."""
LOOK_EVERY_S = 1.0
MAX_KNOWN = 4096
"""Peers that are remembered before those that have left are looked for."""
MOST_NUMBERS = 1 << 16

Peer = tuple[str, int]
"""Address and port of the other end."""


class Doorkeeper:
    """Of one port. `admits` for each call that has shown the token; `watch` until cancelled."""

    def __init__(self) -> None:
        self._known: dict[Peer, None] = {}
        self._strangers: dict[Peer, None] = {}
        """As of the last look, longest there first."""
        self._usual = 0
        """Descriptors at the last look that were no stranger's."""

    def admits(self, context: Any) -> None:
        """A call with the token came over the connection of this gRPC context."""
        host, _, port = unquote(context.peer()).partition(":")[2].rpartition(":")
        if port.isdigit():
            self._known[_peer(host.strip("[]"), int(port))] = None

    async def watch(self, port: int) -> None:
        """Look after the connections of `port`."""
        look = _Look(port)
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                numbers = _descriptors()
                if len(numbers) > self._usual + MAX_STRANGERS or len(self._known) > MAX_KNOWN:
                    self._look(look, numbers)
        finally:
            look.close()

    def _look(self, look: _Look, numbers: list[int]) -> None:
        there = look.connections(numbers)
        self._known = {peer: None for peer in self._known if peer in there}
        strangers = [peer for peer in there if peer not in self._known]
        former = [peer for peer in self._strangers if peer in there and peer not in self._known]
        self._strangers = dict.fromkeys(former + strangers)
        self._usual = len(numbers) - len(self._strangers)
        new = len(self._strangers) - len(former)
        spared = MAX_STRANGERS if len(numbers) > _descriptor_limit() // 2 else max(new, MAX_STRANGERS)
        for peer in list(self._strangers)[: max(0, len(self._strangers) - spared)]:
            look.shut_down(there[peer], peer)
            del self._strangers[peer]


class _Look:
    """At sockets of this process that others own; owns two descriptors itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._duplicate = os.dup(self._nothing)

    def close(self) -> None:
        os.close(self._duplicate)
        os.close(self._nothing)

    def connections(self, numbers: list[int]) -> dict[Peer, int]:
        """Who is connected to the port -> the descriptor."""
        found = {}
        for number in numbers:
            peer = self._at(number)
            if peer is not None:
                found[peer] = number
        return found

    def shut_down(self, number: int, peer: Peer) -> None:
        """End a connection, unless gRPC has closed it since and the number is another's."""
        self._at(number, then_end=peer)

    def _at(self, number: int, then_end: Peer | None = None) -> Peer | None:
        try:
            os.dup2(number, self._duplicate, inheritable=False)
            sock = socket.socket(fileno=self._duplicate)
        except OSError:
            return None  # closed meanwhile, or no socket
        try:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.getsockname()[1] != self._port:
                return None
            peer = _peer(*sock.getpeername()[:2])
            if peer == then_end:
                sock.shutdown(socket.SHUT_RDWR)
            return peer
        except OSError:
            return None  # it listens, or has just ended
        finally:
            sock.detach()
            os.dup2(self._nothing, self._duplicate, inheritable=False)


def _peer(host: str, port: int) -> Peer:
    address = ipaddress.ip_address(host.partition("%")[0])
    return str(unmapped(address)), port


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # not one is left for the listing
        return list(range(min(_descriptor_limit(), MOST_NUMBERS)))


def _descriptor_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
