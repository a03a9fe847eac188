"""The reliable link: exactly once and in order per pair of incarnations, whatever the wire does."""

from __future__ import annotations

from random import Random

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.core.link import AT_ONCE, Deliver, Link, LinkOptions, PeerReset, Transmit


def message(number: int) -> gcs.NodeMessage:
    return gcs.NodeMessage(heartbeat=gcs.Heartbeat(version=number))


def link(incarnation: int, **options: float) -> Link:
    return Link(incarnation, gcs.Packet, LinkOptions(**options))


def drain(end: Link) -> tuple[list[gcs.Packet], list[object]]:
    """(packets to the wire, what came up: version numbers and resets)."""
    packets = [e.packet for e in end.out if isinstance(e, Transmit)]
    up = [
        e.message.heartbeat.version if isinstance(e, Deliver) else e
        for e in end.out
        if not isinstance(e, Transmit)
    ]
    end.out.clear()
    end.check()
    return packets, up


def exchange(now: float, a: Link, b: Link) -> tuple[list[object], list[object]]:
    """A perfect wire until both are silent: what came up at `a` and at `b`."""
    at_a: list[object] = []
    at_b: list[object] = []
    for _ in range(100):
        a.tick(now)
        b.tick(now)
        from_a, up_a = drain(a)
        from_b, up_b = drain(b)
        at_a += up_a
        at_b += up_b
        if not from_a and not from_b:
            break
        for packet in from_a:
            b.packet_received(now, packet)
        for packet in from_b:
            a.packet_received(now, packet)
    return at_a, at_b


def pair(**options: float) -> tuple[Link, Link]:
    """Two ends that know each other."""
    a, b = link(7, **options), link(3, **options)
    a.connected(0.0)
    exchange(0.0, a, b)
    assert (a.peer, b.peer) == (3, 7)
    return a, b


def test_messages_arrive_in_order_and_only_after_the_greeting() -> None:
    a, b = link(7), link(3)
    for number in range(1, 4):
        a.send(message(number))
    assert a.next_deadline() == AT_ONCE
    a.tick(0.0)
    (hello,), _ = drain(a)
    assert hello.peer_incarnation == 0 and not hello.messages
    b.packet_received(0.0, hello)
    assert exchange(0.0, a, b) == ([], [1, 2, 3])
    exchange(1.0, a, b)
    assert a.backlog == 0


def test_one_tick_packs_a_batch_into_one_packet() -> None:
    a, b = pair()
    for number in range(100):
        a.send(message(number))
    a.tick(0.0)
    packets, _ = drain(a)
    assert len(packets) == 1 and len(packets[0].messages) == 100


def test_packets_are_closed_at_their_limits() -> None:
    a, _ = pair(packet_messages=2)
    for number in range(5):
        a.send(message(number))
    a.tick(0.0)
    packets, _ = drain(a)
    assert [(p.first_sequence, len(p.messages)) for p in packets] == [(1, 2), (3, 2), (5, 1)]
    a, _ = pair(packet_bytes=10)
    for size in (4, 4, 4, 100):
        a.send(message(1), size)
    a.tick(0.0)
    assert [len(p.messages) for p in drain(a)[0]] == [2, 1, 1]


def test_an_ack_travels_with_an_answer_or_alone_after_the_delay() -> None:
    a, b = pair(ack_delay_s=0.02)
    a.send(message(1))
    a.tick(1.0)
    b.packet_received(1.0, drain(a)[0][0])
    drain(b)
    assert b.next_deadline() == pytest.approx(1.02)
    b.send(message(9))
    b.tick(1.0)
    (answer,), _ = drain(b)
    assert answer.ack == 1 and len(answer.messages) == 1
    assert b.next_deadline() == pytest.approx(1.2)
    a.packet_received(1.0, answer)
    a.tick(1.02)
    (ack,), _ = drain(a)
    assert ack.ack == 1 and not ack.messages


def test_many_messages_are_acked_at_once() -> None:
    a, b = pair(ack_every=3)
    for number in range(3):
        a.send(message(number))
    a.tick(1.0)
    b.packet_received(1.0, drain(a)[0][0])
    assert b.next_deadline() == 1.0


