"""Mailbox and Channel: frames between processes, room, sleep, close, death."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from miniray._native import Channel, Mailbox, Store
from tests.native.support import Child, eventually, oid, payload


class Pair:
    """Both ends of a channel in one process, each with a mailbox (and client record) of its own."""

    def __init__(self, capacity: int = 4096) -> None:
        self.store = Store.create(1 << 20)
        self.other = Store.attach(self.store.fd, self.store.open_client())
        self.a_box, self.b_box = Mailbox(self.store), Mailbox(self.other)
        self.a: Channel[str] = self.a_box.create_channel("b", capacity)
        self.b: Channel[str] = self.b_box.attach_channel("a", self.a.fd)
        assert self.b_box.poll() == []  # attaching counts as news


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.fixture
def peer_process(store: Store) -> Iterator[Callable[..., tuple[Mailbox, Channel[Any], Child]]]:
    """Starts a child with its end of a new channel: function(socket, mailbox, channel, *args)."""
    mailbox = Mailbox(store)

    def start(function: Callable[..., None], *args: Any, capacity: int = 4096) -> Any:
        slot = store.open_client()
        channel: Channel[str] = mailbox.create_channel("child", capacity)
        store_fd, channel_fd = store.fd, channel.fd

        def run(peer: socket.socket) -> None:
            box = Mailbox(Store.attach(store_fd, slot))
            function(peer, box, box.attach_channel("parent", channel_fd), *args)

        return mailbox, channel, Child(run)

    yield start
    mailbox.close()


def receive(mailbox: Mailbox, count: int, spin_us: int = 0) -> list[bytes]:
    """The next `count` messages of a mailbox with one channel."""
    messages: list[bytes] = []
    while len(messages) < count:
        assert mailbox.wait(20, spin_us), f"only {len(messages)} of {count} messages came"
        messages += [message for _, message in mailbox.poll() if message is not None]
    return messages


def stream(
    mailbox: Mailbox, channel: Channel[Any], outgoing: deque[bytes], expected: int, spin_us: int = 0
) -> list[bytes]:
    """Sends all of `outgoing` and receives `expected` messages, as an owner's loop does."""
    incoming: list[bytes] = []
    room = True
    while outgoing or len(incoming) < expected:
        while outgoing and room:
            if room := channel.send(outgoing[0]):
                outgoing.popleft()
        for _, message in mailbox.poll():
            if message is None:
                room = True
            else:
                incoming.append(message)
        if not (outgoing and room) and (outgoing or len(incoming) < expected):
            assert mailbox.wait(20, spin_us), "nothing came"
    return incoming


# ---- frames -------------------------------------------------------------------------------------


def test_frames_arrive_whole_and_in_order(pair: Pair) -> None:
    frames = [b"", b"x", b"12345678", payload(1, 1000), bytearray(b"array"), memoryview(b"view")]
    for frame in frames:
        assert pair.a.send(frame) is True
    assert pair.b_box.poll() == [("a", bytes(frame)) for frame in frames]
    assert pair.b_box.poll() == []
    assert pair.b.send(b"back") and pair.a_box.poll() == [("b", b"back")]


def test_frames_sent_before_the_peer_attaches_wait_for_it(store: Store) -> None:
    other = Store.attach(store.fd, store.open_client())
    mine, theirs = Mailbox(store), Mailbox(other)
    channel = mine.create_channel("peer")
    assert channel.fd >= 0 and not channel.attached
    assert channel.send(b"early")
    end = theirs.attach_channel("creator", channel.fd)
    assert channel.attached and end.attached and end.fd == -1 and channel.fd == -1
    assert theirs.wait(0, 0) and theirs.poll() == [("creator", b"early")]
    mine.close(), theirs.close()


def test_fragments_are_joined(pair: Pair) -> None:
    assert pair.a.send(b"one ", more=True)
    assert pair.b_box.poll() == []
    assert pair.a.send(b"two ", True) and pair.a.send(b"three")
    assert pair.a.send(b"next")
    assert pair.b_box.poll() == [("a", b"one two three"), ("a", b"next")]


def test_a_message_longer_than_the_ring_goes_through_in_fragments(pair: Pair) -> None:
    whole = payload(7, 100_000)
    sent, received = 0, []
    while not received:
        part = whole[sent : sent + pair.a.max_frame]
        if pair.a.send(part, more=sent + len(part) < len(whole)):
            sent += len(part)
        received += [message for _, message in pair.b_box.poll() if message is not None]
    assert received == [whole]


