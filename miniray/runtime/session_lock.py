"""Which session directories are alive: their processes hold a lock in them.

A directory vanishes with its session whatever single process is killed; only when all of them are
killed at the same moment (a container that ends, say) does it stay. The driver it was made for removes
it then, or the next daemon of this user. A lock, unlike a pid, means the same in every pid namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

NAME = "lock"
YOUNG_S = 10.0
"""A directory is left alone for so long: its daemon may just be starting."""


def hold(directory: str) -> int:
    """Lock `directory` for this process and the children it forks, until the last of them ends."""
    fd = os.open(os.path.join(directory, NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def sweep(root: str) -> list[str]:
    """Remove this user's session directories that nobody holds. Returns them."""
    removed = []
    prefix = f"miniray-{os.getuid()}-"
    with contextlib.suppress(OSError):
        for entry in os.scandir(root):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False) and _is_dead(entry):
                remove(entry.path)
                removed.append(entry.path)
    return removed


def remove_when_dead(directory: str, within_s: float = 2.0) -> None:
    """Wait until a directory that was made for this process is gone; delete it if nobody does.

    After `within_s` it is left to its processes, which are still about to end.
    """
    deadline = time.monotonic() + within_s
    while os.path.isdir(directory):
        if not _is_held(directory):
            remove(directory)
        elif time.monotonic() > deadline:
            return
        else:
            time.sleep(0.01)


def remove(directory: str) -> None:
    """Delete a directory with all that is in it, as far as that is possible."""
    import shutil  # takes some milliseconds, and no session needs it to start

    shutil.rmtree(directory, ignore_errors=True)


def _is_dead(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat()
    except OSError:
        return False
    if found.st_uid != os.getuid() or time.time() - found.st_mtime < YOUNG_S:
        return False
    return not _is_held(entry.path)


def _is_held(directory: str) -> bool:
    try:
        fd = os.open(os.path.join(directory, NAME), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return not os.path.isdir(directory)  # never locked: its daemon did not come so far
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
