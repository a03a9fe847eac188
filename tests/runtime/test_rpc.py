"""gRPC in one place: tokens, versions, ports, streams that break, and forks beside them."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.runtime import call_headers, rpc, rpc_server, versions
from miniray.runtime.gcs import GcsShell
from miniray.runtime.links import LinkEvents, PeerEvents, PeerLinks, Stream, StreamEnded
from miniray.runtime.storage import MemoryStorage, MemoryTables

TOKEN = "secret"
A, B = b"a" * 28, b"b" * 28
NO_EVENTS = PeerEvents(lambda peer, message: None)


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "condition never became true"
        await asyncio.sleep(0.01)


async def no_chunks(request: raylet.FetchRequest, reader: bytes) -> AsyncIterator[raylet.Chunk]:
    """Of a raylet that has no objects."""
    return
    yield


class Gcs:
    """A GCS on a free port that can be killed and started again on the same storage and port."""

    def __init__(self) -> None:
        self.tables = MemoryTables()
        self.port = 0

    async def start(self) -> Gcs:
        self.shell = GcsShell.open(MemoryStorage(self.tables))
        self.server = await rpc_server.serve_gcs(self.shell, "127.0.0.1", self.port, TOKEN, "1.2.3")
        self.port = self.server.port
        self.address = f"127.0.0.1:{self.port}"
        return self

    async def stop(self) -> None:
        self.shell.close()
        await self.server.stop()


@pytest.fixture
async def head() -> AsyncIterator[Gcs]:
    one = await Gcs().start()
    yield one
    await one.stop()


class Node:
    """A raylet's end of the link to the GCS."""

    def __init__(self, address: str, node_id: bytes = A, token: str = TOKEN) -> None:
        self.node_id = node_id
        self.got: list[gcs.NodeMessage] = []
        self.resets: list[int] = []
        self.downs: list[tuple[StreamEnded, float]] = []
        events = LinkEvents(
            self.got.append,
            on_reset=lambda incarnation, rest: self.resets.append(incarnation),
            on_down=lambda why, seconds: self.downs.append((why, seconds)),
        )
        self.link = rpc.head_link(address, token, node_id, 1, events)

    def register(self) -> None:
        info = pb.NodeInfo(node_id=self.node_id)
        self.link.send(gcs.NodeMessage(register=gcs.NodeRegister(info=info)))

    def kinds(self) -> list[str]:
        return [str(message.WhichOneof("body")) for message in self.got]


async def test_a_raylet_registers_over_its_stream(head: Gcs) -> None:
    node = Node(head.address)
    node.register()
    await until(lambda: node.kinds() == ["registered", "view"])
    assert node.got[0].registered.accepted and node.got[0].registered.epoch == 1
    node.link.close()


async def test_a_wrong_token_is_refused_for_good_and_reveals_nothing(head: Gcs) -> None:
    node = Node(head.address, token="wrong")
    node.register()
    await until(lambda: bool(node.downs))
    await asyncio.sleep(0.3)
    assert len(node.downs) == 1 and node.downs[0][0].final and not node.got
    assert "does not accept this cluster token" in node.downs[0][0].detail
    for token in ("", "wrong", TOKEN + "x"):
        with pytest.raises(rpc.RpcError, match="token"):
            await rpc.call_head(head.address, token, gcs.ControlRequest(status=gcs.StatusQuery()))
    assert not head.shell.head.members.living


async def test_every_refused_stream_says_why_though_something_is_written_at_once(head: Gcs) -> None:
    """A write that meets the refusal must not be what is told instead."""
    peers = await rpc_server.serve_raylet(
        "127.0.0.1", 0, TOKEN, PeerLinks(1, raylet.PeerPacket, lambda _: None, rpc.dial_raylet, NO_EVENTS),
        no_chunks)

    async def write_first(dial: Awaitable[Stream], packet: Any) -> None:
        stream = await dial
        for _ in range(3):
            await stream.write(packet)
            await asyncio.sleep(0)

    for _ in range(25):
        for dial, packet in (
            (rpc.dial_head(head.address, "wrong", A), gcs.Packet()),
            (rpc.dial_tunnel(head.address, "wrong", A), gcs.TunnelFrame()),
            (rpc.dial_raylet(f"127.0.0.1:{peers.port}", "wrong", A), raylet.PeerPacket()),
        ):
            with pytest.raises(StreamEnded, match="does not accept this cluster token") as refusal:
                await write_first(dial, packet)
            assert refusal.value.final
    with pytest.raises(StreamEnded, match="a stream must name its node"):
        await rpc.dial_raylet(f"127.0.0.1:{peers.port}", TOKEN, b"")
    await peers.stop()


