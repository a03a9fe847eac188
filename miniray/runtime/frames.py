"""Frames between two workers: fixed-layout records, little endian, first byte the kind.

Frames travel on a channel (a ring on one node, relayed batches across nodes) in order. They are
the data plane, so there is no protobuf here: a call is one header and the pickled arguments.

::

    PUSH      header 40 | [slots] | payload          a task or an actor call
    REPLY_ONE header 12 | payload                    one small result, no references: nearly all
    REPLY     header 12 | count | results… | retained…   everything else
    FUNCTION  header 8  | pickled definition         once per channel, then by number
    LEASE     1 byte    | protobuf LeaseTerms        once per lease, before its first task

An address is 56 bytes, node id then worker id. `call` numbers count per channel direction and
tie replies to calls. A value in a slot or a result is INLINE (bytes follow), STORED (in a node's
store: owner, size, locations) or FAILED (a packed error follows).
Limits: payloads under 4 GiB; larger ones go through the store.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from miniray._native import reply_frame
from miniray.core.directory import FAILED, INLINE, STORED, Address, ObjectEntry
from miniray.core.owner import Result

(
    PUSH, REPLY_ONE, REPLY, FUNCTION, CANCEL, BOUNCE, ASK, ANSWER,
    BORROW_ADD, BORROW_ACK, BORROW_DROP, STREAM_ITEM, STREAM_ACK, LOST, LEASE, INTRODUCED,
    CANCEL_OWNED,
) = range(1, 18)  # fmt: skip

HAS_SLOTS = 1
"""PUSH flag: a slot table precedes the payload."""
IN_STORE = 2
"""PUSH flag: the payload is the last slot's object."""
MORE_LOST = 1
"""LOST flag: the sender knows of one more node without a copy, and waits for no answer to this."""
RETRY_EXCEPTIONS = 4
"""PUSH flag: the caller may run the task again if user code raises."""

PUSH_HEADER = struct.Struct("<BBHIIi24s")
REPLY_HEADER = struct.Struct("<BBHII")
FUNCTION_HEADER = struct.Struct("<BBHI")
CALL = struct.Struct("<BBHI")
STREAM_HEADER = struct.Struct("<BBHII")
OBJECT = struct.Struct("<BBHI28s")
SLOT = struct.Struct("<BxxxIIQ")
"""state, number of locations, contents or (of an inline argument) owners, payload length, object size."""
COUNT = struct.Struct("<I")

NOBODY = bytes(56)


def pack_address(address: Address | None) -> bytes:
    """56 bytes; all zero for None."""
    return address[0] + address[1] if address is not None else NOBODY


def unpack_address(data: bytes) -> Address | None:
    """The inverse of `pack_address`."""
    return (data[:28], data[28:56]) if data != NOBODY else None


# ---- values: slots of a push, results of a reply, answers


def pack_slot(entry: ObjectEntry, me: Address, pack_error: Callable[[Any], bytes]) -> list[bytes]:
    """A resolved argument: the parts of its slot."""
    if entry.state == INLINE:
        owner = pack_address(entry.owner) if entry.owner is not None else b""  # else the caller owns it
        return [SLOT.pack(INLINE, bool(owner), len(entry.value), entry.size), entry.id, owner, entry.value]
    if entry.state == STORED:
        nodes = entry.locations
        owner = pack_address(entry.owner or me)
        return [SLOT.pack(STORED, len(nodes), 0, entry.size), entry.id, owner, *nodes]
    error = pack_error(entry.value)
    return [SLOT.pack(FAILED, 0, len(error), 0), entry.id, error]


class Slot:
    """One argument as it arrived."""

    __slots__ = ("state", "object_id", "payload", "owner", "size", "nodes")

    def __init__(
        self, state: int, object_id: bytes, payload: Any, owner: Address | None, size: int, nodes: list[bytes]
    ):
        self.state = state
        self.object_id = object_id
        self.payload = payload
        self.owner = owner
        self.size = size
        self.nodes = nodes


def unpack_slot(frame: bytes, at: int) -> tuple[Slot, int]:
    """One slot and the offset behind it."""
    state, count, length, size = SLOT.unpack_from(frame, at)
    at += SLOT.size
    oid = frame[at : at + 28]
    at += 28
    if state == STORED:
        owner = unpack_address(frame[at : at + 56])
        at += 56
        _check_count(frame, at, count, 28)
        nodes = [frame[at + 28 * i : at + 28 * (i + 1)] for i in range(count)]
        return Slot(state, oid, None, owner, size, nodes), at + 28 * count
    owner = None
    if state == INLINE and count:
        owner = unpack_address(frame[at : at + 56])
        at += 56
    return Slot(state, oid, frame[at : at + length], owner, size, []), at + length


def _check_count(frame: bytes, at: int, count: int, size: int) -> None:
    """ValueError unless `count` records of `size` bytes are there: a peer may claim four billion."""
    if at + count * size > len(frame):
        raise ValueError(f"a frame of {len(frame)} bytes claims {count} records of {size} from byte {at}")


