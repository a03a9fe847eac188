"""What was being done when an error was raised: a line below its traceback, in parentheses.

Notes are those of PEP 678, which Python 3.10 does not print by itself: `runtime.errors` does. Any thread.
"""

from __future__ import annotations

import contextlib

WHILE = "(while "


def add(error: BaseException, doing: str) -> None:
    """Add "(while `doing`)" to what is told of `error`; nothing for one that takes no attributes."""
    with contextlib.suppress(AttributeError, TypeError):
        error.__notes__ = [*of(error), f"{WHILE}{doing})"]  # type: ignore[attr-defined]


def of(error: BaseException) -> list[str]:
    """The notes of an error, oldest first."""
    found = getattr(error, "__notes__", None)
    return [note for note in found if isinstance(note, str)] if isinstance(found, list) else []


def told(error: BaseException) -> str:
    """An error and its notes in a line."""
    return " ".join([f"{type(error).__name__}: {error}", *of(error)])
