"""Join strings: one word that says where a cluster is, how to know it, and that one may come in.

::

    mr1_ + base62( flags | SHA-256 of the cluster's CA, if it has one | token | host:port | checksum )

Letters and digits only, so that a double click takes all of it. The checksum finds a word that was
not copied whole; it protects nothing. Whoever has the string can run code on the cluster: it is
handed on like a password, and `miniray token rotate` makes it worthless. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "mr1_"
FINGERPRINT_BYTES = 32
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CHECKSUM_BYTES = 4
_MARK, _HAS_FINGERPRINT, _HEX_TOKEN = 0x80, 1, 2  # the mark keeps the first byte from being zero


@dataclass(frozen=True)
class JoinString:
    """What a join string says."""

    address: str
    """HOST:PORT of the head."""
    token: str
    fingerprint: bytes = b""
    """SHA-256 of the cluster's CA certificate; b"": connections are not encrypted."""

    def __str__(self) -> str:
        flags, token = _MARK, self.token.encode()
        if len(token) == 64 and _is_hex(self.token):
            flags, token = flags | _HEX_TOKEN, bytes.fromhex(self.token)
        else:
            token = len(token).to_bytes(2, "big") + token
        if self.fingerprint:
            flags |= _HAS_FINGERPRINT
        body = bytes((flags,)) + self.fingerprint + token + self.address.encode()
        return PREFIX + _to_text(body + _checksum(body))


def looks_like_one(text: str) -> bool:
    """True for what cannot be an address."""
    return text.startswith("mr") and "_" in text[:6] and ":" not in text and "/" not in text


def parse(text: str) -> JoinString:
    """ValueError says what is wrong with it."""
    text = text.strip()
    if not text.startswith(PREFIX):
        if looks_like_one(text):
            raise ValueError(f"a join string that begins with {text[:4]!r} is of another version of miniray")
        raise ValueError(f"a join string begins with {PREFIX!r}; this one with {text[:4]!r}")
    data = _to_bytes(text[len(PREFIX) :])
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not body or checksum != _checksum(body):
        raise ValueError("the join string is not complete, or was changed: copy all of it")
    try:
        return _unpack(body)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"the join string has no address and token in it: {error}") from None


def _unpack(body: bytes) -> JoinString:
    flags, at = body[0], 1
    fingerprint = b""
    if flags & _HAS_FINGERPRINT:
        fingerprint, at = body[at : at + FINGERPRINT_BYTES], at + FINGERPRINT_BYTES
    if flags & _HEX_TOKEN:
        token, at = body[at : at + 32].hex(), at + 32
    else:
        end = at + 2 + int.from_bytes(body[at : at + 2], "big")
        token, at = body[at + 2 : end].decode(), end
    return JoinString(body[at:].decode(), token, fingerprint)


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)


def _checksum(body: bytes) -> bytes:
    import hashlib  # which loads OpenSSL: `init` knows this module without needing it

    return hashlib.sha256(b"miniray join string" + body).digest()[:_CHECKSUM_BYTES]


def _to_text(data: bytes) -> str:
    number, digits = int.from_bytes(data, "big"), []
    while number:
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _to_bytes(text: str) -> bytes:
    number = 0
    for character in text[:4096]:
        digit = _DIGITS.find(character)
        if digit < 0:
            raise ValueError(f"a join string has letters and digits only, not {character!r}")
        number = number * 62 + digit
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
