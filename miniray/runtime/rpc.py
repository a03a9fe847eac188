"""The one place that knows gRPC: channels, the token, streams, errors; `rpc_server` is the answering half.

::

    dial_head, dial_raylet ──▶ Stream (for links.Dialler, links.PeerLinks)
    head_link              ──▶ a raylet's HeadLink over gRPC
    call_head, handshake   ──▶ one request, one reply: the command line
    fetch                  ──▶ the chunks of one object from another raylet

Every call carries `authorization: Bearer <token>`, and where the `Access` has an identity all of it is
mutual TLS. Addresses are "host:port". `GRPC_ENABLE_FORK_SUPPORT=0` is set before gRPC is imported: user
code forks beside our streams, and children of a process with an idle stream die or hang without it, none
with it.
Services are registered by name (no generated stubs), messages are the ones of protos/. All of it runs
on the event loop's thread.
"""

from __future__ import annotations

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else every connection that ends is a line on stderr

import asyncio
import hmac
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc as grpc  # for `rpc_server` too: after the two settings above
import grpc.aio

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.core.link import STREAM, Link
from miniray.runtime import call_headers, versions
from miniray.runtime.access import HEAD_NAME, Access, NotAdmitted, node_name, vouch
from miniray.runtime.links import Dialler, LinkEnd, LinkEvents, Stream, StreamEnded
from miniray.runtime.resending import resend_soon_to

if TYPE_CHECKING:
    pass

OURS = versions.ours(versions.DAEMONS)
OPENED_WITHIN_S = 15.0
"""A peer that has said neither yes nor no to a stream by then is not there."""
STATUS_WITHIN_S = 1.0
"""How long a stream that has broken is asked for its reason."""

MAX_MESSAGE_BYTES = 512 << 20
FETCH_S = 600.0
"""An object over gRPC has come within this."""

GCS = "miniray.v1.Gcs"
RAYLET = "miniray.v1.Raylet"

MESSAGE_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

CHANNEL_OPTIONS = [
    *MESSAGE_OPTIONS,
    ("grpc.enable_http_proxy", 0),  # http_proxy breaks even loopback
    ("grpc.use_local_subchannel_pool", 1),  # else channels share one connection
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # in truth: how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
]

NODE_HEADER = "miniray-node"
VERSION_HEADER = "miniray-version"
ACCEPTED = ("miniray-stream", "accepted")
"""The first thing that the accepting side of a stream says, in its initial metadata."""


class RpcError(Exception):
    """A call failed; the message names the address and says what to do."""


class PortInUse(RpcError):
    """The port is taken; the message names its holder where that can be found out."""


# ---- channels and streams ------------------------------------------------------------------


def _channel(address: str, access: Access, name: str = HEAD_NAME) -> grpc.aio.Channel:
    """To whoever has a certificate of this cluster for `name`."""
    identity = access.identity
    if identity is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    options: list[tuple[str, Any]] = list(CHANNEL_OPTIONS)
    if not identity.by_host:
        options.append(("grpc.ssl_target_name_override", name))
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _credentials(token: str, node_id: bytes = b"") -> tuple[tuple[str, str], ...]:
    """Of a node, whose values must be understood; without an id of a command, which has none."""
    authorization = ("authorization", f"Bearer {token}")
    if node_id:
        return (authorization, (NODE_HEADER, node_id.hex()), (VERSION_HEADER, str(OURS)))
    return (authorization, (VERSION_HEADER, str(OURS.protocol)))


