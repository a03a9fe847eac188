"""The one place that knows gRPC: channels, servers, the token, streams, errors.

::

    dial_head, dial_raylet ──▶ Stream (for links.Dialler, links.PeerLinks)
    head_link              ──▶ a raylet's HeadLink over gRPC
    serve_gcs, serve_raylet──▶ Server (port, stop)
    call_head, handshake   ──▶ one request, one reply: the command line
    fetch                  ──▶ the chunks of one object from another raylet

Every method but `Gcs.Handshake` needs `authorization: Bearer <token>`, compared in constant time by one
interceptor before anything else is looked at. The handshake's request is metadata, whose size is limited:
of a stranger no message is read. Where the `Access` has an identity, all of it is mutual TLS: a server
answers nobody without a certificate. Addresses are "host:port". `GRPC_ENABLE_FORK_SUPPORT=0` is set
before gRPC is imported: user code forks beside our streams, and children of a process with an idle stream
die or hang without it, none with it.
Services are registered by name (no generated stubs), messages are the ones of protos/. All of it runs
on the event loop's thread.
"""

from __future__ import annotations

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else every connection that ends is a line on stderr

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.core.ids import NODE_ID_SIZE
from miniray.core.link import STREAM, Link
from miniray.runtime import call_headers, versions
from miniray.runtime.access import HEAD_NAME, Access, NotAdmitted, node_name, vouch
from miniray.runtime.doorkeeper import Doorkeeper
from miniray.runtime.host import endpoint, holder_of
from miniray.runtime.links import Dialler, LinkEnd, LinkEvents, PeerLinks, Stream, StreamEnded

if TYPE_CHECKING:
    from miniray.runtime.gcs import GcsShell  # a raylet has no use for it
    from miniray.runtime.head_security import HeadSecurity

OURS = versions.ours(versions.DAEMONS)
OPENED_WITHIN_S = 15.0
"""A peer that has said neither yes nor no to a stream by then is not there."""
STATUS_WITHIN_S = 1.0
"""How long a stream that has broken is asked for its reason."""

MAX_MESSAGE_BYTES = 512 << 20
CALL_S = 120.0
"""The GCS answers a single call within this, or not at all."""
FETCH_S = 600.0
"""An object over gRPC has come within this."""

GCS = "miniray.v1.Gcs"
RAYLET = "miniray.v1.Raylet"

_MESSAGE_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

SERVER_OPTIONS = [
    *_MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),  # else a second head binds the same port and steals half the calls
    ("grpc.server_handshake_timeout_ms", 10_000),  # TLS, and the first words of HTTP/2
    ("grpc.max_connection_idle_ms", 300_000),  # without a stream or a call; see also `doorkeeper`
    ("grpc.max_concurrent_streams", 4096),  # of one connection
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: what arrives is not larger than what was sent
]

CHANNEL_OPTIONS = [
    *_MESSAGE_OPTIONS,
    ("grpc.enable_http_proxy", 0),  # http_proxy breaks even loopback
    ("grpc.use_local_subchannel_pool", 1),  # else channels share one connection
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # in truth: how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
]

_NODE_HEADER = "miniray-node"
_VERSION_HEADER = "miniray-version"
_ACCEPTED = ("miniray-stream", "accepted")
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
        return (authorization, (_NODE_HEADER, node_id.hex()), (_VERSION_HEADER, str(OURS)))
    return (authorization, (_VERSION_HEADER, str(OURS.protocol)))


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
            if _ACCEPTED in tuple(told or ()):
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


# ---- servers -------------------------------------------------------------------------------


class _TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call without the token, or of another version, before its first message is read."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        handler = await continuation(details)
        if handler is None or details.method == f"/{GCS}/Handshake":
            return handler
        metadata = dict(details.invocation_metadata or ())
        if not call_headers.has_token(self._access, GCS, details.method, metadata):
            return _refusing(grpc.StatusCode.UNAUTHENTICATED, "the cluster token is missing or wrong")
        theirs = versions.Versions.parse(str(metadata.get(_VERSION_HEADER, "0")))
        unfit = OURS.refusal(theirs, "it", "this process")
        return _refusing(grpc.StatusCode.FAILED_PRECONDITION, unfit) if unfit else handler


