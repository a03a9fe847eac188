"""The native records, and the passes over lists of references."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator

import pytest

from miniray import _native
from miniray.core.directory import FAILED, FREED, INLINE, PENDING, STORED, UNKNOWN, ObjectEntry
from miniray.core.tasks import TaskRecord, TaskTemplate
from miniray.ids import ObjectRef


@pytest.fixture(autouse=True)
def nothing_released() -> Iterator[None]:
    _native.drain_released(1 << 30)
    yield
    _native.drain_released(1 << 30)


def entry(number: int, state: int = PENDING) -> ObjectEntry:
    return ObjectEntry(number.to_bytes(28, "little"), None, state)


def refs(*states: int) -> list[ObjectRef]:
    entries = [entry(number, state) for number, state in enumerate(states)]
    return [ObjectRef(one.id, None, one) for one in entries]


def record(**fields: object) -> TaskRecord:
    template = TaskTemplate(print, "f")
    made = TaskRecord(b"t" * 24, template, b"", None, None, [], 3, None, None, b"", 1.5)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


# ---- records


def test_an_entry_begins_pending_and_unreferenced() -> None:
    one = ObjectEntry(b"x" * 28)
    assert (one.state, one.local, one.pins) == (PENDING, 0, 0)
    assert one.owner is one.value is one.rare is None
    assert ObjectEntry(b"x" * 28, (b"n", b"w"), UNKNOWN).owner == (b"n", b"w")
    with pytest.raises(TypeError):
        ObjectEntry()  # type: ignore[call-arg]
    assert not gc.is_tracked(one)


def test_a_record_takes_its_name_from_the_template() -> None:
    one = record()
    assert (one.name, one.retries_left, one.submitted_at, one.done, one.attempt) == ("f", 3, 1.5, False, 0)
    with pytest.raises(TypeError):
        TaskRecord(b"")  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        TaskRecord(b"t" * 24, None, b"", None, None, [], 3, None, None, b"", 1.5)


def test_the_collector_ends_a_cycle_of_a_tracked_record() -> None:
    class Stream:
        pass

    one, stream = record(), Stream()
    one.stream, stream.record = stream, one     # type: ignore[attr-defined]
    assert not gc.is_tracked(one)
    one.track()
    one.track()
    gone = weakref.ref(stream)
    del one, stream
    gc.collect()
    assert gone() is None


def test_long_chains_of_records_end_without_recursion() -> None:
    last = None
    for number in range(200_000):
        one = entry(number)
        one.task = record(held=[last] if last is not None else None)
        last = one
    del one, last


# ---- counting


def test_references_count_themselves_and_the_last_one_releases() -> None:
    one = entry(1)
    first, second = ObjectRef(one.id, None, one), ObjectRef(one.id, None, one)
    assert one.local == 2
    del first
    assert one.local == 1 and not _native.released_pending()
    del second
    assert one.local == 0 and _native.drain_released() == [one]


def test_a_forked_child_counts_nothing_off() -> None:
    one = entry(1)
    ref = ObjectRef(one.id, None, one)
    pid = os.fork()
    if pid == 0:
        del ref
        os._exit(0 if one.local == 1 and not _native.released_pending() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert one.local == 1


def test_threads_count_without_loss() -> None:
    one = entry(1)
    keep = ObjectRef(one.id, None, one)

    def churn() -> None:
        for _ in range(20_000):
            ObjectRef(one.id, None, one)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.local == 1
    del keep


def test_a_task_is_made_in_one_step() -> None:
    objects: dict[bytes, ObjectEntry] = {}
    maker = _native.RecordMaker(objects, ObjectEntry, TaskRecord, ObjectRef)
    template = TaskTemplate(print, "f")
    made, ref = maker.task(b"t" * 24, template, b"a", None, None, 3, "lane", None, b"p", 2.0)
    assert type(made) is TaskRecord and type(ref) is ObjectRef
    assert ref.binary() == b"t" * 24 + b"\x01\0\0\0" and objects == {ref.binary(): ref.entry}
    assert made.returns == [ref.entry] and ref.entry.task is made and ref.entry.local == 1
    assert (made.arguments, made.retries_left, made.lane, made.parent) == (b"a", 3, "lane", b"p")
    again = maker.known(ref.binary())
    assert again == ref and again.entry is ref.entry and ref.entry.local == 2
    assert maker.known(b"x" * 28) is None
    table = ref.binary() + b"owner" + b"x" * 28 + b"owner"
    assert maker.known_all(table, 33) == ([ref, None], [1]) and maker.known_all(b"", 33) == ([], [])
    with pytest.raises(ValueError):
        maker.known_all(table, 32)
    with pytest.raises(ValueError):
        maker.task(b"short", template, b"a", None, None, 3, "lane", None, b"p", 2.0)
    with pytest.raises(TypeError):
        _native.RecordMaker(objects, dict, TaskRecord, ObjectRef)


# ---- lists


def test_first_pending_looks_from_a_place_on() -> None:
    some = refs(INLINE, PENDING, STORED, UNKNOWN, FAILED, FREED)
    assert _native.first_pending(some) == 1
    assert _native.first_pending(tuple(some), 2) == 3
    assert _native.first_pending(some, 4) == -1 == _native.first_pending([])
    with pytest.raises(TypeError):
        _native.first_pending([1])      # type: ignore[list-item]


def test_unknown_gives_the_entries_nobody_asked_for() -> None:
    some = refs(INLINE, UNKNOWN, PENDING, UNKNOWN)
    assert _native.unknown(some) == [some[1].entry, some[3].entry]


def test_split_keeps_the_order_and_the_limit() -> None:
    some = refs(INLINE, PENDING, STORED, UNKNOWN, FAILED)
    assert _native.count_ready(some, 2) == 2 and _native.count_ready(some, 9) == 3
    assert _native.split_ready(some, 2) == ([some[0], some[2]], [some[1], some[3], some[4]])
    assert _native.split_ready(some, 0) == ([], some)


def test_two_references_to_one_object_are_found() -> None:
    some = refs(INLINE, PENDING, STORED)
    again = ObjectRef(some[0].entry.id, None, some[0].entry)
    assert _native.check_refs(some, ObjectRef) is True
    assert _native.check_refs([*some, again], ObjectRef) is False
    assert _native.check_refs(some, ObjectRef) is True
    assert _native.check_refs([*some, 7], ObjectRef) is None
    assert _native.check_refs([ObjectRef(b"x" * 28)], ObjectRef) is None