class _ClientStream:
    """The dialling side of a stream; owns its channel."""

    def __init__(self, channel: grpc.aio.Channel, call: Any, address: str) -> None:
        self._channel = channel
        self._call = call
        self._address = address

    async def opened(self) -> _ClientStream:
        """Wait until the peer has accepted the stream. StreamEnded says why it did not.

        Nothing is written before: of a stream that was refused while something is written gRPC
        forgets the reason.
        """
        try:
            told = await asyncio.wait_for(self._call.initial_metadata(), OPENED_WITHIN_S)
            if ACCEPTED in tuple(told or ()):
                resend_soon_to(self._address)
                return self
            raise await self._cut()
        except asyncio.TimeoutError:
            self._call.cancel()
            await self._channel.close()
            raise StreamEnded(f"{self._address} did not answer in {OPENED_WITHIN_S:.0f} s") from None
        except asyncio.CancelledError:
            self._call.cancel()
            await self._channel.close()
            raise

    async def read(self) -> Any:
        """See `Stream`."""
        try:
            packet = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise await self._ended(error) from None
        except asyncio.CancelledError:
            if self._call.cancelled():
                raise await self._ended(None) from None
            raise
        if packet is grpc.aio.EOF:
            raise await self._ended(None)
        return packet

    async def write(self, packet: Any) -> None:
        """See `Stream`."""
        try:
            await self._call.write(packet)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            raise await self._cut() from None

    def cancel(self) -> None:
        """See `Stream`."""
        self._call.cancel()

    async def _cut(self) -> StreamEnded:
        """The stream was found at its end, and only the call may know why."""
        try:
            code = await asyncio.wait_for(self._call.code(), STATUS_WITHIN_S)
            details = await self._call.details()
        except asyncio.TimeoutError:
            code, details = grpc.StatusCode.INTERNAL, ""
        if code in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL):
            await self._channel.close()
            return StreamEnded(f"the stream to {self._address} broke")
        nothing = grpc.aio.Metadata()
        return await self._ended(grpc.aio.AioRpcError(code, nothing, nothing, details=details))

    async def _ended(self, error: grpc.aio.AioRpcError | None) -> StreamEnded:
        await self._channel.close()
        return _stream_ended(error, self._address)


def _stream_ended(error: grpc.aio.AioRpcError | None, address: str) -> StreamEnded:
    if error is None:
        return StreamEnded(f"{address} closed the stream")
    final = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION)
    return StreamEnded(explain(error, address), refused=_is_refused(error), final=final)


