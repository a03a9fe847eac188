"""One contract for both kinds of channel: order, size, back-pressure, quiet sends, the end."""

from __future__ import annotations

import fcntl
import math
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from miniray import _native
from miniray.core.circuit import WINDOW_BYTES
from miniray.runtime.connections import WorkerConnection
from miniray.runtime.transport import RING_BYTES, Channel, CircuitChannel, RingChannel
from tests.native.support import Child, client

HERE = (b"h" * 28, b"1" * 28)
THERE = (b"t" * 28, b"2" * 28)


class Pair(Protocol):
    """Two workers with a channel; each end sends and receives."""

    left: Channel
    right: Channel

    def turn(self) -> None:
        """Both workers end their turn, and learn of room."""

    def arrived(self, side: str) -> list[bytes]:
        """What has come to that side since the last call."""

    def close(self) -> None:
        """Free everything."""


class Rings:
    """Two clients of one store."""

    def __init__(self) -> None:
        self._node = _native.Store.create(1 << 20)
        self._stores = [_native.Store.attach(self._node.fd, self._node.open_client()) for _ in range(2)]
        self.mailboxes = {"left": _native.Mailbox(self._stores[0]), "right": _native.Mailbox(self._stores[1])}
        native = self.mailboxes["left"].create_channel("left", RING_BYTES)
        self.left: Channel = RingChannel(native)
        self.right: Channel = RingChannel(self.mailboxes["right"].attach_channel("right", native.fd))
        self._inbox: dict[str, list[bytes]] = {"left": [], "right": []}

    def turn(self) -> None:
        self.left.flush()
        self.right.flush()

    def arrived(self, side: str) -> list[bytes]:
        quiet_rounds = 0
        while quiet_rounds < 2:
            quiet_rounds += 1
            for name, mailbox in self.mailboxes.items():
                for owner, frame in mailbox.poll():
                    assert owner == name
                    quiet_rounds = 0
                    if frame is None:
                        getattr(self, name).flush()
                    else:
                        self._inbox[name].append(frame)
        out, self._inbox[side] = self._inbox[side], []
        return out

    def close(self) -> None:
        for mailbox in self.mailboxes.values():
            mailbox.close()
        for store in (*self._stores, self._node):
            store.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


