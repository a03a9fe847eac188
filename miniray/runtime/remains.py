"""What a session leaves when all who would clean up were killed at the same moment, and who removes it.

Raylet, guardian and zygote of a node, or head and janitor. What is left then are processes that the
user's code had started (`orphans`), the session directory, and where it spilled to. Whoever learns of
it first clears it away: the session's driver, another daemon of this user on this machine that has lost
its connection to that one, else the next that starts here, or `miniray stop`. Any thread; all of it may
happen twice at a time. Limit: what was spilled to a URL stays.
"""

from __future__ import annotations

import contextlib
import os
import time

from miniray.runtime import session_lock

YOUNG_S = 10.0
"""A directory without a lock is left alone for so long: its daemon may just be starting."""


def clear(directory: str) -> None:
    """Remove all that is left of a session that nobody holds any more, this process too if it is of it."""
    from miniray.runtime import kept_logs, orphans

    orphans.end_all_of(directory)
    kept_logs.keep_unsettled(directory)
    elsewhere = session_lock.elsewhere(directory)
    if elsewhere and "://" not in elsewhere:
        session_lock.remove(elsewhere)
    session_lock.remove(directory)
    orphans.end_if_of(directory)


def clear_when_dead(directory: str, within_s: float = 2.0) -> None:
    """Wait until a directory that was made for this process is gone; clear it away if nobody does.

    After `within_s` it is left to its processes, which are still about to end.
    """
    deadline = time.monotonic() + within_s
    while os.path.isdir(directory):
        if not session_lock.is_held(directory):
            clear(directory)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def sweep(root: str) -> list[str]:
    """Clear away this user's sessions below `root` that nobody holds. Returns their directories."""
    cleared = []
    prefix = f"miniray-{os.getuid()}-"
    with contextlib.suppress(OSError):
        for entry in os.scandir(root):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False) and _is_dead(entry):
                clear(entry.path)
                cleared.append(entry.path)
    return cleared


def _is_dead(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    if found.st_uid != os.getuid() or session_lock.is_held(entry.path):
        return False
    was_locked = os.path.exists(os.path.join(entry.path, session_lock.NAME))
    return was_locked or time.time() - found.st_mtime > YOUNG_S
