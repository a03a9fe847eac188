"""Which session directories are alive: their processes hold a lock in them.

A directory vanishes with its session whatever single process is killed; only when all are killed at
the same moment that would remove it does it stay: see `remains`. A lock, unlike a pid, means the same in
every pid namespace. It is there, held, or not there at all: never a moment without its holder.
The file names what the session has elsewhere.
"""

from __future__ import annotations

import contextlib
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


def take_over(directory: str) -> int | None:
    """The lock of a directory that those who held it have left behind. None while somebody holds it.

    A descriptor: nobody else takes it over until that is closed. FileNotFoundError where there is no lock:
    the directory was not locked yet, or is all but removed.
    """
    fd = os.open(os.path.join(directory, NAME), os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def elsewhere(lock: int) -> str:
    """What the `hold` of a lock that was taken over was told; "" for nothing."""
    return os.fsdecode(os.pread(lock, os.fstat(lock).st_size, 0))


def remove(directory: str) -> None:
    """Delete a directory with all that is in it, as far as that is possible, its lock last."""
    import shutil  # takes some milliseconds, and no session needs it to start

    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != NAME:
                os.unlink(entry.path)
    shutil.rmtree(directory, ignore_errors=True)
