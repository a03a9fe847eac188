"""Processes of a session when nobody is left who could say so: found by a mark that they inherit.

Raylet, guardian and zygote find what the user's code has started by its parents. When all three are
killed at the same moment those become children of init, in sessions of their own perhaps, with a clean
environment. So a raylet sets a resource limit that Linux keeps, shows and hands to children through
fork, exec, setsid and sudo, and that limits nothing (RLIMIT_LOCKS, since 2.4.25): its soft value is the
session's number. It costs one system call. Limit: who lowers the hard one, or a kernel that does not
have it, goes without.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time

LIMIT = 10
"""RLIMIT_LOCKS, which Python has no name for."""
SHOWN_AS = "Max file locks"
LARGEST = (1 << 61) - 1


def number_of(directory: str) -> int:
    """The number of the session with this directory: of its name, which is random."""
    return int.from_bytes(os.fsencode(os.path.basename(directory)), "little") % LARGEST


def mark(directory: str) -> None:
    """From now on this process, and all that it starts, can be told to belong to the session."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(LIMIT, (number_of(directory), resource.getrlimit(LIMIT)[1]))


def end_all_of(directory: str, within_s: float = 5.0) -> int:
    """SIGKILL every process of the session, until there is none. Returns how many there were.

    Those that have become another user's are left alone, if they are not this one's to end.
    """
    number = str(number_of(directory))
    deadline = time.monotonic() + within_s
    ended: set[int] = set()
    others: set[int] = set()
    while found := _all_of(number) - others:
        for pid in found:
            (ended if _end(pid, number) else others).add(pid)
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    return len(ended)


def end_if_of(directory: str) -> None:
    """End this process if it belongs to the session, as a driver does that a job has started."""
    if resource.getrlimit(LIMIT)[0] == number_of(directory):
        os.kill(os.getpid(), signal.SIGKILL)


def _all_of(number: str) -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and _is_of(name, number)}


def _end(pid: int, number: str) -> bool:
    """Kill a process if it still is the one that was found: a pidfd is of one process alone.

    False for one that is not this user's to end.
    """
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        if _is_of(str(pid), number):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except PermissionError:
        return False
    except OSError:
        pass
    finally:
        os.close(fd)
    return True


def _is_of(pid: str, number: str) -> bool:
    """Whether a process has this number, and lives; never this process itself."""
    try:
        with open(f"/proc/{pid}/limits") as file:
            shown = next((line for line in file if line.startswith(SHOWN_AS)), "")
        if shown[len(SHOWN_AS) :].split()[:1] != [number] or int(pid) == os.getpid():
            return False
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
