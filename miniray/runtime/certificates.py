"""Certificates of a cluster: its authority (CA), those of its daemons, and what a token stands for.

The one place that knows `cryptography`; loaded only where connections are encrypted. All keys are
EC P-256. Three kinds of certificates:

    the cluster's CA            made by the head, kept with its tables; ten years
    a daemon's                  head.miniray or <node id>.miniray, signed by the CA for a day
                                (`certificate_life_s`) and renewed before it ends
    a token's                   signed with a key that is computed from the cluster's token: whoever has
                                the token can make one, and the head lets in nobody without. It is what
                                a node or a command shows before it has a daemon's certificate.

Names say who somebody is, never where: addresses change. A daemon's key is made where it is used
and never leaves that machine; what travels is a signing request. Everything here is PEM bytes.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

AUTHORITY_LIFE_S = 10 * 365 * 86400.0
TOKEN_CERTIFICATE_LIFE_S = 86400.0
CLOCK_SKEW_S = 86400.0
"""Certificates are valid from so long ago, for machines whose clocks are behind. For those whose clocks are
ahead, a day's certificate is renewed after a third of it."""
MAX_REQUEST_BYTES = 4096
_TOKEN_NAME = "token.miniray"
_TOKEN_AUTHORITY = "miniray token"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Number of points of P-256: a private key is below it."""


class BadRequest(Exception):
    """A signing request that the authority does not sign; the message says why."""


class Authority:
    """A cluster's CA: signs the certificates of its daemons."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def create(cls) -> Authority:
        """A new one."""
        key = _new_key()
        return cls(key, _certificate("miniray cluster", "miniray cluster", key.public_key(), key,
                                     AUTHORITY_LIFE_S, is_authority=True))

    @classmethod
    def load(cls, pem: bytes) -> Authority:
        """What `dump` returned. ValueError for anything else."""
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is not of an elliptic curve")
        return cls(key, x509.load_pem_x509_certificate(pem))

    def dump(self) -> bytes:
        """Key and certificate: a secret."""
        return _key_pem(self._key) + self.certificate

    def sign(self, request: bytes, name: str, life_s: float, hosts: Iterable[str] = ()) -> bytes:
        """A certificate for `name` (and `hosts`) and the key of a signing request. BadRequest."""
        if len(request) > MAX_REQUEST_BYTES:
            raise BadRequest(f"a signing request of {len(request)} bytes; the limit is {MAX_REQUEST_BYTES}")
        try:
            asked = x509.load_pem_x509_csr(request)
            key = asked.public_key()
            proven = asked.is_signature_valid
        except (ValueError, TypeError, InvalidSignature) as error:
            raise BadRequest(f"not a signing request: {error}") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadRequest("a daemon's key must be of the curve P-256")
        if not proven:
            raise BadRequest("the signing request is not signed with its own key")
        made = _certificate(name, "miniray cluster", key, self._key, life_s, hosts=hosts)
        return made.public_bytes(serialization.Encoding.PEM)


def key_and_request() -> tuple[bytes, bytes]:
    """A new private key, and the request to sign its public half."""
    key = _new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def token_authority(token: str) -> bytes:
    """The certificate that is the root of all that holders of the token make for themselves."""
    key = _token_key(token)
    return _certificate(_TOKEN_AUTHORITY, _TOKEN_AUTHORITY, key.public_key(), key, AUTHORITY_LIFE_S,
                        is_authority=True).public_bytes(serialization.Encoding.PEM)


def token_certificate(token: str) -> tuple[bytes, bytes]:
    """(key, certificate) for somebody who has nothing but the token yet."""
    key = _new_key()
    made = _certificate(_TOKEN_NAME, _TOKEN_AUTHORITY, key.public_key(), _token_key(token),
                        TOKEN_CERTIFICATE_LIFE_S)
    return _key_pem(key), made.public_bytes(serialization.Encoding.PEM)


def life(certificate: bytes) -> float:
    """Seconds that one of ours was made for, whatever the clocks of its maker and of this machine say."""
    found = x509.load_pem_x509_certificate(certificate)
    return (found.not_valid_after_utc - found.not_valid_before_utc).total_seconds() - CLOCK_SKEW_S


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _token_key(token: str) -> ec.EllipticCurvePrivateKey:
    derived = HKDF(hashes.SHA256(), 48, None, b"miniray token key").derive(token.encode())
    return ec.derive_private_key(int.from_bytes(derived, "big") % (_ORDER - 1) + 1, ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: str, issuer: str, public_key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey,
    life_s: float, is_authority: bool = False, hosts: Iterable[str] = (),
) -> x509.Certificate:
    now = _now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=CLOCK_SKEW_S))
        .not_valid_after(now + datetime.timedelta(seconds=life_s))
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if not is_authority:
        names = [x509.DNSName(subject), *(_host_name(host) for host in hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())
