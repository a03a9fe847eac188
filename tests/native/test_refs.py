"""ObjectRefBase, the list of released entries, and IdGenerator."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from miniray._native import IdGenerator, ObjectRefBase, drain_released, released_pending
from tests.native.support import Child, oid


class Ref(ObjectRefBase):
    __slots__ = ()


class Entry:
    pass


@pytest.fixture(autouse=True)
def nothing_released() -> Iterator[None]:
    gc.collect()
    drain_released(1 << 30)
    yield
    drain_released(1 << 30)


def test_fields() -> None:
    entry, owner = Entry(), object()
    ref = Ref(oid(7), owner, entry)
    assert ref.binary() == oid(7) and ref.hex() == oid(7).hex()
    assert ref.owner_address is owner and ref.entry is entry
    assert repr(ref) == f"ObjectRef({oid(7).hex()})"
    assert type(ref) is Ref and type(Ref._make(oid(7), None, None)) is Ref
    bare = ObjectRefBase(id=oid(7))
    assert bare.entry is None and bare.owner_address is None
    with pytest.raises(AttributeError):
        ref.entry = None  # type: ignore[misc]


def test_equality_and_hash_are_by_id() -> None:
    a, b, c = Ref(oid(1), None, None), Ref(oid(1), 1, 2), Ref(oid(2), None, None)
    assert a == b and not a != b and a != c and a != oid(1)
    assert hash(a) == hash(b) and len({a, b, c}) == 2
    assert len({hash(Ref(oid(n), None, None)) for n in range(10_000)}) == 10_000
    with pytest.raises(TypeError):
        a < b  # type: ignore[operator]  # noqa: B015


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="length 28"):
        Ref(b"short", None, None)
    with pytest.raises(TypeError):
        Ref()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Ref("x" * 28, None, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Ref._make(oid(1))  # type: ignore[call-arg]
    assert not released_pending()


def test_a_dead_references_entry_is_released_once() -> None:
    entry = Entry()
    ref = Ref(oid(1), None, entry)
    other = Ref(oid(1), None, entry)
    assert drain_released() == [] and not released_pending()
    del ref
    assert released_pending()
    assert drain_released() == [entry] and drain_released() == []
    del other
    assert drain_released() == [entry] and not released_pending()


def test_references_without_entry_release_nothing() -> None:
    before = sys.getrefcount(None)
    for _ in range(1000):
        Ref(oid(1), None, None)
    assert not released_pending()
    assert abs(sys.getrefcount(None) - before) < 10 or sys.version_info >= (3, 12)


def test_entries_come_in_order_and_by_portions() -> None:
    entries = [Entry() for _ in range(5000)]
    for entry in entries:
        Ref(oid(1), None, entry)
    assert drain_released() == entries[:4096]
    for entry in entries[:2000]:
        Ref(oid(1), None, entry)
    assert drain_released(limit=500) == entries[4096:4596]
    assert drain_released(0) == []
    assert drain_released(1 << 30) == entries[4596:] + entries[:2000]
    del entry
    counts = {sys.getrefcount(entry) for entry in entries}
    assert len(counts) == 1


def test_release_runs_no_python_code() -> None:
    """Also inside the collector: the entry's own finalizer waits until the list is drained."""
    ran = []

    class Loud:
        def __del__(self) -> None:
            ran.append(1)

    class Cycle:
        def __init__(self) -> None:
            self.me, self.ref = self, Ref(oid(1), None, Loud())

    Cycle()
    gc.collect()
    assert released_pending() and ran == []
    drain_released()
    assert ran == [1]


def test_the_collector_does_not_track_references() -> None:
    assert not gc.is_tracked(Ref(oid(1), None, None))
    assert not gc.is_tracked(ObjectRefBase(oid(1)))


def test_weak_references() -> None:
    ref = Ref(oid(1), None, None)
    weak = weakref.ref(ref)
    assert weak() is ref
    del ref
    assert weak() is None


def test_owner_references_are_not_leaked() -> None:
    owner = Entry()
    before = sys.getrefcount(owner)
    refs = [Ref(oid(1), owner, None) for _ in range(100)]
    assert sys.getrefcount(owner) == before + 100
    refs.clear()
    assert sys.getrefcount(owner) == before


def test_threads_release_while_one_drains() -> None:
    count, got = 20_000, []

    def drop(entry: Any) -> None:
        for _ in range(count):
            Ref(oid(1), None, entry)

    threads = [threading.Thread(target=drop, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        got += drain_released()
    got += drain_released(1 << 30)
    assert [got.count(n) for n in range(3)] == [count] * 3


def test_a_forked_child_releases_nothing_of_its_parent() -> None:
    entry = Entry()
    kept = Ref(oid(1), None, entry)
    Ref(oid(2), None, entry)

    def inherit(_peer: object) -> None:
        nonlocal kept
        assert not released_pending() and drain_released() == []
        del kept
        assert drain_released() == []
        own = Entry()
        Ref(oid(3), None, own)
        assert drain_released() == [own]

    assert Child(inherit).join() == 0
    assert drain_released() == [entry]


def test_ids_count_up_between_prefix_and_suffix() -> None:
    ids = IdGenerator(b"PREFX", b"S" * 16)
    assert ids.next() == b"PREFX" + b"\0\0\0" + b"S" * 16
    assert ids.next() == b"PREFX" + b"\0\0\1" + b"S" * 16
    assert len({ids.next() for _ in range(1000)}) == 1000
    with pytest.raises(ValueError, match="5 and 16"):
        IdGenerator(b"four", b"S" * 16)


def test_ids_end_in_an_overflow() -> None:
    ids = IdGenerator(b"PREFX", b"S" * 16)
    take = ids.next
    for _ in range((1 << 24) - 1):
        take()
    assert ids.next() == b"PREFX" + b"\xff\xff\xff" + b"S" * 16
    with pytest.raises(OverflowError, match="new prefix"):
        ids.next()
