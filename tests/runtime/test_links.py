"""Link ends over in-memory streams: reconnects lose nothing, the local peer may die or restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.core.link import STREAM, Link, LinkOptions
from miniray.runtime import links
from miniray.runtime.links import Dialler, LinkEnd, LinkEvents, PeerEvents, PeerLinks, StreamEnded


class Pipe:
    """One end of an in-memory stream."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.other: Pipe = self

    async def read(self) -> Any:
        packet = await self.inbox.get()
        if packet is None:
            self.inbox.put_nowait(None)
            raise StreamEnded("cut")
        return packet

    async def write(self, packet: Any) -> None:
        self.other.inbox.put_nowait(packet)

    def cancel(self) -> None:
        self.inbox.put_nowait(None)
        self.other.inbox.put_nowait(None)


def pipe() -> tuple[Pipe, Pipe]:
    a, b = Pipe(), Pipe()
    a.other, b.other = b, a
    return a, b


def beat(number: int) -> gcs.NodeMessage:
    return gcs.NodeMessage(heartbeat=gcs.Heartbeat(version=number))


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "condition never became true"
        await asyncio.sleep(0.005)


class Server:
    """The GCS side in miniature: one link end that streams are attached to."""

    def __init__(self, incarnation: int) -> None:
        self.got: list[int] = []
        events = LinkEvents(lambda m: self.got.append(m.heartbeat.version))
        self.end = LinkEnd(Link(incarnation, gcs.Packet, STREAM, connected=False), events)
        self.streams: list[Pipe] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def dial(self) -> Pipe:
        ours, theirs = pipe()
        self.streams.append(ours)
        self.tasks.append(asyncio.create_task(self._serve(ours)))
        return theirs

    async def _serve(self, stream: Pipe) -> None:
        with pytest.raises(StreamEnded):
            await self.end.serve(stream)


async def test_messages_flow_both_ways_and_survive_broken_streams() -> None:
    server = Server(5)
    got: list[int] = []
    downs: list[str] = []
    events = LinkEvents(
        lambda m: got.append(m.heartbeat.version), on_down=lambda why, seconds: downs.append(why.detail)
    )
    end = LinkEnd(Link(1, gcs.Packet, STREAM, connected=False), events)
    dialler = Dialler(end, server.dial, events)
    for number in range(50):
        dialler.send(beat(number))
        server.end.send(beat(1000 + number))
        if number in (10, 30):
            await until(lambda: end.is_up)
            server.streams[-1].cancel()
        await asyncio.sleep(0.002)
    await until(lambda: len(server.got) == 50 and len(got) == 50)
    assert server.got == list(range(50)) and got == list(range(1000, 1050))
    assert len(server.streams) == 3 and downs == ["cut", "cut"]
    dialler.close()


async def test_a_new_incarnation_of_the_server_is_reported() -> None:
    servers = [Server(5)]
    resets: list[tuple[int, list[Any]]] = []
    events = LinkEvents(lambda m: None, on_reset=lambda inc, rest: resets.append((inc, rest)))
    end = LinkEnd(Link(1, gcs.Packet, STREAM, connected=False), events)

    async def dial() -> Pipe:
        return await servers[-1].dial()

    dialler = Dialler(end, dial, events)
    dialler.send(beat(1))
    await until(lambda: servers[0].got == [1])
    servers.append(Server(6))
    servers[0].streams[-1].cancel()
    await until(lambda: bool(resets))
    assert resets[0][0] == 6
    dialler.send(beat(2))
    await until(lambda: servers[1].got == [2])
    dialler.close()


async def test_a_refused_connection_is_reported_with_its_duration() -> None:
    downs: list[tuple[bool, float]] = []
    events = LinkEvents(lambda m: None, on_down=lambda why, seconds: downs.append((why.refused, seconds)))

    async def dial() -> Pipe:
        raise StreamEnded("nobody listens", refused=True)

    end = LinkEnd(Link(1, gcs.Packet, STREAM, connected=False), events)
    dialler = Dialler(end, dial, events)
    await until(lambda: len(downs) >= 3)
    assert all(refused for refused, _ in downs) and downs[2][1] > downs[1][1] >= 0.1
    dialler.close()


class DeafPipe(Pipe):
    """Takes packets and answers nothing; after a while it takes no more."""

    taken = 0

    async def write(self, packet: Any) -> None:
        self.taken += 1
        if self.taken > 2:
            await asyncio.sleep(3600)


