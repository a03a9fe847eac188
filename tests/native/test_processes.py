"""Several processes on one store, and their sudden deaths."""

from __future__ import annotations

import os
import random
import signal
import socket
import time

import pytest

from miniray._native import ObjectExists, Store, StoreFull
from tests.native.support import Child, client, eventually, oid, payload

SHARED_IDS = 30


def churn(peer: socket.socket, store: Store, seed: int, steps: int | None) -> None:
    """Random use of a few shared ids, verifying each byte read; for ever if `steps` is None."""
    rng = random.Random(seed)
    held: list[tuple[int, memoryview]] = []
    peer.send(b".")
    while steps is None or steps > 0:
        steps = None if steps is None else steps - 1
        n, what = rng.randrange(SHARED_IDS), rng.random()
        try:
            if what < 0.3:
                store.put(oid(n), [payload(n, rng.randrange(20_000))])
            elif what < 0.35:
                view = store.create_object(oid(n), 5000)
                view[:100] = b"?" * 100
                del view
                store.abort(oid(n))
            elif what < 0.6:
                store.delete(oid(n))
            elif what < 0.85 and len(held) < 8:
                found = store.get(oid(n))
                if found is not None:
                    held.append((n, memoryview(found)))
            elif held:
                m, seen = held.pop(rng.randrange(len(held)))
                assert bytes(seen) == payload(m, len(seen)), "a pinned object changed"
        except (ObjectExists, StoreFull):
            pass
    held.clear()


def empty(store: Store) -> bool:
    for n in range(SHARED_IDS):
        store.delete(oid(n))
    store.check()
    return store.list() == [] and store.stats()["used"] == 0


def test_processes_share_objects_without_harm(store: Store) -> None:
    children = [client(store, churn, seed, 6000) for seed in range(4)]
    for child, slot in children:
        assert child.join() == 0
        assert store.reap_client(slot)["pins"] == 0
    assert empty(store)


def test_killed_clients_leave_nothing(store: Store) -> None:
    """kill -9 at random moments while others go on; pins and unsealed objects come back."""
    rng = random.Random(1)
    survivor, survivor_slot = client(store, churn, 99, None)
    for round_number in range(40):
        victim, slot = client(store, churn, round_number, None)
        victim.hear()
        time.sleep(rng.random() * 0.01)
        victim.kill()
        store.reap_client(slot)
        store.check()
    survivor.kill()
    store.reap_client(survivor_slot)
    assert empty(store)
    assert store.stats()["clients"] == 1


def test_a_dead_clients_pins_and_unsealed_objects_are_reported(store: Store) -> None:
    for n in range(3):
        store.put(oid(n), [payload(n, 100)])

    def work(peer: socket.socket, theirs: Store) -> None:
        views = [theirs.get(oid(n)) for n in (0, 1, 1)]
        writing = [theirs.create_object(oid(n), 1000) for n in (10, 11)]
        theirs.put(oid(12), [b"sealed, so it stays"])
        peer.send(b".")
        peer.recv(1)
        del views, writing

    child, slot = client(store, work)
    child.hear()
    store.delete(oid(0))
    child.kill()
    assert store.stats()["objects"] == 6
    reaped = store.reap_client(slot)
    assert sorted(reaped["aborted"]) == [oid(10), oid(11)]
    assert reaped["pins"] == 4  # two objects read, two being written
    assert sorted(row[0] for row in store.list()) == sorted([oid(1), oid(2), oid(12)])
    assert store.reap_client(slot) == {"pins": 0, "aborted": []}


def test_another_clients_pin_survives_a_reaping(store: Store) -> None:
    store.put(oid(1), [payload(1, 1000)])
    mine = store.get(oid(1))

    def hold(peer: socket.socket, theirs: Store) -> None:
        view = theirs.get(oid(1))
        peer.send(b".")
        peer.recv(1)
        del view

    child, slot = client(store, hold)
    child.hear()
    store.delete(oid(1))
    child.kill()
    store.reap_client(slot)
    assert bytes(mine) == payload(1, 1000) and store.stats()["objects"] == 1
    del mine
    assert store.stats()["objects"] == 0


def test_death_inside_the_mutex_is_repaired(store: Store) -> None:
    """Stopped while it holds the mutex, then killed: the next caller rebuilds the heap."""
    for n in range(50, 60):
        store.put(oid(n), [payload(n, n * 100)])
    store.set_lock_timeout(0.01)
    for seed in range(3):
        victim, slot = client(store, churn, seed, None)
        victim.hear()

        def caught_inside(victim: Child = victim) -> bool:
            os.kill(victim.pid, signal.SIGSTOP)
            os.waitpid(victim.pid, os.WUNTRACED)
            try:
                store.stats()
            except TimeoutError:
                return True
            os.kill(victim.pid, signal.SIGCONT)
            time.sleep(0.0005)
            return False

        before = store.stats()["rebuilds"]
        eventually(caught_inside)
        victim.kill()
        store.check()
        assert store.stats()["rebuilds"] == before + 1
        store.reap_client(slot)
        for n in range(50, 60):
            assert bytes(store.get(oid(n))) == payload(n, n * 100)
    for n in range(50, 60):
        store.delete(oid(n))
    assert empty(store)


def test_a_process_waits_for_anothers_seal(store: Store) -> None:
    def waiter(peer: socket.socket, theirs: Store) -> None:
        peer.send(b".")
        assert theirs.wait([oid(1), oid(2)], 2, 20) == [oid(1), oid(2)]

    children = [client(store, waiter)[0] for _ in range(3)]
    for child in children:
        child.hear()
    time.sleep(0.02)
    store.put(oid(1), [b"x"])
    view = store.create_object(oid(2), 5)
    time.sleep(0.02)
    store.seal(oid(2))
    del view
    assert [child.join() for child in children] == [0, 0, 0]


def test_a_waiters_death_stops_nobody(store: Store) -> None:
    def waiter(peer: socket.socket, theirs: Store) -> None:
        peer.send(b".")
        theirs.wait([oid(1)], 1, None)

    child, slot = client(store, waiter)
    child.hear()
    time.sleep(0.02)
    child.kill()
    store.reap_client(slot)
    store.put(oid(1), [b"x"])
    assert store.wait([oid(1)], 1, None) == [oid(1)]


def test_reuse_of_records_by_many_clients(store: Store) -> None:
    def work(_peer: socket.socket, theirs: Store, n: int) -> None:
        theirs.put(oid(n), [payload(n, 100)])
        view = theirs.create_object(oid(1000 + n), 100)
        assert len(view) == 100
        os._exit(3)

    for n in range(60):
        child, slot = client(store, work, n)
        assert child.join() == 3
        assert slot == 1
        assert store.reap_client(slot) == {"pins": 1, "aborted": [oid(1000 + n)]}
    assert store.stats()["objects"] == 60


@pytest.mark.parametrize("size", [2000, 3_000_000])
def test_a_reader_and_a_writer_race(size: int) -> None:
    store = Store.create(16 << 20)

    def write(peer: socket.socket, theirs: Store) -> None:
        for n in range(150):
            theirs.put(oid(n), [payload(n, size)])
            theirs.wait([oid(1000 + n)], 1, 20)
            theirs.delete(oid(1000 + n))

    child, slot = client(store, write)
    for n in range(150):
        assert store.wait([oid(n)], 1, 20) == [oid(n)]
        found = store.get(oid(n))
        assert found is not None and bytes(found) == payload(n, size)
        store.delete(oid(n))
        store.put(oid(1000 + n), [b"done"])
    assert child.join() == 0
    store.reap_client(slot)
    del found
    assert store.list() == []
