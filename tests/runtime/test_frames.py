"""Frames: what is packed comes back, whatever the values; layouts that must not drift."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniray._native import push_frame, reply_frame, reply_in
from miniray.core.directory import FAILED, INLINE, STORED, ObjectEntry
from miniray.core.owner import Result
from miniray.runtime import arguments, frames

CALLEE = SimpleNamespace(name="f", call=None)

OID = st.binary(min_size=28, max_size=28)
ADDRESS = st.tuples(OID, OID).filter(lambda a: a[0] + a[1] != frames.NOBODY)
CALL = st.integers(0, 2**32 - 1)
PAYLOAD = st.binary(max_size=300)
NODES = st.lists(OID, max_size=4, unique=True)
ME = (b"n" * 28, b"w" * 28)


def pack_error(error: Any) -> bytes:
    return b"packed:" + bytes(error)


@st.composite
def entries(draw: st.DrawFn) -> ObjectEntry:
    """Any object that has a value, a location or an error."""
    entry = ObjectEntry(draw(OID), draw(st.none() | ADDRESS))
    entry.state = draw(st.sampled_from([INLINE, STORED, FAILED]))
    entry.size = draw(st.integers(0, 2**40))
    if entry.state == STORED:
        for node in draw(NODES):
            entry.more().locations[node] = None
    else:
        entry.value = draw(PAYLOAD)
    return entry


@st.composite
def results(draw: st.DrawFn) -> Result:
    """Any return value."""
    state = draw(st.sampled_from([INLINE, STORED, FAILED]))
    contents = draw(st.lists(st.tuples(OID, ADDRESS), max_size=3))
    value = None if state == STORED else draw(PAYLOAD)
    size = draw(st.integers(0, 2**40)) if state == STORED else len(value or b"")
    return Result(state, value, size, tuple(contents))


@given(st.none() | ADDRESS)
def test_addresses(address: Any) -> None:
    assert frames.unpack_address(frames.pack_address(address)) == address
    assert len(frames.pack_address(address)) == 56


@given(st.lists(entries(), max_size=5), PAYLOAD)
def test_slots_follow_one_another(objects: list[ObjectEntry], tail: bytes) -> None:
    frame = b"".join(part for entry in objects for part in frames.pack_slot(entry, ME, pack_error)) + tail
    at = 0
    for entry in objects:
        slot, at = frames.unpack_slot(frame, at)
        assert (slot.state, slot.object_id) == (entry.state, entry.id)
        if entry.state == STORED:
            assert (slot.owner, slot.nodes, slot.size) == (entry.owner or ME, entry.locations, entry.size)
        else:
            packed = entry.value if entry.state == INLINE else pack_error(entry.value)
            assert slot.payload == packed and slot.nodes == []
        if entry.state == INLINE:
            assert slot.owner == entry.owner, "None: the caller owns it"
    assert frame[at:] == tail


@given(CALL, CALL, st.lists(results(), max_size=4), st.lists(OID, max_size=3))
def test_replies(call: int, spent: int, values: list[Result], retained: list[bytes]) -> None:
    frame = frames.pack_reply(call, spent, values, retained)
    if frame[0] == frames.REPLY_ONE:
        _, _, count, *numbers = frames.REPLY_HEADER.unpack_from(frame)
        assert (count, numbers) == (1, [call, spent]) and not retained
        assert reply_in(frame) == (call, spent, frame[frames.REPLY_HEADER.size :])
        (only,) = values
        assert (only.state, only.value, only.contents) == (INLINE, frame[frames.REPLY_HEADER.size :], ())
    else:
        assert frames.unpack_reply(frame) == (call, spent, values, retained)


@given(CALL, PAYLOAD)
def test_a_small_reply_costs_twelve_bytes(call: int, value: bytes) -> None:
    frame = frames.pack_reply(call, 7, [Result(INLINE, value, len(value))], [])
    assert frame[0] == frames.REPLY_ONE and len(frame) == 12 + len(value)


@given(st.lists(CALL, max_size=100))
def test_bounces(calls: list[int]) -> None:
    frame = frames.pack_bounce(calls)
    assert frame[0] == frames.BOUNCE and frames.unpack_bounce(frame) == (calls, False)


@given(CALL, st.booleans(), st.booleans())
def test_cancels(call: int, force: bool, recursive: bool) -> None:
    frame = frames.pack_cancel(call, force, recursive)
    assert frames.CALL.unpack(frame) == (frames.CANCEL, force, recursive, call)


@given(CALL, PAYLOAD)
def test_functions(number: int, definition: bytes) -> None:
    frame = frames.pack_function(number, definition)
    assert frames.FUNCTION_HEADER.unpack_from(frame) == (frames.FUNCTION, 0, 0, number)
    assert frame[frames.FUNCTION_HEADER.size :] == definition


@given(
    st.sampled_from([frames.ASK, frames.BORROW_ADD, frames.BORROW_ACK, frames.BORROW_DROP, frames.LOST]),
    OID, st.none() | ADDRESS, st.integers(0, 1),
)  # fmt: skip
def test_object_frames(kind: int, oid: bytes, address: Any, flag: int) -> None:
    frame = frames.pack_object(kind, oid, address, flag)
    assert frame[0] == kind and frames.unpack_object(frame) == (oid, address, flag)


@given(entries())
def test_answers(entry: ObjectEntry) -> None:
    frame = frames.pack_answer(entry, pack_error)
    oid, state, size, nodes, payload = frames.unpack_answer(frame)
    assert frame[0] == frames.ANSWER and (oid, state, size) == (entry.id, entry.state, entry.size)
    assert nodes == entry.locations
    assert payload == {INLINE: entry.value, STORED: b"", FAILED: pack_error(entry.value or b"")}[state]


class Record:
    """What `pack_push` needs of a task."""

    def __init__(self, packed: Any, returns: int) -> None:
        self.arguments = packed
        self.template = type("Template", (), {"num_returns": returns})
        self.attempt, self.call, self.id = 3, 17, b"t" * 24


@pytest.mark.parametrize("returns", [0, 1, 65_000, -1, -2])
def test_a_push_without_references_is_its_header_and_the_pickle(returns: int) -> None:
    packed = arguments.encode((1, "two"), {}, lambda value: None)
    frame = arguments.pack_push(Record(packed, returns), 9, frames.RETRY_EXCEPTIONS, ME, pack_error)
    fields = frames.PUSH_HEADER.unpack_from(frame)
    assert fields == (frames.PUSH, frames.RETRY_EXCEPTIONS, 3, 17, 9, returns, b"t" * 24)
    assert len(frame) == 40 + len(packed)
    assert arguments.decode(frame, fields[1], None, CALLEE) == ((1, "two"), {})


def test_native_frames_refuse_what_does_not_fit_their_fields() -> None:
    good: list[Any] = [0, 0, 1, 1, 1, b"t" * 24, b"payload"]
    assert len(push_frame(*good)) == frames.PUSH_HEADER.size + 7
    for field, wrong in ((0, 256), (1, 1 << 16), (2, 1 << 32), (2, -1), (3, 1 << 32), (4, 1 << 31)):
        with pytest.raises(ValueError, match=f"{wrong} does not fit"):
            push_frame(*good[:field], wrong, *good[field + 1 :])
    for field, wrong in ((5, b"short"), (6, "text"), (6, None), (2, 1.5)):
        with pytest.raises(TypeError):
            push_frame(*good[:field], wrong, *good[field + 1 :])
    with pytest.raises(TypeError):
        reply_frame(1, 1, "text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4294967296 does not fit"):
        reply_frame(1, 1 << 32, b"")
    with pytest.raises(ValueError, match="a reply of 11 bytes"):
        reply_in(bytes(11))


def test_references_among_the_arguments_arrive_as_values_in_their_places() -> None:
    from miniray.ids import ObjectRef

    first, second = ObjectEntry(b"1" * 28), ObjectEntry(b"2" * 28)
    first.state, first.value = INLINE, b"one"
    second.state, second.size = STORED, 10_000_000
    second.more().locations[b"n" * 28] = None
    refs = [ObjectRef(entry.id, None, entry) for entry in (first, second)]
    packed = arguments.encode((0, refs[0], [refs[1]]), {"k": refs[1]}, lambda value: None)
    assert [entry.id for entry in packed.slots] == [first.id, second.id]
    assert sorted(entry.id for entry in packed.held) == sorted([first.id, second.id, second.id])
    frame = arguments.pack_push(Record(packed, 1), 1, 0, ME, pack_error)
    fetched = []

    def fetch(slot: frames.Slot, raw: bool = False) -> Any:
        fetched.append(slot)
        return slot.object_id[:1]

    fields = frames.PUSH_HEADER.unpack_from(frame)
    assert fields[1] & frames.HAS_SLOTS
    args, kwargs = _decoded(frame, fields[1], fetch)
    assert args[:2] == [0, b"1"] and kwargs == {"k": b"2"}
    assert args[2] == [refs[1]], "a reference inside a value stays one"
    assert [slot.state for slot in fetched] == [INLINE, STORED] and fetched[1].owner == ME


def _decoded(frame: bytes, flags: int, fetch: Any) -> Any:
    """Decoding restores references through the process's worker: a stand-in for it."""
    from miniray.ids import ObjectRef
    from miniray.runtime import worker
    from miniray.runtime.packed import REF_BYTES

    class Restorer:
        def refs_restored(self, table: bytes) -> Any:
            return [ObjectRef(table[at : at + 28], None, None) for at in range(0, len(table), REF_BYTES)]

    before = worker._current
    worker._current = Restorer()  # type: ignore[assignment]
    try:
        return arguments.decode(frame, flags, fetch, CALLEE)
    finally:
        worker._current = before