def pack_result(result: Result) -> list[bytes]:
    """One return value: the parts of its record."""
    payload = result.value if result.state != STORED else b""
    parts = [SLOT.pack(result.state, len(result.contents), len(payload), result.size)]
    for oid, owner in result.contents:
        parts.append(oid)
        parts.append(pack_address(owner))
    parts.append(payload)
    return parts


def unpack_result(frame: bytes, at: int) -> tuple[Result, int]:
    """One return value and the offset behind it."""
    state, count, length, size = SLOT.unpack_from(frame, at)
    at += SLOT.size
    contents = []
    _check_count(frame, at, count, 84)
    for _ in range(count):
        contents.append((frame[at : at + 28], unpack_address(frame[at + 28 : at + 84])))
        at += 84
    payload = frame[at : at + length] if state != STORED else None
    return Result(state, payload, size, tuple(contents)), at + length


# ---- replies


def pack_reply(call: int, spent_us: int, results: list[Result], retained: list[bytes]) -> bytes:
    """The answer to a call. The common case, one small value without references, is 12 bytes + value."""
    if len(results) == 1 and not retained:
        result = results[0]
        if result.state == INLINE and not result.contents:
            return reply_frame(call, spent_us, result.value)
    parts = [REPLY_HEADER.pack(REPLY, 0, 0, call, spent_us), COUNT.pack(len(results))]
    for result in results:
        parts.extend(pack_result(result))
    parts.extend(retained)
    return b"".join(parts)


def unpack_reply(frame: bytes) -> tuple[int, int, list[Result], list[bytes]]:
    """(call, spent_us, results, retained) of a REPLY frame."""
    _, _, _, call, spent = REPLY_HEADER.unpack_from(frame)
    (count,) = COUNT.unpack_from(frame, REPLY_HEADER.size)
    at = REPLY_HEADER.size + COUNT.size
    results = []
    for _ in range(count):
        result, at = unpack_result(frame, at)
        results.append(result)
    retained = [frame[i : i + 28] for i in range(at, len(frame), 28)]
    return call, spent, results, retained


# ---- control frames


def pack_function(number: int, definition: bytes) -> bytes:
    """A function or method becomes `number` on this channel."""
    return FUNCTION_HEADER.pack(FUNCTION, 0, 0, number) + definition


def pack_bounce(calls: list[int], retiring: bool = False) -> bytes:
    """These calls were not started; take them back. `retiring`: no other will be."""
    return CALL.pack(BOUNCE, retiring, 0, len(calls)) + struct.pack(f"<{len(calls)}I", *calls)


def unpack_bounce(frame: bytes) -> tuple[list[int], bool]:
    """The call numbers of a BOUNCE frame, and whether the worker retires."""
    _, retiring, _, count = CALL.unpack_from(frame)
    return list(struct.unpack_from(f"<{count}I", frame, CALL.size)), bool(retiring)


FORCE, RECURSIVE = 1, 2
"""Flags of CANCEL_OWNED."""


def pack_cancel(call: int, force: bool, recursive: bool) -> bytes:
    """The caller gave `call` up."""
    return CALL.pack(CANCEL, force, recursive, call)


def pack_object(kind: int, oid: bytes, address: Address | None = None, flag: int = 0) -> bytes:
    """ASK, BORROW_*, LOST, CANCEL_OWNED: an object id and an address."""
    return OBJECT.pack(kind, flag, 0, 0, oid) + (pack_address(address) if address is not None else b"")


def unpack_object(frame: bytes) -> tuple[bytes, Address | None, int]:
    """(object id, address, flag) of such a frame."""
    _, flag, _, _, oid = OBJECT.unpack_from(frame)
    rest = frame[OBJECT.size : OBJECT.size + 56]
    return oid, unpack_address(rest) if len(rest) == 56 else None, flag


def pack_answer(entry: ObjectEntry, pack_error: Callable[[Any], bytes]) -> bytes:
    """The owner's answer to ASK: the value, its locations, or the error."""
    nodes = entry.locations if entry.state == STORED else []
    payload = b""
    if entry.state == INLINE:
        payload = entry.value
    elif entry.state != STORED:
        payload = pack_error(entry.value)
    state = entry.state if entry.state in (INLINE, STORED) else FAILED
    head = OBJECT.pack(ANSWER, state, len(nodes), 0, entry.id) + struct.pack("<Q", entry.size)
    return b"".join((head, *nodes, payload))


def unpack_answer(frame: bytes) -> tuple[bytes, int, int, list[bytes], bytes]:
    """(object id, state, size, locations, payload) of an ANSWER frame."""
    _, state, count, _, oid = OBJECT.unpack_from(frame)
    at = OBJECT.size
    (size,) = struct.unpack_from("<Q", frame, at)
    at += 8
    nodes = [frame[at + 28 * i : at + 28 * (i + 1)] for i in range(count)]
    return oid, state, size, nodes, frame[at + 28 * count :]
