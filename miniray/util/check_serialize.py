"""Why a value cannot be serialized: `inspect_serializability` and the report inside errors.

Walks into what the value refers to (members of an object, globals and closure of a function,
items of a container) until it finds the objects that cannot be pickled by themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

DEPTH = 3
"""How many levels are looked into."""

_LINE = "=" * 80
_ITEMS = 1000
"""Items of one container that are looked at."""


class FailureTuple(NamedTuple):
    """One object that cannot be serialized: itself, its name, and what holds it."""

    obj: Any
    name: str
    parent: Any


def _error_of(value: Any) -> Exception | None:
    from miniray.runtime import pickler

    try:
        pickler.serialize(value)
    except Exception as e:
        return e
    return None


def _captured(function: Callable[..., Any]) -> Iterator[tuple[str, Any, str]]:
    """What a function takes along: its closure and the globals that its code names."""
    try:
        found = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    for name, value in found.globals.items():
        yield name, value, "global variable"
    for name, value in found.nonlocals.items():
        yield name, value, "nonlocal variable"


def _members(value: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, member, kind) of all that a pickle of `value` would contain."""
    if inspect.isclass(value):
        for name, member in inspect.getmembers(value, inspect.isfunction):
            yield name, member, "method"
    elif inspect.isfunction(value):
        yield from _captured(value)
    elif inspect.ismethod(value):
        yield "__self__", value.__self__, "bound object"
        yield from _captured(value.__func__)
    elif isinstance(value, dict):
        for key, member in list(value.items())[:_ITEMS]:
            yield f"[{key!r}]", member, "item"
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, member in enumerate(list(value)[:_ITEMS]):
            yield f"[{index}]", member, "item"
    else:
        for name, member in getattr(value, "__dict__", {}).items():
            yield name, member, "attribute"


def _walk(
    value: Any,
    name: str,
    parent: Any,
    depth: int,
    path: str,
    failures: list[FailureTuple],
    say: Callable[[str], None],
    seen: set[int],
) -> bool:
    """True if a member is at fault; then it has been noted in `failures`."""
    found = False
    for member_name, member, kind in _members(value):
        if id(member) in seen:
            continue
        error = _error_of(member)
        if error is None:
            continue
        seen.add(id(member))
        found = True
        inner = f"{path}{member_name}" if member_name.startswith("[") else f"{path}.{member_name}"
        say(f"{inner} ({kind}) {member!r} cannot be serialized: {error}")
        deeper = depth > 1 and _walk(member, member_name, value, depth - 1, inner, failures, say, seen)
        if not deeper:
            failures.append(FailureTuple(member, member_name, value))
    return found


def _inspect(value: Any, name: str, depth: int, say: Callable[[str], None]) -> tuple[bool, set[FailureTuple]]:
    say(_LINE)
    say(f"Checking Serializability of {value!r}")
    say(_LINE)
    error = _error_of(value)
    failures: list[FailureTuple] = []
    if error is not None:
        say(f"{name} cannot be serialized: {error}")
        if not _walk(value, name, None, depth, name, failures, say, {id(value)}):
            failures.append(FailureTuple(value, name, value))
        say("Variables at fault:")
        for failure in failures:
            say(f"    {failure.name} [obj={failure.obj!r}, parent={failure.parent!r}]")
        say("Change them, leave them out (`__reduce__`, `__getstate__`) or make them where they are used.")
        say(_LINE)
    return error is None, _hashable(failures)


def _hashable(failures: list[FailureTuple]) -> set[FailureTuple]:
    kept = set()
    for failure in failures:
        try:
            kept.add(failure)
        except TypeError:
            kept.add(FailureTuple(repr(failure.obj), failure.name, repr(failure.parent)))
    return kept


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = DEPTH, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Find out whether, and if not why not, `base_obj` can be passed to a task, put or captured.

    Prints what it finds to `print_file` (stdout by default) and returns (serializable, the
    members at fault). `depth` is how many levels are looked into.
    """
    return _inspect(base_obj, name or _name_of(base_obj), depth, lambda line: print(line, file=print_file))


def _name_of(value: Any) -> str:
    return getattr(value, "__name__", None) or type(value).__name__


def report(value: Any) -> str:
    """The same findings as text, for an error message."""
    lines: list[str] = []
    _inspect(value, _name_of(value), DEPTH, lines.append)
    return "\n".join(lines)
