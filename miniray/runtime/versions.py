"""Which processes can work with one another: what each says of itself, and a refusal that names both sides.

::

    node, driver outside ──▶ head      Handshake, then every stream and call    `DAEMONS`
    raylet ──▶ raylet                  every stream
    command ──▶ head                   every call; Python's version does not matter to it
    driver, worker ──▶ raylet          its first message on the unix socket      `CLIENTS`

Protobuf bears fields that one side does not know; a protocol's number is raised where that is not enough.
Values are pickled, so they cross between processes of one minor version of Python only. What a peer does
not say is not compared. Pure.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

DAEMONS = 5
"""The protocol between daemons, and of commands with the head."""
CLIENTS = 1
"""The protocol of a raylet with drivers and workers of its machine."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What a process speaks."""

    protocol: int = 0
    python: str = ""
    """Major and minor."""

    def refusal(self, guest: Versions, host: str, guests: str) -> str:
        """Why `guest` cannot be let in, "" if it can; the last two say who the two sides are."""
        if guest.protocol and guest.protocol != self.protocol:
            return (
                f"{host} speaks protocol {self.protocol}, {guests} speaks protocol {guest.protocol}: install "
                "the same miniray on both"
            )
        if guest.python and guest.python != self.python:
            return (
                f"{host} runs Python {self.python}, {guests} runs Python {guest.python}: values could not be "
                "exchanged, so both need the same minor version"
            )
        return ""

    def __str__(self) -> str:
        """As it crosses the wire."""
        return f"{self.protocol} {self.python}".strip()

    @classmethod
    def parse(cls, text: str) -> Versions:
        """The opposite of `str`; of what is none, a version that nobody has."""
        protocol, _, python = text.partition(" ")
        return cls(int(protocol) if protocol.isdecimal() and len(protocol) < 9 else -1, python[:16])


def ours(protocol: int) -> Versions:
    """This process's."""
    return Versions(protocol, f"{sys.version_info.major}.{sys.version_info.minor}")
