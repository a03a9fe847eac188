"""Which session directories are alive: their processes hold a lock in them.

A directory vanishes with its session whatever single process is killed; only when all are killed at
the same moment that would remove it does it stay: see `remains`. A lock, unlike a pid, means the same in
every pid namespace. It is there, held, or not there at all: never a moment without its holder.
The file names what the session has elsewhere.
"""

from __future__ import annotations

import fcntl
import os

NAME = "lock"


def hold(directory: str, elsewhere: str = "") -> int:
    """Lock `directory` for this process and the children it forks, until the last of them ends.

    `elsewhere` is a directory that goes with it.
    """
    path = os.path.join(directory, NAME)
    fd = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, os.fsencode(elsewhere))
    os.rename(f"{path}.new", path)
    return fd


def elsewhere(directory: str) -> str:
    """What `hold` was told; "" for nothing."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            return os.fsdecode(file.read())
    except OSError:
        return ""


def is_held(directory: str) -> bool:
    """Whether a process that would remove it lives. False for one that was never locked."""
    try:
        fd = os.open(os.path.join(directory, NAME), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return not os.path.isdir(directory)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def remove(directory: str) -> None:
    """Delete a directory with all that is in it, as far as that is possible."""
    import shutil  # takes some milliseconds, and no session needs it to start

    shutil.rmtree(directory, ignore_errors=True)