async def test_a_peer_that_falls_silent_is_left_and_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, or behind a cable that was pulled: the connection alone would last for hours."""
    monkeypatch.setattr(links, "SILENT_S", 0.2)
    server = Server(5)
    deaf = DeafPipe()
    downs: list[str] = []
    events = LinkEvents(lambda m: None, on_down=lambda why, seconds: downs.append(why.detail))
    end = LinkEnd(Link(1, gcs.Packet, LinkOptions(resend_s=0.05), connected=False), events)

    async def dial() -> Pipe:
        return await server.dial() if downs else deaf

    dialler = Dialler(end, dial, events)
    dialler.send(beat(1))
    await until(lambda: server.got == [1])
    assert downs == ["the peer was silent for 0 s"] and deaf.taken == 3
    dialler.close()


async def test_a_bug_in_a_callback_does_not_end_the_link(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(5)
    got: list[int] = []

    def receive(message: gcs.NodeMessage) -> None:
        got.append(message.heartbeat.version)
        if len(got) == 1:
            raise KeyError("bug")

    events = LinkEvents(receive)
    end = LinkEnd(Link(1, gcs.Packet, STREAM, connected=False), events)
    dialler = Dialler(end, server.dial, events)
    server.end.send(beat(1))
    server.end.send(beat(2))
    await until(lambda: got == [1, 2])
    assert "could not be handled" in caplog.text
    dialler.close()


class Raylets:
    """Some raylets that can dial one another over pipes."""

    def __init__(self, *ids: bytes) -> None:
        self.got: dict[bytes, list[tuple[bytes, bytes]]] = {i: [] for i in ids}
        self.pipes: list[Pipe] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.links: dict[bytes, PeerLinks] = {}
        for i in ids:
            dial, events = self._dialler(i), self._events(i)
            self.links[i] = PeerLinks(1, raylet.PeerPacket, lambda n: n.decode(), dial, events)

    def close(self) -> None:
        for one in self.links.values():
            one.close()

    def _events(self, me: bytes) -> PeerEvents:
        return PeerEvents(lambda peer, m: self.got[me].append((peer, m.relay.frames)))

    def _dialler(self, me: bytes) -> Any:
        async def dial(address: str, node_id: bytes) -> Pipe:
            ours, theirs = pipe()
            self.pipes.append(ours)

            async def serve() -> None:
                with pytest.raises(StreamEnded):
                    await self.links[address.encode()].serve(me, theirs)

            self.tasks.append(asyncio.create_task(serve()))
            return ours

        return dial


def relay(frames: bytes) -> raylet.PeerMessage:
    return raylet.PeerMessage(relay={"frames": frames})


async def test_one_raylet_dials_and_both_use_the_stream() -> None:
    raylets = Raylets(b"a", b"b")
    raylets.links[b"a"].send(b"b", relay(b"1"))
    await until(lambda: raylets.got[b"b"] == [(b"a", b"1")])
    raylets.links[b"b"].send(b"a", relay(b"2"))
    await until(lambda: raylets.got[b"a"] == [(b"b", b"2")])
    assert len(raylets.pipes) == 1
    raylets.close()


async def test_two_raylets_that_dial_at_once_lose_and_repeat_nothing() -> None:
    raylets = Raylets(b"a", b"b")
    for number in range(20):
        raylets.links[b"a"].send(b"b", relay(b"%d" % number))
        raylets.links[b"b"].send(b"a", relay(b"%d" % number))
        if number == 10:
            await until(lambda: len(raylets.got[b"a"]) == 11)
            raylets.pipes[0].cancel()
    await until(lambda: len(raylets.got[b"a"]) == 20 and len(raylets.got[b"b"]) == 20)
    await asyncio.sleep(0.05)
    assert raylets.got[b"a"] == [(b"b", b"%d" % n) for n in range(20)]
    assert raylets.got[b"b"] == [(b"a", b"%d" % n) for n in range(20)]
    raylets.close()


async def test_a_forgotten_peer_gets_a_new_pair_when_it_is_met_again() -> None:
    raylets = Raylets(b"a", b"b")
    raylets.links[b"a"].send(b"b", relay(b"1"))
    await until(lambda: len(raylets.got[b"b"]) == 1)
    raylets.links[b"a"].forget(b"b")
    assert raylets.links[b"a"].backlog_bytes(b"b") == 0
    raylets.links[b"a"].send(b"b", relay(b"2"))
    await until(lambda: len(raylets.got[b"b"]) == 2)
    assert raylets.got[b"b"][1] == (b"a", b"2")
    raylets.close()