def test_arguments_too_large_for_a_frame_become_an_object() -> None:
    entry = ObjectEntry(b"p" * 28)
    entry.state, entry.size = STORED, 200_000
    stored = []

    def store_value(packed: Any) -> Any:
        stored.append(packed)
        return type("Ref", (), {"entry": entry})

    packed = arguments.encode((b"x" * 200_000,), {}, store_value)
    assert packed.in_store and packed.slots == [entry] and packed.held == [entry]
    frame = arguments.pack_push(Record(packed, 1), 1, 0, ME, pack_error)
    fields = frames.PUSH_HEADER.unpack_from(frame)
    assert fields[1] & frames.IN_STORE and len(frame) < 300
    args, _ = arguments.decode(
        frame, fields[1], lambda slot, raw=False: stored[0].pack() if raw else None, CALLEE)
    assert args[0] == b"x" * 200_000


@pytest.mark.parametrize("unpack", [frames.unpack_slot, frames.unpack_result])
@pytest.mark.parametrize("state", [INLINE, STORED])
def test_a_frame_that_claims_four_billion_records_is_refused(unpack: Any, state: int) -> None:
    frame = frames.SLOT.pack(state, 2**32 - 1, 0, 0) + bytes(200)
    if unpack is frames.unpack_result or state == STORED:
        with pytest.raises(ValueError, match="claims 4294967295 records"):
            unpack(frame, 0)
