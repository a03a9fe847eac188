"""The cluster's CA signs keys it has not seen the private half of, and nothing else."""

from __future__ import annotations

import datetime
import ssl
from contextlib import suppress

import pytest

from miniray.runtime import certificates
from miniray.runtime.access import Access, Identity, fingerprint, vouch
from miniray.runtime.certificates import Authority, BadRequest
from miniray.runtime.tls_socket import peer_name


def test_an_authority_survives_its_storage() -> None:
    made = Authority.create()
    again = Authority.load(made.dump())
    assert again.certificate == made.certificate and again.dump() == made.dump()
    assert len(fingerprint(made.certificate)) == 32
    assert fingerprint(made.certificate) != fingerprint(Authority.create().certificate)


def test_a_signed_certificate_serves_both_sides_of_tls() -> None:
    authority = Authority.create()
    key, request = certificates.key_and_request()
    identity = Identity(authority.certificate, authority.sign(request, "head.miniray", 60), key)
    assert identity.context(server=True) is identity.context(server=True)
    before = identity.context(server=False)
    key, request = certificates.key_and_request()
    identity.renew(authority.sign(request, "head.miniray", 60), key)
    assert identity.context(server=False) is not before


@pytest.mark.parametrize("hours", [-15, 20])
def test_a_head_whose_clock_is_hours_off_is_believed(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = certificates._now
    monkeypatch.setattr(certificates, "_now", lambda: now() + datetime.timedelta(hours=hours))
    authority = Authority.create()
    key, request = certificates.key_and_request()
    identity = Identity(authority.certificate, authority.sign(request, "head.miniray", 86400), key)
    assert certificates.life(identity.certificate) == 86400
    ends = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    near = identity.context(server=False).wrap_bio(ends[0], ends[1], server_hostname="head.miniray")
    far = identity.context(server=True).wrap_bio(ends[1], ends[0], server_side=True)
    waiting = [near, far]
    for _ in range(10):
        for one in list(waiting):
            with suppress(ssl.SSLWantReadError):
                one.do_handshake()
                waiting.remove(one)
    assert not waiting and peer_name(near) == peer_name(far) == "head.miniray"


def test_requests_that_prove_nothing_are_refused() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    authority = Authority.create()
    key, request = certificates.key_and_request()
    changed = bytearray(x509.load_pem_x509_csr(request).public_bytes(serialization.Encoding.DER))
    changed[-1] ^= 1  # in the signature
    forged = x509.load_der_x509_csr(bytes(changed)).public_bytes(serialization.Encoding.PEM)

    def of(private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
        made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return made.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    others = [of(rsa.generate_private_key(65537, 2048)), of(ec.generate_private_key(ec.SECP384R1()))]
    for bad in (b"", b"x" * 10_000, b"not pem", key, forged, *others):
        with pytest.raises(BadRequest):
            authority.sign(bad, "head.miniray", 60)


def test_names_in_a_request_are_not_believed() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    asked = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "head.miniray")])
    ).add_extension(x509.BasicConstraints(True, None), True)
    request = asked.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    signed = Authority.create().sign(request.public_bytes(serialization.Encoding.PEM), "ab.miniray", 60)
    found = x509.load_pem_x509_certificate(signed)
    assert found.subject.rfc4514_string() == "CN=ab.miniray"
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_tokens_certificates_stand_on_the_same_key_wherever_they_are_made() -> None:
    from cryptography import x509

    key, made = certificates.token_certificate("token")
    leaf = x509.load_pem_x509_certificate(made)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(certificates.token_authority("token")))
    with pytest.raises(Exception):
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(certificates.token_authority("other")))
    assert b"PRIVATE KEY" in key


def test_a_replaced_token_is_refused_at_once_but_to_the_known() -> None:
    access = Access("first")
    challenge = b"c" * 32
    former = access.proof(challenge)
    access.replace_token("second")
    assert access.accepts("second") and not access.accepts("first") and not access.accepts("")
    assert access.accepts_known("first") and not access.accepts_known("zeroth")
    assert access.is_proven(access.proof(challenge), challenge)
    assert not access.is_proven(former, challenge), "nobody is known without certificates"


def test_a_vouch_is_for_one_nonce_one_ca_and_one_token() -> None:
    ca, other = Authority.create().certificate, Authority.create().certificate
    made = vouch("token", b"n" * 32, ca)
    assert made == vouch("token", b"n" * 32, ca)
    others = {vouch("other", b"n" * 32, ca), vouch("token", b"m" * 32, ca), vouch("token", b"n" * 32, other)}
    assert len({made, *others}) == 4