def test_a_lost_packet_is_resent_with_growing_delays() -> None:
    a, b = pair(resend_s=0.2, resend_max_s=0.5)
    a.send(message(1))
    sent = []
    now = 1.0
    a.tick(now)
    drain(a)
    for _ in range(4):
        now = a.next_deadline()
        sent.append(round(now, 3))
        a.tick(now)
        packets, _ = drain(a)
    assert sent == [1.2, 1.6, 2.1, 2.6]
    b.packet_received(now, packets[0])
    assert exchange(now, a, b)[1] == [1]


def test_a_duplicate_is_not_delivered_and_is_acked_at_once() -> None:
    a, b = pair()
    a.send(message(1))
    a.tick(1.0)
    (packet,), _ = drain(a)
    b.packet_received(1.0, packet)
    b.packet_received(1.0, packet)
    assert b.next_deadline() == 1.0
    assert drain(b)[1] == [1]


def test_early_messages_wait_for_the_missing_ones() -> None:
    a, b = pair()
    packets = []
    for number in (1, 2, 3):
        a.send(message(number))
        a.tick(1.0)
        packets += drain(a)[0]
    b.packet_received(1.0, packets[2])
    b.packet_received(1.0, packets[1])
    assert drain(b)[1] == []
    b.packet_received(1.0, packets[0])
    assert drain(b)[1] == [1, 2, 3]


def test_early_messages_beyond_the_window_are_dropped_and_come_again() -> None:
    a, b = link(7, window=8), link(3, window=2)
    a.connected(0.0)
    exchange(0.0, a, b)
    for number in range(1, 7):
        a.send(message(number))
    a.tick(0.0)
    (packet,), _ = drain(a)
    first, rest = gcs.Packet(), gcs.Packet()
    first.CopyFrom(packet)
    del first.messages[1:]
    rest.CopyFrom(packet)
    rest.first_sequence = 2
    del rest.messages[:1]
    b.packet_received(0.0, rest)
    b.packet_received(0.0, first)
    assert drain(b)[1] == [1, 2, 3]
    assert exchange(5.0, a, b)[1] == [4, 5, 6]


def test_the_window_bounds_what_is_in_flight() -> None:
    a, b = pair(window=4)
    for number in range(10):
        a.send(message(number))
    a.tick(0.0)
    packets, _ = drain(a)
    assert sum(len(p.messages) for p in packets) == 4 and a.next_deadline() != AT_ONCE
    for packet in packets:
        b.packet_received(0.0, packet)
    assert sum((exchange(now, a, b)[1] for now in (1.0, 2.0, 3.0)), []) == list(range(10))
    exchange(4.0, a, b)
    assert a.backlog == a.backlog_bytes == 0


def test_nothing_is_sent_while_disconnected_and_everything_after() -> None:
    a, b = pair()
    a.send(message(1))
    a.tick(0.0)
    drain(a)
    a.disconnected(0.0)
    a.send(message(2))
    assert a.next_deadline() is None
    a.tick(9.0)
    assert drain(a)[0] == []
    a.connected(10.0)
    assert a.next_deadline() == AT_ONCE
    assert exchange(10.0, a, b)[1] == [1, 2]


def test_an_ack_between_reconnect_and_tick_leaves_nothing_to_resend() -> None:
    a, b = pair()
    a.send(message(1))
    a.tick(0.0)
    b.packet_received(0.0, drain(a)[0][0])
    b.tick(1.0)
    (ack,), _ = drain(b)
    a.connected(1.0)
    a.packet_received(1.0, ack)
    a.tick(1.0)
    (greeting,), _ = drain(a)
    assert not greeting.messages and a.backlog == 0


