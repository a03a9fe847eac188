"""References that outlive their session: `shutdown()`, then a new `init()`, and an old reference is used.

Its owner, or this process as the owner, is no member of the new cluster, so nobody can be asked for
the object. Whoever takes references from user code refuses such ones here instead of waiting for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from miniray.core.directory import ENDED, ObjectEntry


def refuse(entries: Iterable[ObjectEntry], what: str = "Ray objects") -> None:
    """ValueError naming the first of `entries` whose session has ended."""
    for entry in entries:
        if entry.state == ENDED:
            raise ValueError(
                f"{what} whose owner is unknown cannot be used: {entry.id.hex()} belongs to a session that "
                "has ended with shutdown(). Make it anew in this session."
            )
