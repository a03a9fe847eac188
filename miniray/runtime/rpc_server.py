"""The serving half of gRPC (see `rpc`): what the head's port and a raylet's port answer, and whom.

Every method but `Gcs.Handshake` needs `authorization: Bearer <token>`, compared in constant time by one
interceptor before anything else is looked at. The handshake's request is metadata, whose size is limited:
of a stranger no message is read. Where the `Access` has an identity, all of it is mutual TLS: a server
answers nobody without a certificate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.core.ids import NODE_ID_SIZE
from miniray.runtime import call_headers, versions
from miniray.runtime.access import Access, node_name
from miniray.runtime.doorkeeper import Doorkeeper
from miniray.runtime.host import endpoint, holder_of
from miniray.runtime.links import PeerLinks, StreamEnded
from miniray.runtime.resending import resend_soon_from
from miniray.runtime.rpc import (
    ACCEPTED,
    GCS,
    MESSAGE_OPTIONS,
    NODE_HEADER,
    OURS,
    RAYLET,
    VERSION_HEADER,
    PortInUse,
    RpcError,
    grpc,
)

if TYPE_CHECKING:
    from miniray.runtime.gcs import GcsShell  # a raylet has no use for it
    from miniray.runtime.head_security import HeadSecurity

CALL_S = 120.0
"""The GCS answers a single call within this, or not at all."""

SERVER_OPTIONS = [
    *MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),  # else a second head binds the same port and steals half the calls
    ("grpc.server_handshake_timeout_ms", 10_000),  # TLS, and the first words of HTTP/2
    ("grpc.max_connection_idle_ms", 300_000),  # without a stream or a call; see also `doorkeeper`
    ("grpc.max_concurrent_streams", 4096),  # of one connection
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: what arrives is not larger than what was sent
]


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
        theirs = versions.Versions.parse(str(metadata.get(VERSION_HEADER, "0")))
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
    text = str(dict(context.invocation_metadata() or ()).get(NODE_HEADER, ""))
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
    resend_soon_from(bound)
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
        await context.send_initial_metadata((ACCEPTED,))
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
        await context.send_initial_metadata((ACCEPTED,))
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
        await context.send_initial_metadata((ACCEPTED,))
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