def _refusing(code: grpc.StatusCode, why: str) -> Any:
    """For calls of every kind: as a stream's handler it answers without reading what was sent."""

    async def refuse(_: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(code, why)
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)


def _server_credentials(access: Access) -> Any:
    """Mutual TLS with the identity of the moment: each handshake asks whether it has changed."""
    identity = access.identity
    assert identity is not None
    state = [-1]

    def configuration() -> Any:
        state[0] = identity.generation
        return grpc.ssl_server_certificate_configuration(
            [(identity.key, identity.certificate)], identity.clients)

    def fetch_if_new() -> Any:
        return configuration() if state[0] != identity.generation else None

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch_if_new, True)


class _ServerStream:
    """The accepting side of a stream, for the time of its handler."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._peer = context.peer()
        self._handler = asyncio.current_task()

    async def read(self) -> Any:
        """See `Stream`."""
        try:
            packet = await self._context.read()
        except (grpc.aio.UsageError, grpc.aio.InternalError, grpc.aio.AioRpcError) as error:
            raise StreamEnded(f"the stream of {self._peer} is broken: {error}") from None
        if packet is grpc.aio.EOF:
            raise StreamEnded(f"{self._peer} closed the stream")
        return packet

    async def write(self, packet: Any) -> None:
        """See `Stream`."""
        try:
            await self._context.write(packet)
        except (grpc.aio.UsageError, grpc.aio.InternalError, grpc.aio.AioRpcError) as error:
            raise StreamEnded(f"the stream of {self._peer} is broken: {error}") from None

    def cancel(self) -> None:
        """See `Stream`."""
        if self._handler is not None:
            self._handler.cancel()


async def _peer_id(context: Any, access: Access) -> bytes:
    """The node id in the metadata; aborts a call without one, or with that of another certificate."""
    text = str(dict(context.invocation_metadata() or ()).get(_NODE_HEADER, ""))
    try:
        node_id = bytes.fromhex(text)
    except ValueError:
        node_id = b""
    if len(node_id) != NODE_ID_SIZE:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream must name its node")
    if access.identity is not None and not access.identity.by_host:
        names = context.auth_context().get("x509_common_name", ())
        if node_name(node_id).encode() not in names:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, "the certificate is not that of the node it speaks for")
    return node_id


class Server:
    """A running gRPC server."""

    def __init__(self, server: grpc.aio.Server, port: int, streams: _Streams) -> None:
        self._server = server
        self._streams = streams
        self._watching = asyncio.get_running_loop().create_task(streams.door.watch(port))
        self.port = port

    async def stop(self, grace_s: float = 0.2) -> None:
        """Close the port and end every stream; other calls have `grace_s` to finish."""
        self._watching.cancel()
        await self._streams.end()
        await self._server.stop(grace_s)


class _Streams:
    """The handlers of open streams: ended by us before the server stops, so that gRPC, which
    prints a trace for each handler that it has to cancel, finds none."""

    def __init__(self) -> None:
        self._handlers: dict[asyncio.Task[Any], None] = {}
        self.door = Doorkeeper()

    async def run(self, serving: Awaitable[None], context: Any) -> None:
        """One handler's work. Its end is no error, nor is the end of a peer."""
        self.door.admits(context)
        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = None
        try:
            await serving
        except (StreamEnded, asyncio.CancelledError):
            pass
        finally:
            del self._handlers[task]

    async def end(self) -> None:
        """End all of them."""
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        if handlers:
            await asyncio.wait(handlers, timeout=1.0)


