"""What a session leaves when all who would clean up were killed at the same moment, and who removes it.

Raylet, guardian and zygote of a node, or head and janitor. What is left then are processes that the
user's code had started (`orphans`), the session directory, and where it spilled to. Whoever learns of
it first clears it away: the session's driver, another daemon of this user on this machine that has lost
its connection to that one, else the next that starts here, or `miniray stop`. Processes are only ended by
who has taken over the session's lock: a session that starts, or that is about to end in order, is not dead.
Any thread; all of it may happen twice at a time. Limit: what was spilled to a URL stays.
"""

from __future__ import annotations

import contextlib
import os
import time

from miniray.runtime import session_lock

YOUNG_S = 10.0
"""A directory without a lock is left alone for so long: its daemon may just be starting."""


def clear(directory: str) -> bool:
    """Remove all that is left of a session that nobody holds, this process too if it is of it.

    False when somebody does hold it. FileNotFoundError for a directory without a lock.
    """
    from miniray.runtime import kept_logs, orphans

    lock = session_lock.take_over(directory)
    if lock is None:
        return False
    try:
        orphans.end_all_of(directory)
        kept_logs.keep_unsettled(directory)
        elsewhere = session_lock.elsewhere(lock)
        if elsewhere and "://" not in elsewhere:
            session_lock.remove(elsewhere)
        session_lock.remove(directory)
    finally:
        os.close(lock)
    orphans.end_if_of(directory)
    return True


def clear_when_dead(directory: str, within_s: float = 2.0) -> None:
    """Wait until a directory that was made for this process is gone; clear it away if nobody does.

    After `within_s` it is left to its processes, which are still about to end.
    """
    deadline = time.monotonic() + within_s
    while os.path.isdir(directory):
        try:
            clear(directory)
        except FileNotFoundError:
            session_lock.remove(directory)
        except OSError:
            return  # its lock is not ours to look at
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def sweep(root: str) -> list[str]:
    """Clear away this user's sessions below `root` that nobody holds. Returns their directories."""
    cleared = []
    prefix = f"miniray-{os.getuid()}-"
    with contextlib.suppress(OSError):
        for entry in os.scandir(root):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False) and _swept(entry):
                cleared.append(entry.path)
    return cleared


def _swept(entry: os.DirEntry[str]) -> bool:
    """Whether this was a dead session's, and is cleared away."""
    try:
        found = entry.stat(follow_symlinks=False)
        return found.st_uid == os.getuid() and clear(entry.path)
    except FileNotFoundError:
        is_left = os.path.isdir(entry.path) and time.time() - found.st_mtime > YOUNG_S
        if is_left:
            session_lock.remove(entry.path)
        return is_left
    except OSError:
        return False
