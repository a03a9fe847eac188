"""Which argument of a call does not unpickle: looked for only when one did not.

All arguments travel as one pickle. Its opcodes say, without being run, where in the bytes each argument is; a
second, slower reading says at which byte it fails. Arguments with references inside are not read again: that
would count them twice. On the thread that runs the task.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray.runtime import notes, packed

_GROWING = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
"""Opcodes that put what they take from the stack into the item below it."""


def blame(error: Exception, payload: Any, function: str, call: Callable[..., Any] | None) -> None:
    """Note on `error` that an argument of `function` did not unpickle, and which one if that can be found."""
    which = None
    with contextlib.suppress(Exception):
        which = culprit(payload)
    if type(which) is int and call is not None:
        with contextlib.suppress(ValueError, TypeError, IndexError):
            which = list(inspect.signature(call).parameters)[which]
    title = f"argument {which!r}" if which is not None else "one of the arguments"
    notes.add(error, f"{title} of {function} was unpickled on the worker")


def blame_object(error: Exception, object_id: bytes, function: str) -> None:
    """Note on `error` that the value of a reference that `function` was given did not unpickle."""
    notes.add(error, f"an argument of {function}, object {object_id.hex()}, was unpickled on the worker")


def culprit(payload: Any) -> int | str | None:
    """The position or name of the argument at which reading `payload` fails; None where nobody can tell."""
    pieces = packed.pieces(payload)
    if pieces is None:
        return None
    data = _without_frames(bytes(pieces[0]))
    failed_at = _failure(data, pieces[1])
    if failed_at is None:
        return None
    return next((key for key, item in _arguments(_whole(data)) if item.start < failed_at <= item.end), None)


def _failure(data: bytes, buffers: list[memoryview]) -> int | None:
    """How many bytes have been read when unpickling raises; None when it does not."""
    file = io.BytesIO(data)
    try:
        pickle._Unpickler(file, buffers=buffers).load()
    except Exception:
        return file.tell()
    return None


def _without_frames(data: bytes) -> bytes:
    """The same pickle without its division into frames, which are read ahead."""
    kept, start = [], 0
    for opcode, _, at in pickletools.genops(data):
        if opcode.name == "FRAME" and at is not None:
            kept.append(data[start:at])
            start = at + 9
    return b"".join([*kept, data[start:]])


@dataclass(slots=True)
class _Item:
    """One object of a pickle: the bytes that make it, and what it is made of."""

    start: int
    end: int
    value: Any
    parts: list[_Item] = field(default_factory=list)


def _whole(data: bytes) -> _Item:
    """The one object that a pickle makes, with all inside."""
    stack: list[_Item] = []
    marks: list[int] = []
    steps = [(opcode, arg, at or 0) for opcode, arg, at in pickletools.genops(data)]
    for (opcode, arg, at), (_, _, end) in itertools.pairwise(steps):
        if opcode.name == "MARK":
            marks.append(len(stack))
            continue
        below = opcode.stack_before
        if pickletools.markobject in below:
            first = marks.pop() - below.index(pickletools.markobject)
        else:
            first = len(stack) - len(below)
        taken = stack[first:]
        del stack[first:]
        if not opcode.stack_after:
            continue
        if opcode.name == "MEMOIZE" or opcode.name in _GROWING:
            taken[0].end = end
            taken[0].parts += taken[1:]
            stack.append(taken[0])
        else:
            stack.append(_Item(taken[0].start if taken else at, end, None if taken else arg, taken))
    return stack[-1]


def _arguments(whole: _Item) -> list[tuple[int | str | None, _Item]]:
    """The arguments in the pickle of a call (`values.serialize_args`), by position or name."""
    is_list = whole.value is None and len(whole.parts) in (2, 3) and not _is_tuple(whole)
    if not is_list:
        return list(enumerate(whole.parts))
    positional, named = whole.parts[:2]
    keys, items = named.parts[::2], named.parts[1::2]
    return [*enumerate(positional.parts), *((key.value, item) for key, item in zip(keys, items))]


def _is_tuple(item: _Item) -> bool:
    """Made by one opcode from its parts, not filled afterwards."""
    return bool(item.parts) and item.parts[0].start == item.start
