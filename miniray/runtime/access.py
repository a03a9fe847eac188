"""What a process shows when it connects, and demands of those who do: the token, and certificates.

One `Access` per daemon or command. The token can be replaced while all goes on (`replace_token`),
and so can the certificates (`Identity.renew`): both are read at each new connection. On a cluster
that stays on loopback there is no `Identity`, connections are plain, and none of `ssl` is used.

    Access     token, accepts(), identity
    Identity   CA, certificate and key as PEM; contexts for `ssl`; a file of its own for workers

Any thread. `ssl` reads keys from files only, so contexts are fed through an anonymous one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

TOKEN_GRACE_S = 30.0
"""For so long a replaced token still does where who shows it is known by other means."""
FILE_NAME = "tls.json"
HEAD_NAME = "head.miniray"
"""The name in the head's certificate."""


def node_name(node_id: bytes) -> str:
    """The name in a node's certificate."""
    return f"{node_id.hex()}.miniray"


class NotAdmitted(ConnectionError):
    """The cluster and this process do not trust one another; the message says what to do."""


class Identity:
    """Certificates of this process. `renew` replaces them for all connections from then on."""

    def __init__(self, ca: bytes, certificate: bytes, key: bytes, *, by_host: bool = False) -> None:
        """`certificate` is the whole chain. `by_host`: an own PKI, whose names are those of machines."""
        self.ca = ca
        self.certificate = certificate
        self.key = key
        self.by_host = by_host
        self.clients = ca
        """Roots of those who may connect here. A head adds those who have the token, and no more yet."""
        self.generation = 0
        """Grows with each renewal."""
        self._contexts: dict[bool, tuple[int, ssl.SSLContext]] = {}

    def renew(self, certificate: bytes, key: bytes) -> None:
        """Use these from now on."""
        self.certificate, self.key = certificate, key
        self.generation += 1

    def admit(self, roots: bytes) -> None:
        """Let in those whose certificates stand on the CA or on `roots`, and nobody else from now on."""
        self.clients = self.ca + roots
        self.generation += 1

    def context(self, server: bool) -> ssl.SSLContext:
        """For one side of a mutual TLS connection."""
        generation, context = self._contexts.get(server, (-1, None))
        if context is None or generation != self.generation:
            generation = self.generation
            context = _context(server, self.ca, self.key + self.certificate)
            self._contexts[server] = (generation, context)
        return context

    def save(self, directory: str) -> None:
        """Write it for the workers and commands of this machine, readable by this user alone."""
        from miniray.runtime import sessions

        fields = {"ca": self.ca.decode(), "certificate": self.certificate.decode(),
                  "key": self.key.decode(), "by_host": self.by_host}
        sessions.write_private(os.path.join(directory, FILE_NAME), json.dumps(fields))

    @classmethod
    def load(cls, directory: str) -> Identity | None:
        """What `save` wrote; None when there is none: the cluster is not encrypted."""
        try:
            with open(os.path.join(directory, FILE_NAME)) as file:
                fields: dict[str, Any] = json.load(file)
        except FileNotFoundError:
            return None
        return cls(fields["ca"].encode(), fields["certificate"].encode(), fields["key"].encode(),
                   by_host=fields["by_host"])

    @classmethod
    def of_files(cls, ca: str, certificate: str, key: str) -> Identity:
        """Of an own PKI. OSError when a file cannot be read."""
        return cls(*(_read(path) for path in (ca, certificate, key)), by_host=True)


class Access:
    """See the module head."""

    def __init__(self, token: str, identity: Identity | None = None) -> None:
        self.token = token
        self.identity = identity
        self._former = ""
        self._former_until = 0.0

    @classmethod
    def of(cls, token: str | Access) -> Access:
        """A bare token is access to a cluster without encryption."""
        return token if isinstance(token, Access) else cls(token)

    def replace_token(self, token: str) -> None:
        """The cluster has another token from now on."""
        if token != self.token:
            self._former, self._former_until = self.token, time.monotonic() + TOKEN_GRACE_S
            self.token = token

    def accepts(self, given: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def accepts_known(self, given: str) -> bool:
        """The same for somebody whose credentials were checked: the token's predecessor does, for a while."""
        return any(hmac.compare_digest(given.encode(), token.encode()) for token in self._tokens())

    def demand_own(self, address: str) -> None:
        """NotAdmitted when another user of this machine would be told the token at HOST:PORT. OSError."""
        if self.identity is not None:
            return  # the certificate says who it is
        from miniray.runtime import port_owner

        uid = port_owner.stranger_at(address)
        if uid is not None:
            raise NotAdmitted(f"another user (uid {uid}) listens at {address}, and is not told the cluster's "
                              "token: whoever had this port before has ended")

    def proof(self, challenge: bytes) -> bytes:
        """What shows that its maker knows the token, and not which it is."""
        return _proof(self.token, challenge)

    def is_proven(self, given: bytes, challenge: bytes) -> bool:
        """Whether `given` is the proof of this challenge."""
        tokens = self._tokens() if self.identity is not None else [self.token]
        return any(hmac.compare_digest(given, _proof(token, challenge)) for token in tokens)

    def _tokens(self) -> list[str]:
        if self._former and time.monotonic() < self._former_until:
            return [self.token, self._former]
        return [self.token]


def vouch(token: str, nonce: bytes, ca: bytes) -> bytes:
    """How a head that knows the token says that this CA is its cluster's."""
    return hmac.digest(token.encode(), b"miniray authority" + nonce + fingerprint(ca), hashlib.sha256)


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of one certificate."""
    import ssl

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).digest()


def _proof(token: str, challenge: bytes) -> bytes:
    return hmac.digest(token.encode(), b"miniray bulk" + challenge, hashlib.sha256)


def _read(path: str) -> bytes:
    with open(os.path.expanduser(path), "rb") as file:
        return file.read()


def _context(server: bool, ca: bytes, key_and_chain: bytes) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca.decode())
    if server:
        context.num_tickets = 0  # a ticket could be under way when the connection is handed on
    load_key(context, key_and_chain)
    return context


def load_key(context: ssl.SSLContext, key_and_chain: bytes) -> None:
    """Give a context its certificate without a file that others might read."""
    number = os.memfd_create("miniray-tls", os.MFD_CLOEXEC)
    try:
        os.write(number, key_and_chain)
        context.load_cert_chain(f"/proc/self/fd/{number}")
    finally:
        os.close(number)