def test_a_restarted_peer_resets_both_directions_and_hands_back_the_rest() -> None:
    a, b = pair()
    a.send(message(1))
    exchange(0.0, a, b)
    exchange(1.0, a, b)
    a.send(message(2))
    a.tick(2.0)
    drain(a)
    a.send(message(3))
    reborn = link(4)
    a.connected(2.0)
    at_a, at_reborn = exchange(2.0, a, reborn)
    (reset,) = at_a
    assert isinstance(reset, PeerReset) and reset.incarnation == 4
    assert [m.heartbeat.version for m in reset.undelivered] == [2, 3]
    assert at_reborn == []
    a.send(message(4))
    reborn.send(message(5))
    assert exchange(3.0, a, reborn) == ([5], [4])


def test_late_packets_of_an_older_incarnation_change_nothing() -> None:
    a, b = pair()
    b.send(message(1))
    b.tick(0.0)
    (late,), _ = drain(b)
    reborn = link(4)
    reborn.connected(0.0)
    exchange(0.0, a, reborn)
    a.packet_received(0.0, late)
    assert drain(a)[1] == [] and a.peer == 4


def test_a_packet_for_an_older_self_is_answered_but_not_delivered() -> None:
    a, b = pair()
    a.send(message(1))
    a.tick(0.0)
    (stray,), _ = drain(a)
    reborn = link(4)
    reborn.packet_received(0.0, stray)
    reborn.tick(0.0)
    (answer,), up = drain(reborn)
    assert up == [] and answer.incarnation == 4 and answer.ack == 0


def test_an_impossible_ack_is_ignored() -> None:
    a, b = pair()
    a.send(message(1))
    a.tick(0.0)
    drain(a)
    a.packet_received(0.0, gcs.Packet(incarnation=3, peer_incarnation=7, ack=99))
    assert a.backlog == 1


def test_raylets_use_the_same_link_with_their_own_packets() -> None:
    a, b = Link(1, raylet.PeerPacket), Link(2, raylet.PeerPacket)
    a.send(raylet.PeerMessage(relay={"frames": b"x"}))
    a.tick(0.0)
    b.packet_received(0.0, a.out.pop().packet)
    b.tick(0.0)
    a.packet_received(0.0, b.out.pop().packet)
    a.tick(0.0)
    b.packet_received(0.0, a.out.pop().packet)
    assert [e.message.relay.frames for e in b.out if isinstance(e, Deliver)] == [b"x"]


@pytest.mark.parametrize("seed", range(30))
def test_a_wire_that_loses_repeats_and_reorders_loses_nothing(seed: int) -> None:
    """Both ends talk, end `b` restarts twice; per pair of incarnations everything is in order."""
    rng = Random(seed)
    ends = {"a": link(1), "b": link(1)}
    wire: list[tuple[float, str, gcs.Packet]] = []
    sent = {"a": 0, "b": 1_000_000}
    got: dict[str, list[object]] = {"a": [], "b": []}
    now = 0.0
    for step in range(600):
        now += 0.01
        for name in ends:
            if step < 300 and rng.random() < 0.5:
                sent[name] += 1
                ends[name].send(message(sent[name]))
        if step in (100, 200):
            ends["b"] = link(ends["b"].incarnation + 1)
            got["b"].append("restart")
        for name, other in (("a", "b"), ("b", "a")):
            if rng.random() < 0.02:
                ends[name].connected(now)
            ends[name].tick(now)
            packets, up = drain(ends[name])
            got[name] += up
            for packet in packets:
                if step >= 300 or rng.random() > 0.3:
                    for _ in range(1 if rng.random() < 0.8 else 2):
                        wire.append((now + rng.random() * 0.2, other, packet))
        for entry in sorted((e for e in wire if e[0] <= now), key=lambda e: e[0]):
            wire.remove(entry)
            ends[entry[1]].packet_received(now, entry[2])
    for name, marker in (("a", PeerReset), ("b", str)):
        pieces: list[list[int]] = [[]]
        for item in got[name]:
            if isinstance(item, marker):
                pieces.append([])
            else:
                pieces[-1].append(item)
        for piece in pieces:
            assert piece == sorted(set(piece)), "out of order or twice"
    resets = sum(isinstance(item, PeerReset) for item in got["a"])
    assert 1 <= resets <= 2
    assert ends["a"].backlog == ends["b"].backlog == 0
    assert got["a"][-1] == sent["b"] and got["b"][-1] == sent["a"]