def unread(connection: WorkerConnection) -> int:
    """Bytes that the other end's kernel has not confirmed."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection.number, termios.TIOCOUTQ, bytes(4)))
    return int(count)


class Relays:
    """Two workers of different nodes, and a double of the raylets between them, which hands batches on."""

    def __init__(self) -> None:
        self._turn: list[Any] = []
        self.inbox: dict[str, list[bytes]] = {"left": [], "right": []}
        self.relayed: dict[str, list[bytes]] = {"left": [], "right": []}
        self.wanted = 0
        self.left: CircuitChannel = self._channel("right")
        self.right: CircuitChannel = self._channel("left")

    def _channel(self, other: str) -> CircuitChannel:
        return CircuitChannel(self.relayed[other].append, self._connect, self._turn, -math.inf)

    def _connect(self) -> None:
        self.wanted += 1

    def turn(self) -> None:
        turn, self._turn[:] = list(self._turn), []
        for channel in turn:
            channel.flush()

    def arrived(self, side: str) -> list[bytes]:
        self.turn()
        while any(self.relayed.values()) or self.carry():
            for name, channel in (("left", self.left), ("right", self.right)):
                batches, self.relayed[name][:] = list(self.relayed[name]), []
                for batch in batches:
                    self.unpack(name, channel, batch)
        got, self.inbox[side] = self.inbox[side], []
        return got

    def carry(self) -> bool:
        """Read the connections; whether anything came."""
        return False

    def unpack(self, name: str, channel: CircuitChannel, batch: bytes) -> None:
        if not channel.closed:
            channel.unpack(batch, self.inbox[name])
            channel.acknowledge()

    def close(self) -> None:
        self.left.close()
        self.right.close()


class Connections(Relays):
    """The same with a connection, which may `break_`."""

    def __init__(self) -> None:
        super().__init__()
        self._poll = select.epoll()
        self.ends: list[tuple[str, CircuitChannel, WorkerConnection]] = []
        self.connect()

    def connect(self) -> None:
        left, right = tcp_pair()
        for name, channel, sock in (("left", self.left, left), ("right", self.right, right)):
            connection = WorkerConnection(HERE, sock.detach(), self._poll)
            self._poll.register(connection.number, select.EPOLLIN)
            self.ends.append((name, channel, connection))
            channel.connected(connection)

    def carry(self) -> bool:
        for _, _, connection in self.ends:
            connection.writable()
        under_way = any(unread(connection) for _, _, connection in self.ends)
        came = any(events & select.EPOLLIN for _, events in self._poll.poll(0.1 if under_way else 0))
        for end in list(self.ends):
            name, channel, connection = end
            batches, ended = connection.read()
            for batch in batches:
                self.unpack(name, channel, batch)
            if ended:
                self.ends.remove(end)
                self._poll.unregister(connection.number)
                connection.release()
                channel.disconnected(connection)
        return came or under_way

    def break_(self) -> None:
        """The wire is cut with whatever is on it."""
        for name, channel, connection in self.ends:
            self._poll.unregister(connection.number)
            connection.release()
        ends, self.ends = self.ends, []
        for name, channel, connection in ends:
            channel.disconnected(connection)

    def close(self) -> None:
        super().close()
        for _, _, connection in self.ends:
            connection.release()
        self._poll.close()


@pytest.fixture(params=[Rings, Relays, Connections], ids=["ring", "relay", "connection"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = request.param()
    yield made
    made.close()


def numbered(count: int, size: int = 40) -> list[bytes]:
    """Frames that tell their place in the sequence."""
    return [b"%08d" % n * (size // 8) for n in range(count)]


# ---- the contract, for every kind


def test_frames_arrive_whole_and_in_order(pair: Pair) -> None:
    sent = [b"x", *numbered(100), bytes(range(256)) * 20, b"y"]
    for frame in sent:
        pair.left.send(frame)
    pair.turn()
    assert pair.arrived("right") == sent
    assert pair.arrived("left") == []


def test_both_directions_are_independent(pair: Pair) -> None:
    for frame in numbered(50):
        pair.left.send(b"l" + frame)
        pair.right.send(b"r" + frame)
    pair.turn()
    assert pair.arrived("right") == [b"l" + frame for frame in numbered(50)]
    assert pair.arrived("left") == [b"r" + frame for frame in numbered(50)]


@pytest.mark.parametrize("size", [RING_BYTES // 4, RING_BYTES // 4 + 1, RING_BYTES, 5_000_000])
def test_a_frame_of_any_size_keeps_its_place(pair: Pair, size: int) -> None:
    large = os.urandom(size)
    for frame in (b"before", large, b"after"):
        pair.left.send(frame)
    pair.turn()
    assert pair.arrived("right") == [b"before", large, b"after"]


def test_a_sender_never_blocks_and_nothing_is_lost_while_the_receiver_sleeps(pair: Pair) -> None:
    sent = numbered(3000, 400)      # twenty times what a ring holds
    for frame in sent:
        pair.left.send(frame)
    pair.turn()
    got = pair.arrived("right")
    while len(got) < len(sent):
        more = pair.arrived("right")
        assert more, "the rest comes without another send"
        got += more
    assert got == sent
    assert pair.left.backlog == 0


def test_what_is_sent_during_a_backlog_queues_behind_it(pair: Pair) -> None:
    first, second = numbered(500, 800), numbered(500, 16)
    for frame in first:
        pair.left.send(frame)
    pair.turn()
    got = pair.arrived("right")
    for frame in second:
        pair.left.send(frame)
    pair.turn()
    while len(got) < 1000:
        got += pair.arrived("right")
    assert got == first + second


def test_quiet_frames_keep_their_place_and_leave_with_a_flush(pair: Pair) -> None:
    pair.left.send(b"loud")
    pair.left.send(b"quiet 1", True)
    pair.left.send(b"quiet 2", True)
    pair.left.flush()
    assert pair.arrived("right") == [b"loud", b"quiet 1", b"quiet 2"]


def test_a_flush_with_nothing_to_send_sends_nothing(pair: Pair) -> None:
    pair.left.flush()
    pair.turn()
    assert pair.arrived("right") == []


def test_after_close_nothing_leaves_and_nothing_raises(pair: Pair) -> None:
    pair.left.send(b"last")
    pair.turn()
    pair.left.close()
    pair.left.send(b"too late")
    pair.left.send(os.urandom(RING_BYTES))
    pair.left.flush()
    pair.turn()
    assert pair.arrived("right") == [b"last"]
    pair.left.close()


def test_a_peer_that_closed_swallows_what_is_sent(pair: Pair) -> None:
    """The machine learns of a death from the raylet; until then sending is harmless."""
    pair.right.close()
    for frame in (*numbered(2000, 400), os.urandom(RING_BYTES)):
        pair.left.send(frame)
    pair.turn()
    assert pair.arrived("left") == []


# ---- what only one kind has


def test_a_ring_holds_back_what_the_peer_has_no_room_for() -> None:
    rings = Rings()
    for frame in numbered(1000, 400):
        rings.left.send(frame)
    assert 0 < rings.left.backlog < 1000
    assert rings.left.backlog + len(rings.mailboxes["right"].poll(10_000)) == 1000
    assert ("left", None) in rings.mailboxes["left"].poll(), "the sender is told of the room"
    rings.left.flush()
    assert rings.left.backlog < 1000 - 2 * RING_BYTES // 416, "another ringful has left"
    rings.close()


def test_quiet_frames_do_not_wake_a_sleeper() -> None:
    rings = Rings()
    mailbox = rings.mailboxes["right"]
    rings.left.send(b"hello")
    assert mailbox.wait(5.0, 0) and mailbox.poll() == [("right", b"hello")]
    rings.left.send(b"psst", True)
    assert not mailbox.wait(0.02, 0), "published, not told"
    rings.left.flush()
    assert mailbox.wait(5.0, 0) and mailbox.poll() == [("right", b"psst")]
    rings.close()


def test_frames_of_one_turn_travel_as_one_batch() -> None:
    relays = Relays()
    for frame in numbered(1000):
        relays.left.send(frame)
    assert not relays.relayed["right"]
    relays.turn()
    assert len(relays.relayed["right"]) == 1 and relays.arrived("right") == numbered(1000)


def test_a_batch_has_a_bounded_size() -> None:
    relays = Relays()
    for frame in numbered(40, 20_000):
        relays.left.send(frame)
    relays.turn()
    assert all(len(batch) < CircuitChannel.BATCH_BYTES + 21_000 for batch in relays.relayed["right"])
    assert relays.arrived("right") == numbered(40, 20_000)


def test_no_more_than_the_window_is_under_way_to_a_worker_that_does_not_read() -> None:
    relays = Relays()
    sent = numbered(1000, 8000)
    for frame in sent:
        relays.left.send(frame)
    relays.turn()
    under_way = sum(map(len, relays.relayed["right"]))
    assert under_way <= WINDOW_BYTES + CircuitChannel.BATCH_BYTES + 8100
    assert relays.left.backlog > 10, "the rest waits in its sender"
    assert relays.arrived("right") == sent and relays.left.backlog == 0


def test_what_is_held_stays_with_its_sender_until_it_is_released() -> None:
    relays = Relays()
    relays.left.hold(True)
    for frame in numbered(100):
        relays.left.send(frame)
    relays.turn()
    assert not relays.relayed["right"] and relays.left.backlog
    relays.left.hold(False)
    assert relays.arrived("right") == numbered(100) and not relays.left.backlog


def test_a_connection_is_asked_for_by_who_speaks_first() -> None:
    relays = Relays()
    relays.left.send(b"hello")
    relays.turn()
    assert relays.wanted == 1
    relays.left.send(b"again")
    relays.turn()
    assert relays.wanted == 1, "it takes a while"
    answering = CircuitChannel(relays.relayed["left"].append, relays._connect, [], time.monotonic())
    answering.send(b"answer")
    answering.flush()
    assert relays.wanted == 1


def test_the_way_over_the_raylets_and_a_connection_are_one_channel() -> None:
    pair = Connections()
    sent = numbered(400)
    for number, frame in enumerate(sent):
        pair.left.send(frame)
        pair.right.send(frame)
        pair.turn()
        if number % 50 == 10:
            pair.break_()
        if number % 50 == 30:
            pair.connect()
        if number % 7 == 0:
            pair.carry()
    assert pair.arrived("right") == sent and pair.arrived("left") == sent
    pair.close()


def test_over_a_connection_nothing_is_relayed_and_nothing_is_held() -> None:
    pair = Connections()
    pair.left.hold(True)
    for frame in numbered(1000, 4000):
        pair.left.send(frame)
    pair.turn()
    assert not pair.relayed["right"]
    assert pair.arrived("right") == numbered(1000, 4000)
    pair.close()


def test_a_quiet_frame_is_out_of_the_process_and_wakes_nobody() -> None:
    """What a worker replied must be there when its next task kills it."""
    pair = Connections()
    pair.left.send(b"psst", True)
    (_, left, mine), (_, _, theirs) = pair.ends
    mine.release()  # as the death of its process does
    got: list[bytes] = []
    while not (news := theirs.read())[1]:
        got += news[0]
    for batch in (*got, *news[0]):
        pair.right.unpack(batch, pair.inbox["right"])
    assert pair.inbox["right"] == [b"psst"]
    assert left.backlog == 0
    theirs.release()
    pair.ends.clear()
    pair.close()


def test_a_peer_that_sends_nonsense_loses_its_connection() -> None:
    pair = Connections()
    far, near = tcp_pair()
    near.setblocking(True)
    far.sendall(b"\xff\xff\xff\xff and more")
    near.recv(1, socket.MSG_PEEK)  # it is here
    connection = WorkerConnection(THERE, near.detach(), pair._poll)
    assert connection.read() == ([], True)
    connection.release()
    far.close()
    pair.close()


def test_a_burst_is_gathered_and_a_lone_call_is_not() -> None:
    pair = Relays()
    pair.left.send(b"first")
    assert not pair.left.gathers(), "nothing has left for a long time"
    pair.left._written_at = math.inf  # just now, however slow this machine is
    assert pair.left.gathers()
    pair.left.send(bytes(CircuitChannel.GATHER_BYTES))
    assert not pair.left.gathers(), "enough for a batch"


def echo(peer: socket.socket, store: _native.Store, ring: int) -> None:
    """Another process: send back what comes, until an empty line says it is enough."""
    mailbox = _native.Mailbox(store)
    channel = RingChannel(mailbox.attach_channel("parent", ring))
    while True:
        mailbox.wait(20.0, 0)
        for _, frame in mailbox.poll():
            if frame == b"enough":
                while channel.backlog:
                    mailbox.wait(1.0, 0)
                    mailbox.poll()
                    channel.flush()
                return
            if frame is None:
                channel.flush()
            else:
                channel.send(frame)


def test_two_processes_exchange_more_than_the_ring_holds() -> None:
    """Each side's backlog drains while it reads: full rings in both directions do not lock up."""
    node = _native.Store.create(1 << 20)
    here = _native.Store.attach(node.fd, node.open_client())
    mailbox = _native.Mailbox(here)
    native = mailbox.create_channel("child", RING_BYTES)
    child, _ = client(node, echo, native.fd)
    channel = RingChannel(native)
    sent = [os.urandom(size) for size in (10, 200_000, 5000, 16_384, 70_000) * 40]
    for frame in sent:
        channel.send(frame)
    got: list[bytes] = []
    while len(got) < len(sent):
        assert mailbox.wait(20.0, 0), f"{len(got)} of {len(sent)} frames came back"
        for _, frame in mailbox.poll():
            if frame is None:
                channel.flush()
            else:
                got.append(frame)
    assert got == sent
    channel.send(b"enough")
    assert child.join() == 0
    mailbox.close()
    here.close()
    node.close()


def test_what_a_killed_process_had_sent_is_still_read() -> None:
    node = _native.Store.create(1 << 20)
    here = _native.Store.attach(node.fd, node.open_client())
    mailbox = _native.Mailbox(here)
    native = mailbox.create_channel("child", RING_BYTES)

    def send_and_hang(peer: socket.socket, store: _native.Store) -> None:
        theirs = _native.Mailbox(store)
        ring = RingChannel(theirs.attach_channel("parent", native.fd))
        for frame in numbered(10):
            ring.send(frame, True)      # published, and dies before it rings the bell
        peer.sendall(b"k")
        peer.recv(1)

    child: Child
    child, _ = client(node, send_and_hang)
    child.hear()
    child.kill()
    assert mailbox.poll() == []
    native.look()
    assert mailbox.poll() == [("child", frame) for frame in numbered(10)]
    RingChannel(native).send(b"to nobody")
    mailbox.close()
    here.close()
    node.close()
