"""At which line references were made, where that is asked for: `MINIRAY_RECORD_REF_CREATION_SITES=1`.

The worker's own methods are wrapped when it starts, so whoever does not ask pays nothing. Kept per
object, the first site of each kind; the oldest are forgotten beyond `SITES_KEPT`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from miniray.runtime import own_code

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

SITES_KEPT = 200_000


class Sites:
    """The sites of one process, by object id."""

    def __init__(self) -> None:
        self._lines: dict[bytes, str] = {}

    def note(self, made: Any, what: str) -> None:
        """One reference, or a list of them, was made by the caller's caller."""
        line = f"{what} at {_line()}"
        for ref in made if isinstance(made, list) else [made]:
            oid = ref.binary() if hasattr(ref, "binary") else None
            if oid is not None:
                self._lines.setdefault(oid, line)
        while len(self._lines) > SITES_KEPT:
            del self._lines[next(iter(self._lines))]

    def of(self, oid: bytes) -> list[str]:
        """The line, if it is known."""
        line = self._lines.get(oid)
        return [line] if line is not None else []


def install(worker: CoreWorker) -> None:
    """Record from now on."""
    recorded = Sites()
    worker.sites = recorded

    def wrap(name: str, what: str) -> None:
        method: Callable[..., Any] = getattr(worker, name)

        def recording(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            recorded.note(made, what)
            return made

        setattr(worker, name, recording)

    wrap("submit_task", "the reference was made by a task's submission")
    wrap("submit_actor_task", "the reference was made by a call's submission")
    wrap("put", "the reference was made by put")
    wrap("ref_restored", "the reference came inside a value that was loaded")
    wrap("refs_restored", "the reference came inside a value that was loaded")


def of(worker: CoreWorker, oid: bytes) -> list[str]:
    """Where this process got its reference, if it was to remember."""
    return worker.sites.of(oid) if worker.sites is not None else []


def _line() -> str:
    """The innermost line that is not miniray's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and own_code.is_package(frame.f_code.co_filename):
        frame = frame.f_back
    return own_code.place(frame)
