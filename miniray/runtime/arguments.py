"""Arguments of a call: from Python values to a push frame's payload, and back on the worker.

Top-level ObjectRefs are replaced by their values before the function runs; references inside
other values stay references. What is too large for a frame goes into the store as one object
that the call depends on. Encoding runs on the caller's thread, outside the worker's lock (it
runs user code); decoding runs on the worker's executing thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from miniray._native import push_frame
from miniray.core.directory import FAILED, ObjectEntry
from miniray.runtime import frames, past_session, values
from miniray.runtime.packed import Serialized

INLINE_LIMIT = 100 * 1024
"""Bytes of arguments, or of one result, that travel inside a frame."""


class Callee(Protocol):
    """What is called: a function, a method or a constructor."""

    name: str
    call: Any


class Arguments:
    """Encoded arguments of one call.

    `slots` are the entries whose values the worker needs (top-level references, and last the
    payload itself when `in_store`); `held` all entries that must live until the reply.
    """

    __slots__ = ("payload", "slots", "held", "in_store", "alive")

    def __init__(
        self, payload: Any, slots: list[ObjectEntry], held: list[ObjectEntry], in_store: bool, alive: Any
    ) -> None:
        self.payload = payload
        self.slots = slots
        self.held = held
        self.in_store = in_store
        self.alive = alive  # the ObjectRefs themselves, until the machine has pinned the entries


def encode(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    store_value: Callable[[Serialized], Any],
    template: Any = None,
) -> bytes | Arguments:
    """Plain bytes when no reference and nothing large is among the arguments, else `Arguments`.

    Raises TypeError naming the member that cannot be pickled, and the callee by its template.
    """
    payload, direct, nested = values.serialize_args(args, kwargs, template)
    if type(payload) is bytes and not direct and not nested and len(payload) <= INLINE_LIMIT:
        return payload
    slots = [ref.entry for ref in direct]
    held = slots + [ref.entry for ref in nested]
    past_session.refuse(held, "Ray object")
    handles: Any = ()
    if not isinstance(payload, bytes):
        handles = payload.handles
        if payload.nbytes <= INLINE_LIMIT:
            payload = payload.pack()
    if isinstance(payload, bytes) and len(payload) <= INLINE_LIMIT:
        return Arguments(payload, slots, held, False, (direct, nested, handles))
    packed = Serialized(payload) if isinstance(payload, bytes) else payload
    stored = store_value(packed)
    slots = [*slots, stored.entry]
    return Arguments(None, slots, [*held, stored.entry], True, (direct, nested, handles, stored))


def size_of(record: Any) -> int:
    """Bytes of the encoded arguments of a record, without the objects among them."""
    encoded = record.arguments
    payload = encoded if type(encoded) is bytes else encoded.payload
    return len(payload) if payload is not None else 0


def pack_push(
    record: Any, number: int, flags: int, me: tuple[bytes, bytes], pack_error: Callable[[Any], bytes]
) -> bytes:
    """The PUSH frame of a record whose arguments are resolved."""
    arguments = record.arguments
    returns = record.template.num_returns
    if type(arguments) is bytes:
        return push_frame(flags, record.attempt, record.call, number, returns, record.id, arguments)
    flags |= frames.HAS_SLOTS
    if arguments.in_store:
        flags |= frames.IN_STORE
    parts = [
        frames.PUSH_HEADER.pack(frames.PUSH, flags, record.attempt, record.call, number, returns, record.id),
        len(arguments.slots).to_bytes(4, "little"),
    ]
    for entry in arguments.slots:
        parts.extend(frames.pack_slot(entry, me, pack_error))
    if not arguments.in_store:
        parts.append(arguments.payload)
    return b"".join(parts)


def decode(
    frame: bytes, flags: int, fetch: Callable[..., Any], callee: Callee
) -> tuple[Any, dict[str, Any]]:
    """(args, kwargs) of a PUSH frame; `fetch` turns a slot into its value and raises its error.

    What unpickling raises has a note which argument of `callee` it was.
    """
    at = frames.PUSH_HEADER.size
    slots: list[frames.Slot] = []
    if flags & frames.HAS_SLOTS:
        count = int.from_bytes(frame[at : at + 4], "little")
        at += 4
        for _ in range(count):
            slot, at = frames.unpack_slot(frame, at)
            slots.append(slot)
    if flags & frames.IN_STORE:
        packed = fetch(slots.pop(), raw=True)
    elif at == len(frame):
        return (), {}
    else:
        packed = frame[at:] if at else frame
    filled: list[Any] = []
    try:
        for slot in slots:
            filled.append(fetch(slot))
        return values.deserialize_args(packed, filled)
    except Exception as error:
        _blame(error, slots[len(filled)] if len(filled) < len(slots) else None, packed, callee)
        raise


def _blame(error: Exception, slot: frames.Slot | None, packed: Any, callee: Callee) -> None:
    from miniray.runtime import bad_arguments

    if slot is None:
        bad_arguments.blame(error, packed, callee.name, callee.call)
    elif slot.state != FAILED:
        bad_arguments.blame_object(error, slot.object_id, callee.name)
