"""Circuits: every batch once and in order, whatever carriers come and go; acks, window, forgetting."""

from __future__ import annotations

import random

import pytest

from miniray.core.circuit import ACK_BYTES, HEADER, WINDOW_BYTES, Circuit, Forgotten, goodbye


def body(batch: bytes) -> bytes:
    return batch[HEADER.size :]


def test_batches_are_numbered_and_carry_the_ack() -> None:
    a, b = Circuit(1), Circuit(1)
    first, second = a.pack([b"x", b"y"]), a.pack([b"z"])
    assert body(first) == b"xy" and b.unpack(first) and b.unpack(second)
    assert a.unacknowledged() == [first, second] and not a.owes_ack
    assert a.unpack(b.pack([b"back"])), "it acknowledges both"
    assert a.unacknowledged() == [] and a.unacked_bytes == 0
    a.check()


def test_a_repeated_batch_is_new_only_once() -> None:
    a, b = Circuit(1), Circuit(1)
    sent = [a.pack([b"%d" % n]) for n in range(3)]
    assert [b.unpack(batch) for batch in sent] == [True, True, True]
    assert [b.unpack(batch) for batch in a.unacknowledged()] == [False, False, False]
    assert not a.unpack(b.ack()), "an ack has no frames"
    assert a.unacknowledged() == []


def test_an_end_that_only_receives_owes_an_ack_after_a_while() -> None:
    a, b = Circuit(1), Circuit(1)
    for _ in range(-(-ACK_BYTES // (1000 + HEADER.size))):
        assert not b.owes_ack
        b.unpack(a.pack([bytes(1000)]))
    assert b.owes_ack
    a.unpack(b.ack())
    assert not b.owes_ack and not a.unacknowledged()


def test_the_window_bounds_what_is_under_way_and_reopens_with_an_ack() -> None:
    a, b = Circuit(1), Circuit(1)
    batch = a.pack([bytes(2 * WINDOW_BYTES)])
    assert a.is_full, "one that is larger than the window may go alone"
    assert b.unpack(batch) and b.owes_ack
    a.unpack(b.ack())
    assert not a.is_full
    while not a.is_full:
        b.unpack(a.pack([bytes(10_000)]))
    assert a.unacked_bytes < WINDOW_BYTES + 11_000 and b.owes_ack, "it cannot stay full for ever"


def test_an_end_that_was_forgotten_hears_so() -> None:
    a, b = Circuit(1), Circuit(1)
    b.unpack(a.pack([b"1"]))
    again = Circuit(2)  # b was told that a is dead
    with pytest.raises(Forgotten):
        again.unpack(a.pack([b"2"]))
    with pytest.raises(Forgotten):
        a.unpack(goodbye())
    with pytest.raises(Forgotten):
        Circuit(1).unpack(b.pack([b"an answer to what was never said"]))


@pytest.mark.parametrize("seed", range(20))
def test_carriers_that_break_lose_and_repeat_nothing(seed: int) -> None:
    """Each carrier is a queue each way; it breaks with batches inside, and a late one may still be read."""
    rng = random.Random(seed)
    ends = [Circuit(1), Circuit(1)]
    carriers: list[list[list[bytes]]] = [[[], []]]
    sent: list[list[bytes]] = [[], []]
    got: list[list[bytes]] = [[], []]

    def read(carrier: list[list[bytes]], to: int) -> None:
        batch = carrier[to].pop(0)
        if ends[to].unpack(batch):
            got[to].append(body(batch))

    for step in range(600):
        side = rng.randrange(2)
        chance = rng.random()
        if chance < 0.5 and not ends[side].is_full:
            sent[side].append(b"%d" % step)
            carriers[-1][1 - side].append(ends[side].pack([sent[side][-1]]))
        elif chance < 0.9:
            readable = [carrier for carrier in carriers if carrier[side]]
            if readable:
                read(rng.choice(readable), side)
        elif chance < 0.95:
            carriers[-1][1 - side].append(ends[side].ack())
        else:
            if rng.random() < 0.5:  # it breaks; else it is merely left for a better one
                for queue in carriers[-1]:
                    queue.clear()
            carriers.append([ends[1].unacknowledged(), ends[0].unacknowledged()])
        for end in ends:
            end.check()
    for carrier in carriers:
        for side in (0, 1):
            while carrier[side]:
                read(carrier, side)
    assert got[1] == sent[0] and got[0] == sent[1]


def test_a_circuit_begun_anew_is_told_from_repeated_batches() -> None:
    a, b = Circuit(1), Circuit(1)
    b.unpack(a.pack([b"1"]))
    again = Circuit(2)      # a was told that b is dead, and then that it is not
    with pytest.raises(Forgotten):
        b.unpack(again.pack([b"1"]))


def test_what_is_said_to_a_former_life_acknowledges_nothing() -> None:
    a, b = Circuit(1), Circuit(1)
    b.unpack(a.pack([b"1"]))
    again = Circuit(2)
    again.pack([b"other"])
    with pytest.raises(Forgotten):
        again.unpack(b.pack([b"answer"]))
    assert len(again.unacknowledged()) == 1
