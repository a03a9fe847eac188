"""What a run has left on the machine: processes, names in shared memory, files of the temporary directory.

Every process that a run starts inherits a mark in its environment, or is a descendant of one that
did; whoever cleans its environment is found by its parent.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MARK = "MINIRAY_CHAOS_MARK"


def mark_processes() -> None:
    """From now on what this process starts can be told from everything else."""
    os.environ[MARK] = uuid.uuid4().hex


def marked() -> dict[int, str]:
    """Living processes that this run has started: pid -> command line."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in entry.joinpath("environ").read_bytes() and state_of(int(entry.name)) not in "ZX":
                found[int(entry.name)] = command_of(int(entry.name))
        except OSError:
            continue  # ended meanwhile, or somebody else's
    return {pid: text for pid, text in found.items() if "multiprocessing.resource_tracker" not in text}


def state_of(pid: int) -> str:
    """One letter of /proc (R, S, T, Z, …); "X" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def command_of(pid: int) -> str:
    """Its command line; "" when it has none, or has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Neither ended nor a zombie."""
    return state_of(pid) not in "ZX"


def names(directory: str) -> list[str]:
    """Every name below the temporary directory, and miniray's in shared memory."""
    found = [os.path.join(folder, name) for folder, folders, files in os.walk(directory)
             for name in (*folders, *files)]
    shared = Path("/dev/shm")
    if shared.is_dir():
        found += [str(path) for path in shared.iterdir() if "miniray" in path.name]
    return sorted(found)


class Leftovers(Exception):
    """What is still there after its time; the text lists it."""


@dataclass
class Gone:
    """How long after the end of the block everything was as before."""

    seconds: float = 0.0
    also: dict[int, str] = field(default_factory=dict)
    """Processes (pid -> when it started) that must have ended too, with or without the mark."""


@contextmanager
def nothing_left(directory: str, within_s: float) -> Iterator[Gone]:
    """Processes and names must be the same after the block as before it, `within_s` later at most."""
    before_processes, before_names = marked(), names(directory)
    gone = Gone()
    yield gone
    left: list[str] = []
    ended = time.monotonic()

    def same() -> bool:
        left[:] = [f"process {pid}: {text}" for pid, text in marked().items() if pid not in before_processes]
        left.extend(f"process {pid}: {command_of(pid)}" for pid, start in gone.also.items()
                    if started_at(pid) == start)
        left.extend(f"name {name}" for name in names(directory) if name not in before_names)
        return not left

    if not wait_for(same, within_s):
        raise Leftovers(f"left after {within_s} s:\n  " + "\n  ".join(left[:40]))
    gone.seconds = time.monotonic() - ended


def wait_for(condition: Callable[[], object], within_s: float) -> bool:
    """Poll until the condition holds; False when the time was up first."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def started_at(pid: int) -> str:
    """When it started, in ticks: tells it from a later process of its number; "" when it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]


def parent_of(pid: int) -> int:
    """Its parent's pid, 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def name_of(pid: int) -> str:
    """The name that `ps` shows."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
