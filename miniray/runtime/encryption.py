"""Mutual TLS between two workers of different nodes, over memory: bytes in, bytes out.

The raylets have authenticated one another and handed over a bare connection; both workers show the
certificate of their node on it and check that of the other's, so nothing that lies between the
machines can read or change what they say. A worker finds the certificate in its session directory.

::

    seal(bytes) ─▶ SSL ─▶ take() ─▶ the socket          under the worker's lock
    the socket ─▶ feed(bytes) ─▶ SSL ─▶ what they mean   on the I/O thread

What is sealed before the handshake is done waits for it. Two threads may use one of these.
"""

from __future__ import annotations

import os
import ssl
import threading

from miniray.runtime.access import FILE_NAME, Identity, node_name
from miniray.runtime.tls_socket import peer_name


class Broken(Exception):
    """The other end is not who it should be, or the bytes were changed; the message says which."""


class Encryption:
    """One end of one connection; see the module head."""

    def __init__(self, identity: Identity, peer_node: bytes, dialled: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._expected = "" if identity.by_host else node_name(peer_node)
        context = identity.context(server=not dialled)
        if identity.by_host and dialled:
            context = _without_names(identity)  # a node's raylet has checked the machine's name
        name = self._expected or None if dialled else None
        self._ssl = context.wrap_bio(self._in, self._out, server_side=not dialled, server_hostname=name)
        self._early: list[bytes] = []
        self._lock = threading.Lock()
        self.is_done = False
        """The handshake is: the other end is who it should be."""
        self._shake()

    def seal(self, data: bytes) -> None:
        """Encrypt; `take` has it then."""
        with self._lock:
            if self.is_done:
                self._ssl.write(data)
            else:
                self._early.append(data)

    def take(self) -> bytes:
        """What is to be sent now."""
        with self._lock:
            return self._out.read()

    def feed(self, data: bytes) -> bytes:
        """What the bytes that came mean; b"" when they are not complete. Broken."""
        with self._lock:
            self._in.write(data)
            try:
                if not self.is_done and not self._shake():
                    return b""
                return self._read()
            except ssl.SSLError as error:
                raise Broken(f"the connection to a worker of another node is broken: {error}") from None

    def _shake(self) -> bool:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        found = peer_name(self._ssl)
        if self._expected and found != self._expected:
            raise Broken(f"a worker of {self._expected} was expected, not of {found or 'nobody'}")
        self.is_done = True
        for data in self._early:
            self._ssl.write(data)
        self._early.clear()
        return True

    def _read(self) -> bytes:
        parts = []
        try:
            while part := self._ssl.read(256 * 1024):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        return b"".join(parts)


class Identities:
    """The certificate of this worker's node, read again when it was renewed."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._identity: Identity | None = None
        self._written = -1

    def present(self) -> Identity | None:
        """None when it cannot be read: the session is ending."""
        try:
            written = os.stat(os.path.join(self._directory, FILE_NAME)).st_mtime_ns
            if written != self._written:
                self._identity, self._written = Identity.load(self._directory), written
        except (OSError, ValueError):
            pass
        return self._identity


def _without_names(identity: Identity) -> ssl.SSLContext:
    plain = Identity(identity.ca, identity.certificate, identity.key).context(server=False)
    plain.check_hostname = False
    return plain