def _is_refused(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "refused" in details.lower()


def explain(error: grpc.aio.AioRpcError, address: str) -> str:
    """A gRPC error as one sentence for people."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return f"{address} does not accept this cluster token: use the one of `miniray start --head`"
    if _is_refused(error):
        return f"nothing listens at {address}: connection refused"
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return f"{address} does not work with this miniray: {details}"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"{address} cannot be reached: {details}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{address} did not answer in time"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"what listens at {address} is not this version of miniray: {details}"
    return f"{address}: {code.name}: {details}"


async def _open_stream(
    address: str, channel: grpc.aio.Channel, method: str, packet: Any, access: Access, node_id: bytes
) -> Stream:
    try:
        access.demand_own(address)
    except OSError as error:
        raise StreamEnded(str(error)) from None
    connect = channel.stream_stream(
        method, request_serializer=packet.SerializeToString, response_deserializer=packet.FromString
    )
    stream = _ClientStream(channel, connect(metadata=_credentials(access.token, node_id)), address)
    return await stream.opened()


async def dial_head(address: str, token: str | Access, node_id: bytes) -> Stream:
    """A raylet's stream to the GCS, after the handshake. StreamEnded, final for a refusal."""
    access = Access.of(token)
    try:
        answer = await handshake(address, access)
    except grpc.aio.AioRpcError as error:
        raise _stream_ended(error, address) from None
    if not answer.accepted:
        raise StreamEnded(answer.refusal, final=True)
    return await _open_stream(
        address, _channel(address, access), f"/{GCS}/Connect", gcs.Packet, access, node_id)


async def dial_tunnel(address: str, token: str | Access, node_id: bytes) -> Stream:
    """A stream for one connection through the head's port; see `tunnel`. StreamEnded."""
    access = Access.of(token)
    return await _open_stream(
        address, _channel(address, access), f"/{GCS}/Tunnel", gcs.TunnelFrame, access, node_id)


async def dial_raylet(address: str, token: str | Access, node_id: bytes, peer: bytes = b"") -> Stream:
    """A raylet's stream to the one of node `peer`; `node_id` is the dialler's own. StreamEnded."""
    access = Access.of(token)
    channel = _channel(address, access, node_name(peer))
    return await _open_stream(address, channel, f"/{RAYLET}/Connect", raylet.PeerPacket, access, node_id)


def head_link(
    address: str, token: str | Access, node_id: bytes, incarnation: int, events: LinkEvents
) -> Dialler:
    """A raylet's `HeadLink` over gRPC: keeps dialling until closed or refused for good.

    `incarnation` must grow with every start of a raylet under one node id (1 if ids are new).
    """
    end = LinkEnd(Link(incarnation, gcs.Packet, STREAM, connected=False), events)
    return Dialler(end, lambda: dial_head(address, token, node_id), events)


# ---- single calls --------------------------------------------------------------------------


async def handshake(
    address: str, token: str | Access = "", nonce: bytes = b"", timeout_s: float = 5.0
) -> gcs.HandshakeReply:
    """Versions of both sides; sends no token. An older head looks at the message. grpc.aio.AioRpcError."""
    request = gcs.HandshakeRequest(
        protocol_version=OURS.protocol, python_version=OURS.python, nonce=nonce)
    async with _channel(address, Access.of(token)) as channel:
        method = channel.unary_unary(
            f"/{GCS}/Handshake",
            request_serializer=gcs.HandshakeRequest.SerializeToString,
            response_deserializer=gcs.HandshakeReply.FromString,
        )
        metadata = call_headers.of_handshake(request)
        reply: gcs.HandshakeReply = await method(request, metadata=metadata, timeout=timeout_s)
        return reply


async def demand_proof(address: str, access: Access) -> None:
    """NotAdmitted unless the head knows the token and vouches for the CA in `access`."""
    assert access.identity is not None
    nonce = os.urandom(32)
    try:
        reply = await handshake(address, access, nonce)
    except grpc.aio.AioRpcError as error:
        raise NotAdmitted(explain(error, address)) from None
    if not hmac.compare_digest(reply.vouch, vouch(access.token, nonce, access.identity.ca)):
        raise NotAdmitted(
            f"what listens at {address} does not know this cluster token: it is another cluster's head, or "
            "somebody between it and this machine. Join with the head's join string"
        )


async def _call(
    address: str, token: str | Access, method: str, request: Any, reply_type: Any, timeout_s: float
) -> Any:
    """One request to the GCS, one answer. RpcError."""
    access = await _access(address, token)
    async with _channel(address, access) as channel:
        ask = channel.unary_unary(
            f"/{GCS}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply_type.FromString,
        )
        try:
            return await ask(request, metadata=_credentials(access.token), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise RpcError(explain(error, address)) from None


async def _access(address: str, token: str | Access) -> Access:
    """Whatever it takes to speak to the cluster at `address`; of a bare token, too."""
    from miniray.runtime import admission

    try:
        access = token if isinstance(token, Access) else await admission.admit(address, token)
        access.demand_own(address)
        return access
    except OSError as error:
        raise RpcError(str(error)) from None


async def call_head(
    address: str, token: str | Access, request: gcs.ControlRequest, timeout_s: float = 30.0
) -> gcs.ControlReply:
    """One request to the GCS. RpcError when it cannot be reached or refuses the token."""
    reply: gcs.ControlReply = await _call(address, token, "Call", request, gcs.ControlReply, timeout_s)
    return reply


async def certify(
    address: str, access: Access, request: gcs.CertifyRequest, timeout_s: float = 30.0
) -> gcs.CertifyReply:
    """Have a daemon's certificate signed. RpcError."""
    reply: gcs.CertifyReply = await _call(address, access, "Certify", request, gcs.CertifyReply, timeout_s)
    return reply


async def rotate_token(address: str, token: str | Access, timeout_s: float = 30.0) -> gcs.RotateTokenReply:
    """Give the cluster another token. RpcError."""
    request = gcs.RotateTokenRequest()
    reply: gcs.RotateTokenReply = await _call(
        address, token, "RotateToken", request, gcs.RotateTokenReply, timeout_s)
    return reply


async def fetch(
    address: str, token: str | Access, node_id: bytes, request: raylet.FetchRequest, peer: bytes = b""
) -> AsyncIterator[raylet.Chunk]:
    """The chunks of an object from the raylet of node `peer`, for node `node_id`. ConnectionError."""
    access = Access.of(token)
    access.demand_own(address)
    async with _channel(address, access, node_name(peer)) as channel:
        method = channel.unary_stream(
            f"/{RAYLET}/Fetch",
            request_serializer=raylet.FetchRequest.SerializeToString,
            response_deserializer=raylet.Chunk.FromString,
        )
        try:
            async for chunk in method(request, metadata=_credentials(access.token, node_id), timeout=FETCH_S):
                yield chunk
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(explain(error, address)) from None