async def test_who_listens_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "OPENED_WITHIN_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StreamEnded, match="did not answer in"):
            await rpc.dial_tunnel(f"127.0.0.1:{silent.getsockname()[1]}", TOKEN, A)


@pytest.mark.slow
async def test_a_head_far_away_is_reached(head: Gcs) -> None:
    """300 ms each way: every stream begins with a connection, which takes its time."""

    running: set[asyncio.Task[None]] = set()

    async def delayed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            asyncio.get_running_loop().call_later(0.3, writer.write, data)
        await asyncio.sleep(0.3)
        writer.close()

    def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def both() -> None:
            there, back = await asyncio.open_connection("127.0.0.1", head.port)
            await asyncio.gather(delayed(reader, back), delayed(there, writer))

        running.add(asyncio.ensure_future(both()))

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as far:
        node = Node(f"127.0.0.1:{far.sockets[0].getsockname()[1]}")
        node.register()
        await until(lambda: "registered" in node.kinds(), 30.0)
        node.link.close()
        await asyncio.wait(running, timeout=10.0)
    await asyncio.sleep(0)  # the transports close in the turn after


async def test_the_handshake_needs_no_token_and_tells_versions_only(head: Gcs) -> None:
    reply = await rpc.handshake(head.address)
    assert reply == gcs.HandshakeReply(
        accepted=True, protocol_version=rpc.OURS.protocol, miniray_version="1.2.3")


OLD, SNAKE = versions.Versions(1, rpc.OURS.python), versions.Versions(rpc.OURS.protocol, "2.7")


@pytest.mark.parametrize(("theirs", "named"), [
    (OLD, f"speaks protocol {rpc.OURS.protocol}, .* speaks protocol 1: install the same miniray"),
    (SNAKE, f"runs Python {rpc.OURS.python}, .* runs Python 2.7: values could not be exchanged"),
])
async def test_other_versions_are_refused_at_every_door(
    head: Gcs, monkeypatch: pytest.MonkeyPatch, theirs: versions.Versions, named: str
) -> None:
    """Both sides run here: what a client says of itself is doctored on its way out."""
    peers = await rpc_server.serve_raylet(
        "127.0.0.1", 0, TOKEN, PeerLinks(1, raylet.PeerPacket, lambda _: None, rpc.dial_raylet, NO_EVENTS),
        no_chunks)
    shown = rpc.VERSION_HEADER, str(theirs)

    def doctored(token: str, node_id: bytes = b"") -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token}"), (rpc.NODE_HEADER, node_id.hex()), shown)

    monkeypatch.setattr(rpc, "_credentials", doctored)
    for dial in (
        rpc.dial_head(head.address, TOKEN, A),
        rpc.dial_tunnel(head.address, TOKEN, A),
        rpc.dial_raylet(f"127.0.0.1:{peers.port}", TOKEN, A, B),
    ):
        with pytest.raises(StreamEnded, match=named) as refusal:
            await dial
        assert refusal.value.final
    with pytest.raises(rpc.RpcError, match=named):
        await rpc.call_head(head.address, TOKEN, gcs.ControlRequest(status=gcs.StatusQuery()))
    with pytest.raises(rpc.RpcError, match="token"):
        await rpc.call_head(head.address, "wrong", gcs.ControlRequest(status=gcs.StatusQuery()))
    request = gcs.HandshakeRequest(protocol_version=theirs.protocol, python_version=theirs.python)
    async with rpc.grpc.aio.insecure_channel(head.address) as channel:
        method = channel.unary_unary(
            f"/{rpc.GCS}/Handshake",
            request_serializer=gcs.HandshakeRequest.SerializeToString,
            response_deserializer=gcs.HandshakeReply.FromString,
        )
        reply = await method(request, metadata=call_headers.of_handshake(request))
        old = await method(request)
    assert not reply.accepted and re.search(named, reply.refusal)
    assert "this node speaks protocol 3: install the same" in old.refusal, "it sent its versions as a message"
    await peers.stop()


