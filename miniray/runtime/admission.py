"""How a node, a command or a driver comes to its `Access` to a cluster.

Whether a cluster's connections are encrypted is never guessed from what answers:

    a session of it on this machine   says so in its directory
    an own PKI (--tls-…, MINIRAY_TLS_…)   encrypted, with those files
    a join string                     encrypted if it names a CA
    otherwise                         encrypted, unless the address is loopback or plain text was asked for
                                      (--insecure-plaintext, MINIRAY_INSECURE_PLAINTEXT)

so nobody in between can talk this process into plain text.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

from miniray import config
from miniray._proto import gcs_pb2
from miniray.runtime import rpc, sessions
from miniray.runtime.access import Access, Identity, NotAdmitted

RENEW_AT = 1 / 3
"""Share of a certificate's life after which it is renewed."""
RENEW_AGAIN_S = 5.0


@dataclass(frozen=True)
class Terms:
    """What is known of a cluster before it is spoken to."""

    address: str
    token: str
    fingerprint: bytes = b""
    plain: bool = False
    """Plain text beyond loopback was asked for."""
    pki: tuple[str, str, str] | None = None
    """Files of an own PKI: CA, certificate, key."""

    @property
    def is_encrypted(self) -> bool:
        """Whether connections are, as far as the terms say."""
        return bool(self.pki or self.fingerprint or not (self.plain or is_loopback(host_of(self.address))))


def host_of(address: str) -> str:
    """The HOST of HOST:PORT."""
    return address.rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """True when all addresses of a host are this machine's alone. OSError for an unknown host."""
    found = socket.getaddrinfo(host, None)
    return all(ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_loopback for one in found)


def pki_files() -> tuple[str, str, str] | None:
    """An own PKI that the environment names."""
    files = str(config.get("tls_ca")), str(config.get("tls_cert")), str(config.get("tls_key"))
    return files if all(files) else None


async def admit(address: str, token: str) -> Access:
    """Access for a command or a driver. NotAdmitted, OSError."""
    for session in sessions.living():
        if session.address == address:
            return Access(token, Identity.load(session.directory))
    plain = bool(config.get("insecure_plaintext"))
    return await _by_terms(Terms(address, token, _fingerprint(address), plain, pki_files()))


def _fingerprint(address: str) -> bytes:
    """That of the join string in the environment, if it is for this address."""
    text = str(config.get("join"))
    if not text:
        return b""
    from miniray.runtime import join_string

    try:
        joined = join_string.parse(text)
    except ValueError as error:
        raise NotAdmitted(f"MINIRAY_JOIN: {error}") from None
    return joined.fingerprint if joined.address == address else b""


async def _by_terms(terms: Terms) -> Access:
    if terms.pki is not None:
        return Access(terms.token, Identity.of_files(*terms.pki))
    if not terms.is_encrypted:
        return Access(terms.token)
    from miniray.runtime.meeting import introduce

    return await introduce(terms.address, terms.token, terms.fingerprint)


async def join(terms: Terms, node_id: bytes) -> Access:
    """Access for a node, with a certificate of its own. NotAdmitted, OSError, rpc.RpcError."""
    access = await _by_terms(terms)
    identity = access.identity
    if identity is not None and not identity.by_host:
        await _certify(terms.address, access, node_id)
    return access


async def keep_certified(address: str, access: Access, node_id: bytes, directory: str) -> None:
    """Renew a node's certificate before it ends, for ever; `directory` is where its workers find it."""
    from miniray.runtime import certificates

    identity = access.identity
    assert identity is not None
    while not identity.by_host:
        life_s = certificates.life(identity.certificate)
        await asyncio.sleep(max(0.1, life_s * RENEW_AT))
        while True:
            try:
                await _certify(address, access, node_id)
                break
            except rpc.RpcError:
                await asyncio.sleep(min(RENEW_AGAIN_S, max(0.1, life_s / 10)))
        identity.save(directory)


async def _certify(address: str, access: Access, node_id: bytes) -> None:
    from miniray.runtime import certificates

    assert access.identity is not None
    key, request = certificates.key_and_request()
    reply = await rpc.certify(address, access, gcs_pb2.CertifyRequest(node_id=node_id, request=request))
    if reply.failure.kind:
        raise rpc.RpcError(reply.failure.message)
    access.identity.renew(reply.certificate + access.identity.ca, key)