async def _start(
    host: str, port: int, access: Access, service: str, methods: dict[str, Any], streams: _Streams
) -> Server:
    assert access.token, "a server without a token"
    server = grpc.aio.server(interceptors=[_TokenCheck(access)], options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    where = endpoint(host, port)
    try:
        if access.identity is None:
            bound = server.add_insecure_port(where)
        else:
            bound = server.add_secure_port(where, _server_credentials(access))
    except RuntimeError as error:
        holder = holder_of(port)
        if holder:
            raise PortInUse(f"port {port} is taken by {holder}: choose another one with --port") from None
        raise RpcError(f"cannot listen on {where}: {error}") from None
    await server.start()
    return Server(server, bound, streams)


async def serve_gcs(
    shell: GcsShell, host: str, port: int, token: str | Access, version: str = "",
    security: HeadSecurity | None = None, advertise: str = "",
) -> Server:
    """The GCS's port. PortInUse, RpcError."""
    from miniray.runtime.tunnel import HeadTunnels  # a raylet has no use for it

    streams = _Streams()
    access = Access.of(token)

    async def shake(_: Any, context: Any) -> AsyncIterator[gcs.HandshakeReply]:
        request = call_headers.handshake_in(context.invocation_metadata())
        theirs = versions.Versions(request.protocol_version, request.python_version)
        refusal = OURS.refusal(theirs, "the head", "this node")
        yield gcs.HandshakeReply(
            accepted=not refusal,
            refusal=refusal,
            protocol_version=OURS.protocol,
            miniray_version=version,
            vouch=security.vouch(request.nonce) if security is not None else b"",
        )

    async def connect(_: Any, context: Any) -> None:
        node_id = await _peer_id(context, access)
        given = call_headers.token_in(context.invocation_metadata())
        if not (access.accepts(given) or shell.has_node(node_id)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster token was replaced")
        await context.send_initial_metadata((_ACCEPTED,))
        await streams.run(shell.serve(node_id, _ServerStream(context)), context)

    async def call(request: gcs.ControlRequest, context: Any) -> gcs.ControlReply:
        streams.door.admits(context)
        try:
            return await asyncio.wait_for(shell.call(request), CALL_S)
        except asyncio.TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {CALL_S:.0f} s")
            raise

    tunnels = HeadTunnels(host, advertise or host, shell.has_port)

    async def tunnel(_: Any, context: Any) -> None:
        await context.send_initial_metadata((_ACCEPTED,))
        await streams.run(tunnels.serve(_ServerStream(context)), context)

    methods = {
        "Handshake": grpc.stream_stream_rpc_method_handler(
            shake, None, gcs.HandshakeReply.SerializeToString),
        "Connect": grpc.stream_stream_rpc_method_handler(
            connect, gcs.Packet.FromString, gcs.Packet.SerializeToString
        ),
        "Tunnel": grpc.stream_stream_rpc_method_handler(
            tunnel, gcs.TunnelFrame.FromString, gcs.TunnelFrame.SerializeToString
        ),
        "Call": _unary(call, gcs.ControlRequest),
    }
    if security is not None:
        methods["Certify"] = _unary(security.certify, gcs.CertifyRequest)
        methods["RotateToken"] = _unary(security.rotate, gcs.RotateTokenRequest)
    return await _start(host, port, access, GCS, methods, streams)


def _unary(method: Callable[[Any, Any], Awaitable[Any]], request_type: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        method, request_type.FromString, lambda reply: reply.SerializeToString())


async def serve_raylet(
    host: str,
    port: int,
    token: str | Access,
    peers: PeerLinks,
    chunks: Callable[[raylet.FetchRequest, bytes], AsyncIterator[raylet.Chunk]],
) -> Server:
    """A raylet's port: streams of other raylets, and object bytes. PortInUse, RpcError.

    `chunks(request, reader)` yields an object's bytes for node `reader`.
    """
    streams = _Streams()
    access = Access.of(token)

    async def connect(_: Any, context: Any) -> None:
        node_id = await _peer_id(context, access)
        await context.send_initial_metadata((_ACCEPTED,))
        await streams.run(peers.serve(node_id, _ServerStream(context)), context)

    async def send_chunks(request: raylet.FetchRequest, context: Any) -> AsyncIterator[raylet.Chunk]:
        streams.door.admits(context)
        reader = await _peer_id(context, access)
        async for chunk in chunks(request, reader):
            yield chunk

    methods = {
        "Connect": grpc.stream_stream_rpc_method_handler(
            connect, raylet.PeerPacket.FromString, raylet.PeerPacket.SerializeToString
        ),
        "Fetch": grpc.unary_stream_rpc_method_handler(
            send_chunks, raylet.FetchRequest.FromString, raylet.Chunk.SerializeToString
        ),
    }
    return await _start(host, port, access, RAYLET, methods, streams)
