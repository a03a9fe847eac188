"""How long a view lives, and what it allows."""

from __future__ import annotations

import gc
import os
import signal
import socket

import numpy as np
import pytest

from miniray._native import Mailbox, Store, fork_generation
from tests.native.support import Child, client, oid, payload


def test_views_are_read_only(store: Store) -> None:
    store.put(oid(1), [b"hello"])
    buffer = store.get(oid(1))
    assert len(buffer) == buffer.nbytes == 5
    assert memoryview(buffer).readonly
    with pytest.raises(TypeError):
        memoryview(buffer)[0] = 1
    array = np.frombuffer(buffer, np.uint8)
    with pytest.raises(ValueError):
        array.setflags(write=True)


def test_writing_through_a_view_kills_the_writer_only(store: Store) -> None:
    store.put(oid(1), [b"hello"])

    def write(_peer: socket.socket, theirs: Store) -> None:
        import ctypes
        import faulthandler

        address = np.frombuffer(theirs.get(oid(1)), np.uint8).ctypes.data
        faulthandler.disable()  # the fault is the point
        ctypes.memset(address, 0, 1)

    child, slot = client(store, write)
    assert child.join() == -signal.SIGSEGV
    store.reap_client(slot)
    assert bytes(store.get(oid(1))) == b"hello"


def test_the_pin_lasts_as_long_as_any_view(store: Store) -> None:
    store.put(oid(1), [payload(1, 1000)])
    first, second = store.get(oid(1)), store.get(oid(1))
    assert store.pins(oid(1)) == [0]
    array = np.frombuffer(first, np.uint8)[10:20]
    del first
    assert store.delete(oid(1)) and not store.contains(oid(1))
    assert store.list()[0][2] == "deleting"
    del second
    assert store.list()[0][2] == "deleting"
    assert bytes(array) == payload(1, 1000)[10:20]
    del array
    assert store.list() == [] and store.stats()["used"] == 0


def test_a_deleted_id_may_be_put_again_while_old_views_live(store: Store) -> None:
    store.put(oid(1), [b"old"])
    old = store.get(oid(1))
    store.delete(oid(1))
    store.put(oid(1), [b"new"])
    assert bytes(old) == b"old" and bytes(store.get(oid(1))) == b"new"
    assert len(store.list()) == 2
    del old
    assert [row[2] for row in store.list()] == ["sealed"]


def test_views_outlive_the_store() -> None:
    store = Store.create(1 << 20)
    store.put(oid(1), [payload(1, 50_000)])
    array = np.frombuffer(store.get(oid(1)), np.uint8)
    writable = store.create_object(oid(2), 100)
    store.close()
    del store
    gc.collect()
    writable[:] = b"x" * 100
    assert bytes(array) == payload(1, 50_000)
    del writable, array


def test_every_client_has_its_own_pin(store: Store) -> None:
    store.put(oid(1), [payload(1, 1000)])

    def hold(peer: socket.socket, theirs: Store) -> None:
        view = theirs.get(oid(1))
        peer.send(b".")
        peer.recv(1)
        assert bytes(view) == payload(1, 1000)
        del view
        peer.send(b".")
        peer.recv(1)

    child, slot = client(store, hold)
    child.hear()
    mine = store.get(oid(1))
    assert store.pins(oid(1)) == [0, slot]
    del mine
    assert store.pins(oid(1)) == [slot]
    store.delete(oid(1))
    assert store.stats()["objects"] == 1
    child.say()
    child.hear()
    assert store.stats()["objects"] == 0
    child.say()
    assert child.join() == 0


def test_one_client_may_pin_very_many_objects() -> None:
    store = Store.create(64 << 20)
    for n in range(20_000):
        store.put(oid(n), [b"x"])
    views = [store.get(oid(n)) for n in range(20_000)]
    for n in range(20_000):
        store.delete(oid(n))
    assert store.stats()["objects"] == 20_000
    views.clear()
    assert store.stats()["objects"] == 0
    store.check()


# ---- fork ---------------------------------------------------------------------------------------


def test_a_forked_child_reads_but_does_not_unpin(store: Store) -> None:
    store.put(oid(1), [payload(1, 1000)])
    view = store.get(oid(1))
    before = fork_generation()

    def inherit(_peer: socket.socket) -> None:
        nonlocal view
        assert fork_generation() == before + 1
        assert bytes(view) == payload(1, 1000)
        for call in (store.list, store.open_client, lambda: store.get(oid(1)), lambda: Mailbox(store)):
            with pytest.raises(RuntimeError, match="forked"):
                call()
        view = None
        store.close()

    assert Child(inherit).join() == 0
    assert store.pins(oid(1)) == [0]
    store.delete(oid(1))
    assert store.stats()["objects"] == 1 and bytes(view) == payload(1, 1000)


def test_a_forked_child_may_attach_as_a_client_of_its_own(store: Store) -> None:
    def work(_peer: socket.socket, theirs: Store) -> None:
        theirs.put(oid(1), [b"from the child"])

    child, slot = client(store, work)
    assert child.join() == 0
    assert bytes(store.get(oid(1))) == b"from the child"
    assert store.reap_client(slot) == {"pins": 0, "aborted": []}


def test_the_store_is_not_inherited_by_exec(store: Store) -> None:
    assert not os.get_inheritable(store.fd)


def test_a_late_unpin_does_not_touch_the_next_owner_of_the_record(store: Store) -> None:
    store.put(oid(1), [b"x"])
    slot = store.open_client()
    first = Store.attach(store.fd, slot)
    view = first.get(oid(1))
    assert store.reap_client(slot)["pins"] == 1  # taken for dead
    assert store.open_client() == slot
    second = Store.attach(store.fd, slot)
    kept = second.get(oid(1))
    del view
    assert store.pins(oid(1)) == [slot]
    with pytest.raises(RuntimeError, match="taken this client's record back"):
        first.get(oid(1))
    with pytest.raises(RuntimeError, match="taken this client's record back"):
        first.put(oid(2), [b"x"])
    del kept