def test_frames_wrap_around_the_ring(pair: Pair) -> None:
    rng = random.Random(0)
    for n in range(3000):
        frame = payload(n, rng.randrange(700))
        assert pair.a.send(frame)
        if n % 5 == 4 or rng.random() < 0.3:
            assert pair.b_box.poll()[-1] == ("a", frame)


def test_a_frame_longer_than_half_the_ring_is_refused(pair: Pair) -> None:
    assert pair.a.max_frame == 2048
    assert pair.a.send(bytes(2048))
    with pytest.raises(ValueError, match=r"2049 bytes .* \(2048 bytes\)"):
        pair.a.send(bytes(2049))
    with pytest.raises(TypeError):
        pair.a.send("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pair.a.send(b"x", mode=1)  # type: ignore[call-arg]
    assert [message for _, message in pair.b_box.poll()] == [bytes(2048)]


def test_capacity_is_rounded_up_to_a_power_of_two(store: Store) -> None:
    mailbox = Mailbox(store)
    assert mailbox.create_channel(None, 1).max_frame == 512
    assert mailbox.create_channel(None, 5000).max_frame == 4096
    assert mailbox.create_channel(None).max_frame == 16384
    with pytest.raises((ValueError, OverflowError)):
        mailbox.create_channel(None, 1 << 31)
    mailbox.close()


def test_send_many_counts_what_was_written(pair: Pair) -> None:
    assert pair.a.send_many([b"a", b"b", b"c"]) == 3
    assert pair.a.send_many([]) == 0
    assert len(pair.b_box.poll()) == 3
    written = pair.a.send_many([bytes(500)] * 20)
    assert 0 < written < 20
    assert len(pair.b_box.poll()) == written
    assert pair.a.send_many([b"ok", bytes(5000), b"never"]) == 1
    with pytest.raises(ValueError, match="5000"):
        pair.a.send_many([bytes(5000), b"never"])


def test_quiet_sends_are_told_by_ring(pair: Pair) -> None:
    assert pair.a.send(b"one", False, True) and pair.a.send(b"two", quiet=True)
    assert pair.b_box.wait(0, 0) is False and pair.b_box.poll() == []
    pair.a.ring()
    assert pair.b_box.wait(0, 0) and pair.b_box.poll() == [("a", b"one"), ("a", b"two")]
    pair.a.send(b"three", quiet=True)
    pair.a.send(b"four")
    assert pair.b_box.poll() == [("a", b"three"), ("a", b"four")]


def test_look_finds_what_a_dead_peer_published(peer_process: Any) -> None:
    def send(peer: socket.socket, box: Mailbox, channel: Channel[Any]) -> None:
        channel.send(b"published", quiet=True)
        peer.send(b".")
        signal.pause()

    mailbox, channel, child = peer_process(send)
    child.hear()
    child.kill()
    assert mailbox.poll() == []
    channel.look()
    assert mailbox.poll() == [("child", b"published")]
    channel.close()
    channel.look()
    channel.ring()


# ---- room ---------------------------------------------------------------------------------------


def test_a_full_ring_refuses_and_later_reports_room(pair: Pair) -> None:
    sent = 0
    while pair.a.send(payload(sent, 100)):
        sent += 1
    assert pair.a.send(payload(sent, 100)) is False and pair.a_box.poll() == []
    received = pair.b_box.poll()
    assert received == [("a", payload(n, 100)) for n in range(sent)]
    assert pair.a_box.wait(5, 0)
    assert pair.a_box.poll() == [("b", None)]
    assert pair.a_box.poll() == []
    assert pair.a.send(payload(0, 100))


def test_room_is_reported_only_when_it_is_worth_it(pair: Pair) -> None:
    while pair.a.send(bytes(100)):
        pass
    pair.b_box.poll(limit=1)
    assert pair.a_box.poll() == []
    pair.b_box.poll(limit=30)
    assert pair.a_box.poll() == [("b", None)]


def test_both_directions_may_be_full_at_once(pair: Pair) -> None:
    for end in (pair.a, pair.b):
        while end.send(bytes(64)):
            pass
    assert all(message == bytes(64) for _, message in pair.a_box.poll())
    got = pair.b_box.poll()
    assert got[0] == ("a", None) and ("a", bytes(64)) in got
    assert pair.a_box.poll() == [("b", None)]


def test_poll_keeps_to_its_limit_and_starves_no_channel(store: Store) -> None:
    other = Store.attach(store.fd, store.open_client())
    mine, theirs = Mailbox(store), Mailbox(other)
    channels = [mine.create_channel(None) for _ in range(130)]
    ends = [theirs.attach_channel(n, channel.fd) for n, channel in enumerate(channels)]
    for channel in channels:
        for n in range(10):
            channel.send(b"%d" % n)
    seen: dict[int, int] = dict.fromkeys(range(130), 0)
    polls = 0
    while sum(seen.values()) < 1300:
        got = theirs.poll(limit=7)
        assert 0 < len(got) <= 7
        polls += 1
        for owner, message in got:
            assert message == b"%d" % seen[owner]
            seen[owner] += 1
    assert theirs.poll() == [] and polls < 300
    busy = channels[0]
    served = set()
    for _ in range(260):
        busy.send_many([b"x"] * 10)
        for channel in channels[1:]:
            channel.send(b"y")
        served |= {owner for owner, _ in theirs.poll(limit=5)}
    assert len(served) == 130, "a busy channel starves the others"
    mine.close(), theirs.close()
    assert all(end.closed for end in ends)


# ---- wait and wake ------------------------------------------------------------------------------


def test_wait_times_out(pair: Pair) -> None:
    for spin_us in (0, 200):
        started = time.monotonic()
        assert pair.a_box.wait(0.02, spin_us) is False
        assert 0.015 < time.monotonic() - started < 5
    assert pair.a_box.wait(0, 0) is False
    assert pair.a_box.wait(0.0001, 1_000_000) is False, "spinning ends at the deadline"


def test_wake_ends_a_wait_now_or_the_next(pair: Pair) -> None:
    pair.a_box.wake()
    assert pair.a_box.wait(20, 0) is True
    assert pair.a_box.wait(0, 0) is False
    for spin_us in (0, 1_000_000):
        threading.Timer(0.02, pair.a_box.wake).start()
        assert pair.a_box.wait(20, spin_us) is True


def test_wait_runs_signal_handlers(pair: Pair) -> None:
    class Interrupt(Exception): ...

    def handler(_signal: int, _frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(Interrupt):
            pair.a_box.wait(None, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_wait_lets_other_threads_run(pair: Pair) -> None:
    counted = 0

    def count() -> None:
        nonlocal counted
        while not pair.a_box_done:  # type: ignore[attr-defined]
            counted += 1

    pair.a_box_done = False  # type: ignore[attr-defined]
    thread = threading.Thread(target=count)
    thread.start()
    pair.a_box.wait(0.05, 0)
    pair.a_box_done = True  # type: ignore[attr-defined]
    thread.join()
    assert counted > 1000


def test_no_wake_up_is_lost_between_sleeping_processes(peer_process: Any) -> None:
    """Ping-pong in which both sides sleep, or spin a little first: a lost wake-up would stop it."""

    def echo(_peer: socket.socket, box: Mailbox, channel: Channel[Any], spin_us: int) -> None:
        for _ in range(4000):
            (message,) = receive(box, 1, spin_us)
            channel.send(message)

    for spin_us in (0, 3, 50):
        mailbox, channel, child = peer_process(echo, spin_us)
        for n in range(4000):
            channel.send(b"%d" % n)
            assert receive(mailbox, 1, spin_us) == [b"%d" % n]
        assert child.join() == 0


def test_streams_in_both_directions_with_little_room(peer_process: Any) -> None:
    count = 20_000

    def answer(_peer: socket.socket, box: Mailbox, channel: Channel[Any]) -> None:
        frames = deque(struct.pack("<I", n) + payload(n, n % 300) for n in range(count))
        got = stream(box, channel, frames, count)
        assert got == [struct.pack("<I", n) + payload(n, n % 200) for n in range(count)]

    mailbox, channel, child = peer_process(answer, capacity=2048)
    frames = deque(struct.pack("<I", n) + payload(n, n % 200) for n in range(count))
    got = stream(mailbox, channel, frames, count)
    assert got == [struct.pack("<I", n) + payload(n, n % 300) for n in range(count)]
    assert child.join() == 0


def test_many_producers_and_one_consumer(peer_process: Any) -> None:
    def produce(_peer: socket.socket, box: Mailbox, channel: Channel[Any], name: int) -> None:
        frames = deque(struct.pack("<II", name, n) for n in range(3000))
        assert stream(box, channel, frames, 1) == [b"thanks"]

    started = [peer_process(produce, name, capacity=1024) for name in range(5)]
    mailbox = started[0][0]
    seen = [0] * 5
    while sum(seen) < 15_000:
        assert mailbox.wait(20, 0)
        for _, message in mailbox.poll():
            name, n = struct.unpack("<II", message)
            assert seen[name] == n
            seen[name] += 1
    for _, channel, child in started:
        channel.send(b"thanks")
        assert child.join() == 0


def test_a_poll_that_spins_returns_what_comes_meanwhile(pair: Pair) -> None:
    assert pair.b_box.poll(512, 1) == []
    sender = threading.Timer(0.02, pair.a.send, (b"late",))
    sender.start()
    assert pair.b_box.poll(512, 20_000_000) == [("a", b"late")]
    sender.join()


def test_a_wake_ends_a_spinning_poll_and_is_still_there_for_wait(pair: Pair) -> None:
    waker = threading.Timer(0.02, pair.b_box.wake)
    waker.start()
    began = time.monotonic()
    assert pair.b_box.poll(512, 60_000_000) == [] and time.monotonic() - began < 30
    waker.join()
    pair.b_box.wait(20, 0)
    assert time.monotonic() - began < 40


def test_poll_takes_a_limit_and_a_spin_and_nothing_else(pair: Pair) -> None:
    pair.a.send_many([b"1", b"2", b"3"])
    assert len(pair.b_box.poll(limit=1)) == 1 and len(pair.b_box.poll(1)) == 1
    for wrong in ({"spin": 1}, {"limit": 1, "spin_us": 1}):
        with pytest.raises(TypeError, match="no other arguments"):
            pair.b_box.poll(**wrong)
    with pytest.raises(TypeError):
        pair.b_box.poll("all")  # type: ignore[arg-type]
    assert len(pair.b_box.poll()) == 1


def test_a_client_has_one_mailbox(store: Store) -> None:
    mailbox = Mailbox(store)
    with pytest.raises(RuntimeError, match="client 0 of the store has a mailbox already"):
        Mailbox(store)
    mailbox.close()
    Mailbox(store).close()


# ---- close and death ----------------------------------------------------------------------------


def test_what_was_sent_before_closing_still_arrives(pair: Pair) -> None:
    pair.a.send(b"last words")
    pair.a.close()
    pair.a.close()
    assert pair.a.closed and pair.b.peer_closed and not pair.b.closed
    assert pair.b_box.wait(5, 0)
    assert pair.b_box.poll() == [("a", b"last words")]
    with pytest.raises(BrokenPipeError, match="peer has closed"):
        pair.b.send(b"x")
    with pytest.raises(BrokenPipeError, match="is closed"):
        pair.a.send(b"x")
    with pytest.raises(BrokenPipeError):
        pair.a.send_many([b"x"])
    assert pair.a_box.poll() == []


def test_close_wakes_a_sleeping_peer(pair: Pair) -> None:
    threading.Timer(0.02, pair.a.close).start()
    assert pair.b_box.wait(20, 0) and pair.b.peer_closed


def test_a_closed_channels_number_is_used_again(store: Store) -> None:
    mailbox = Mailbox(store)
    other = Mailbox(Store.attach(store.fd, store.open_client()))
    for n in range(10_000 if os.environ.get("CI") else 5000):
        channel = mailbox.create_channel(n, 1024)
        end = other.attach_channel(n, channel.fd)
        assert end.send(b"x") and mailbox.poll() == [(n, b"x")]
        (channel if n % 2 else end).close()
        del channel, end
    assert mailbox.poll() == []
    mailbox.close(), other.close()


def test_channels_run_out_by_name(store: Store) -> None:
    mailbox = Mailbox(store)
    limit = 200  # the test's own open files; the module's limit is 4096
    channels = [mailbox.create_channel(None, 1024) for _ in range(limit)]
    assert len({channel.fd for channel in channels}) == limit
    mailbox.close()
    assert all(channel.closed and channel.fd == -1 for channel in channels)
    with pytest.raises(RuntimeError, match="closed"):
        mailbox.create_channel(None)
    for call in (mailbox.poll, mailbox.wake, lambda: mailbox.wait(0, 0)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_channels_in_a_cycle_with_their_owner_are_collected(store: Store) -> None:
    class Owner:
        channel: Channel[Any]

    mailbox = Mailbox(store)
    owner = Owner()
    owner.channel = mailbox.create_channel(owner)
    fd, gone = owner.channel.fd, weakref.ref(owner)
    assert owner.channel.owner is owner
    del owner
    gc.collect()
    assert gone() is None
    with pytest.raises(OSError):
        os.fstat(fd)
    mailbox.close()


def test_attach_refuses_what_is_no_channel(pair: Pair) -> None:
    channel = pair.a_box.create_channel("x")
    plain = os.memfd_create("plain")
    os.ftruncate(plain, 1 << 20)
    for fd in (plain, pair.store.fd):
        with pytest.raises(ValueError, match="not the sealed memfd of a channel"):
            pair.b_box.attach_channel("y", fd)
    with pytest.raises(OSError):
        pair.b_box.attach_channel("y", 1 << 20)
    fd = os.dup(channel.fd)
    pair.b_box.attach_channel("y", fd)
    with pytest.raises(ValueError, match="attached already"):
        pair.b_box.attach_channel("y", fd)
    os.close(fd), os.close(plain)


def test_nonsense_from_the_peer_closes_that_channel_only(pair: Pair) -> None:
    """The peer's memory is written by hand: a length beyond what was published."""
    import mmap

    second = pair.a_box.create_channel("second", 4096)
    fd = os.dup(second.fd)
    second_end = pair.b_box.attach_channel("second", fd)
    memory = mmap.mmap(fd, 0)
    pair.a.send(b"fine")
    second.send(b"12345678")
    memory[4096:4100] = struct.pack("<I", 9)  # its length: one more than was published
    assert pair.b_box.poll() == [("a", b"fine")]
    assert second_end.closed and not pair.b.closed
    pair.a.send(b"still fine")
    assert pair.b_box.poll() == [("a", b"still fine")]
    memory.close()
    os.close(fd)


def test_a_killed_producer_leaves_only_whole_frames(peer_process: Any) -> None:
    def produce(peer: socket.socket, box: Mailbox, channel: Channel[Any]) -> None:
        peer.send(b".")
        n = 0
        while True:
            n += channel.send(struct.pack("<I", n) + payload(n, n % 400))
            box.poll()

    rng = random.Random(3)
    for _ in range(30):
        mailbox, channel, child = peer_process(produce)
        expected = 0

        def drain(limit: int) -> int:
            nonlocal expected
            got = mailbox.poll(limit)
            for _, message in got:
                assert message == struct.pack("<I", expected) + payload(expected, expected % 400)
                expected += 1
            return len(got)

        child.hear()
        until = time.monotonic() + rng.random() * 0.004
        while time.monotonic() < until:
            drain(20)
        child.kill()
        while drain(1000):
            pass
        channel.close()


def test_a_killed_consumer_does_not_stop_its_producer(peer_process: Any) -> None:
    def consume(peer: socket.socket, box: Mailbox, channel: Channel[Any]) -> None:
        receive(box, 10)
        peer.send(b".")
        signal.pause()

    mailbox, channel, child = peer_process(consume)
    channel.send_many([b"x"] * 10)
    child.hear()
    child.kill()
    while channel.send(bytes(100)):
        pass
    assert mailbox.wait(0.01, 0) is False
    channel.close()


# ---- fork ---------------------------------------------------------------------------------------


def test_a_forked_child_neither_sends_nor_closes(pair: Pair) -> None:
    pair.a.send(b"kept")

    def inherit(_peer: socket.socket) -> None:
        wait = lambda: pair.b_box.wait(0, 0)  # noqa: E731
        for call in (lambda: pair.a.send(b"x"), pair.b_box.poll, pair.a_box.wake, wait):
            with pytest.raises(RuntimeError, match="forked"):
                call()
        pair.a.close()
        pair.b_box.close()
        del pair.a, pair.b, pair.a_box, pair.b_box
        gc.collect()

    assert Child(inherit).join() == 0
    assert not pair.b.peer_closed and not pair.a.peer_closed
    assert pair.b_box.poll() == [("a", b"kept")]


def test_a_mailbox_survives_its_python_store(store: Store) -> None:
    other = Store.attach(store.fd, store.open_client())
    mailbox = Mailbox(other)
    end = mailbox.create_channel("x")
    mine = Mailbox(store)
    channel = mine.attach_channel("y", end.fd)
    other.close()
    del other
    channel.send(b"hello")
    assert eventually(mailbox.poll) == [("x", b"hello")]
    mine.close(), mailbox.close()
    store.put(oid(1), [b"x"])
