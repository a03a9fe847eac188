"""The first contact with a head whose connections are encrypted: is it the cluster that was meant?

::

    this process                                     head
      TLS, with a certificate made of the token ─────▶ refused unless the token is the cluster's
      ◀──────────────────────────────── its chain: certificate, CA
      the CA's SHA-256 is the join string's?           else: another cluster, or somebody in between
      without a join string: Handshake with a nonce ─▶
      ◀──────── HMAC(token, nonce | CA's SHA-256)      only who knows the token can vouch for the CA

The token itself is sent only when the CA is known. Afterwards every connection is checked against
that CA by gRPC. `meet` blocks for up to `MEET_S`; `introduce` runs on an event loop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from miniray.runtime.access import Access, Identity, NotAdmitted, fingerprint, load_key

MEET_S = 10.0


async def introduce(address: str, token: str, expected: bytes = b"") -> Access:
    """Access to the cluster at `address` for somebody with its token. NotAdmitted, OSError.

    `expected` is the fingerprint of its CA; without it the head must prove that it knows the token.
    """
    from miniray.runtime import certificates, rpc

    key, certificate = certificates.token_certificate(token)
    loop = asyncio.get_running_loop()
    ca = await loop.run_in_executor(None, meet, address, key + certificate, expected)
    access = Access(token, Identity(ca, certificate, key))
    if not expected:
        await rpc.demand_proof(address, access)
    return access


def meet(address: str, credential: bytes, expected: bytes = b"") -> bytes:
    """The CA that the head at `address` shows, if it is the expected one and accepts `credential`.

    NotAdmitted, OSError.
    """
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whose CA it is, is looked at below and by the caller
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    load_key(context, credential)
    try:
        raw = socket.create_connection((host.strip("[]"), int(port)), MEET_S)
    except ConnectionRefusedError:
        raise ConnectionRefusedError(f"nothing listens at {address}: connection refused") from None
    except OSError as error:
        raise ConnectionError(f"{address} cannot be reached: {error}") from None
    with raw:
        try:
            with context.wrap_socket(raw) as sock:
                ca = _chain(sock)[-1]
                if expected and fingerprint(ca) != expected:
                    raise NotAdmitted(_another(address, ca, expected))
                accepted = bool(sock.recv(1))  # a server that took our certificate speaks first
        except (ssl.SSLError, ConnectionResetError) as error:
            raise NotAdmitted(_what_failed(address, error)) from None
        except NotAdmitted:
            raise
        except OSError as error:
            raise ConnectionError(f"{address} does not answer: {error}") from None
    if not accepted:
        raise NotAdmitted(_refused(address))
    return ca


def _what_failed(address: str, error: OSError) -> str:
    reason = getattr(error, "reason", "") or str(error)
    if "ALERT" in reason or "CERTIFICATE" in reason:
        return _refused(address)
    return (
        f"{address} does not speak TLS ({reason}): it is not the head of an encrypted cluster. If it was "
        "started with --insecure-plaintext, say so here, too; the token then crosses the network in the clear"
    )


def _another(address: str, ca: bytes, expected: bytes) -> str:
    return (
        f"what listens at {address} is not the cluster of this join string: its CA has the fingerprint "
        f"{fingerprint(ca).hex()[:16]}, expected {expected.hex()[:16]}. If the head was started anew, "
        "`miniray token show` on its machine prints the join string that holds"
    )


def _refused(address: str) -> str:
    return (
        f"{address} does not accept this cluster token: it is another cluster's, or was revoked by "
        "`miniray token rotate`. `miniray token show` on the head's machine prints a join string that holds"
    )


def _chain(sock: ssl.SSLSocket) -> list[bytes]:
    """The certificates that the other side has shown, as PEM."""
    public = getattr(sock, "get_unverified_chain", None)  # from Python 3.13 on
    if public is not None:
        found = list(public())
    else:
        found = [one.public_bytes(2) for one in sock._sslobj.get_unverified_chain() or ()]  # type: ignore[attr-defined]
    if not found:
        raise ConnectionResetError("no certificate")
    return [ssl.DER_cert_to_PEM_cert(der).encode() for der in found]
