"""What a task returned against what its caller was promised, for workers and for local mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def fixed(value: Any, count: int) -> list[Any]:
    """The `count` values of a task that returned `value`. ValueError if it is not that many."""
    if not isinstance(value, (tuple, list)) and not hasattr(value, "__iter__"):
        raise ValueError(
            f"The task returned {value!r}, but num_returns={count}: return a tuple of {count} values"
        )
    items = list(value)
    if len(items) != count:
        raise ValueError(
            f"Task returned {len(items)} objects, but num_returns={count}: return exactly that many"
        )
    return items


def stream(value: Any) -> Iterable[Any]:
    """The items of a streaming or dynamic task that returned `value`. ValueError if it has none."""
    if not hasattr(value, "__iter__"):
        raise ValueError(
            "num_returns='streaming' or 'dynamic' needs a generator, "
            f"but the task returned {type(value).__name__}"
        )
    items: Iterable[Any] = value
    return items


def too_few(name: str, yielded: int, count: int) -> ValueError:
    """The error of a generator that ended before it had filled its `count` returns."""
    return ValueError(f"{name} yielded {yielded} values, but num_returns={count}: yield exactly that many")