def test_versions_that_nobody_has_are_refused() -> None:
    for text in ("x", "99999999999999 3.11", "-1", "²"):
        assert "install the same miniray" in rpc.OURS.refusal(versions.Versions.parse(text), "it", "this")
    assert not rpc.OURS.refusal(versions.Versions.parse(str(rpc.OURS)), "it", "this")
    assert not rpc.OURS.refusal(versions.Versions.parse(str(rpc.OURS.protocol)), "it", "a command")


async def test_single_calls_answer(head: Gcs) -> None:
    put = gcs.ControlRequest(kv_put=gcs.KvPut(key=b"k", value=b"v"))
    assert (await rpc.call_head(head.address, TOKEN, put)).kv.added
    get = gcs.ControlRequest(request_id=7, kv_get=gcs.KvGet(key=b"k"))
    reply = await rpc.call_head(head.address, TOKEN, get)
    assert reply.kv.value == b"v" and reply.request_id == 7


async def test_a_dead_address_is_named_and_known_to_refuse() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(rpc.RpcError, match=f"nothing listens at 127.0.0.1:{port}"):
        await rpc.call_head(f"127.0.0.1:{port}", TOKEN, gcs.ControlRequest())
    node = Node(f"127.0.0.1:{port}")
    await until(lambda: len(node.downs) >= 2)
    assert all(why.refused and not why.final for why, _ in node.downs)
    node.link.close()


async def test_a_taken_port_names_its_holder(head: Gcs) -> None:
    with pytest.raises(rpc.PortInUse, match=rf"port {head.port} is taken by .*pid {os.getpid()}"):
        await rpc_server.serve_gcs(head.shell, "127.0.0.1", head.port, TOKEN)


async def test_messages_survive_a_restart_of_the_head_and_the_reset_is_told() -> None:
    head = await Gcs().start()
    node = Node(head.address)
    node.register()
    await until(lambda: "registered" in node.kinds())
    await head.stop()
    await until(lambda: bool(node.downs))
    await head.start()
    await until(lambda: bool(node.resets))
    node.got.clear()
    node.register()
    await until(lambda: "registered" in node.kinds())
    assert node.got[0].registered.epoch == 2
    node.link.close()
    await head.stop()


async def test_raylets_talk_and_fetch_from_one_another() -> None:
    got: dict[bytes, list[tuple[bytes, bytes]]] = {A: [], B: []}
    addresses: dict[bytes, str] = {}

    async def chunks(request: raylet.FetchRequest, reader: bytes) -> AsyncIterator[raylet.Chunk]:
        for part in (b"12", b"34"):
            yield raylet.Chunk(total_size=4, data=part, owner=reader)

    def links(me: bytes) -> PeerLinks:
        events = PeerEvents(lambda peer, message: got[me].append((peer, message.relay.frames)))
        return PeerLinks(
            1, raylet.PeerPacket, addresses.get,
            lambda address, peer: rpc.dial_raylet(address, TOKEN, me), events,
        )

    peers = {node: links(node) for node in (A, B)}
    servers = {}
    for node in (A, B):
        servers[node] = await rpc_server.serve_raylet("127.0.0.1", 0, TOKEN, peers[node], chunks)
        addresses[node] = f"127.0.0.1:{servers[node].port}"
    peers[A].send(B, raylet.PeerMessage(relay={"frames": b"x" * 5_000_000}))
    peers[B].send(A, raylet.PeerMessage(relay={"frames": b"y"}))
    await until(lambda: bool(got[A] and got[B]))
    assert got[A] == [(B, b"y")] and got[B] == [(A, b"x" * 5_000_000)]
    read = [c async for c in rpc.fetch(addresses[B], TOKEN, A, raylet.FetchRequest(object_id=b"o"))]
    assert [c.data for c in read] == [b"12", b"34"] and read[0].owner == A
    with pytest.raises(ConnectionError, match="token"):
        _ = [c async for c in rpc.fetch(addresses[B], "wrong", A, raylet.FetchRequest())]
    for node in (A, B):
        peers[node].close()
        await servers[node].stop()


async def test_forks_beside_a_live_stream_are_harmless(head: Gcs) -> None:
    """User code forks: with gRPC's own fork support such children die or hang."""
    node = Node(head.address)
    node.register()
    await until(lambda: "registered" in node.kinds())
    for _ in range(50):
        child = os.fork()
        if child == 0:
            os._exit(0)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - the child ends at once
        assert status == 0
    node.register()
    await until(lambda: node.kinds().count("registered") == 2)
    node.link.close()
