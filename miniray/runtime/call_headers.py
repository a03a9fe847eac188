"""What gRPC calls carry beside their messages, and whether a call may be looked at by that alone.

Metadata is read first, and its size is limited by the server; that of a message is not before it has been
read. So a stranger's handshake travels here, too: of who has not shown the token no message is read.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from miniray._proto import gcs_pb2 as gcs
from miniray.runtime.access import Access

_HANDSHAKE = "miniray-handshake-bin"
_LAST_BY_MESSAGE = 3
"""The last protocol that sent its handshake as a message."""


def of_handshake(request: gcs.HandshakeRequest) -> tuple[tuple[str, bytes], ...]:
    """The metadata with it."""
    return ((_HANDSHAKE, request.SerializeToString()),)


def handshake_in(metadata: Any) -> gcs.HandshakeRequest:
    """What a stranger says of himself; that he is old if that is nothing, or no message."""
    try:
        return gcs.HandshakeRequest.FromString(dict(metadata)[_HANDSHAKE])
    except (DecodeError, TypeError, KeyError):
        return gcs.HandshakeRequest(protocol_version=_LAST_BY_MESSAGE)


def token_in(metadata: Any) -> str:
    """The token that a call brings, "" if it brings none."""
    word, _, token = str(dict(metadata or ()).get("authorization", "")).partition(" ")
    return token if word == "Bearer" else ""


def has_token(access: Access, service: str, method: str, metadata: Any) -> bool:
    """Whether a call brings the token, compared in constant time.

    Who shows a node's certificate, which the handlers look at, may bring the token's predecessor for a
    while: as a node to the head (`service`), whose other methods are for everybody, and to raylets.
    """
    identity = access.identity
    known = identity is not None and not method.startswith(f"/{service}/")
    known = known or (identity is not None and method == f"/{service}/Connect" and not identity.by_host)
    return (access.accepts_known if known else access.accepts)(token_in(metadata))
