"""Session directories: where the daemons of this user live, and how others find them.

::

    /tmp/miniray-<uid>-<8 hex>/     0700; MINIRAY_TMPDIR, RAY_TMPDIR or TMPDIR replace /tmp
        node.json  or  head.json    {"pid", "address": "HOST:PORT" of the GCS or "", "node_id", "socket"}
        token                       0600: the cluster's token
        raylet.sock, logs/          nodes only
        over                        written by `miniray stop`: the head's tables are not needed any more

A file is written whole (rename), after the daemon can be reached; the directory goes when the
daemon ends. A session whose daemon is gone (kill -9 of everything at once) is skipped by readers.
Standard library only: the command line and `init()` read this before they load anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from dataclasses import dataclass
from typing import Any

from miniray import config

KINDS = ("head", "node")


@dataclass(frozen=True)
class Session:
    """One living daemon of this user."""

    kind: str
    """"head", or "node" (which, with an address of "", holds its own head)."""
    directory: str
    pid: int
    address: str
    """HOST:PORT of the GCS; "" for a local session, which listens on no port."""
    node_id: str
    socket: str
    written_at: float
    """Seconds since the epoch."""
    http: str = ""
    """A head's HTTP server, "http://HOST:PORT"; "" when it has none."""
    is_drivers_own: bool = False
    """A node that a driver outside its cluster has for itself, and that ends with it."""

    def token(self) -> str:
        """The cluster's token; OSError when the file is gone."""
        return _text(os.path.join(self.directory, "token")).strip()


def root() -> str:
    """The directory that holds session directories."""
    return str(config.get("tmpdir") or "/tmp")


def place(parent: str = "") -> str:
    """The path of a session directory to come, below `parent` instead of `root()`."""
    return os.path.join(parent or root(), f"{_prefix()}{os.urandom(4).hex()}")


def create(directory: str = "") -> str:
    """Make a session directory that only this user can enter, at a `place` of its own or that one.

    Where there is no such parent it is made, for this user alone.
    """
    directory = directory or place()
    os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
    os.mkdir(directory, mode=0o700)
    return directory


def write_private(path: str, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def publish(
    directory: str, kind: str, *, address: str, node_id: str = "", socket: str = "", http: str = "",
    is_drivers_own: bool = False,
) -> None:
    """Announce this process as the daemon of `directory`; it can be reached from now on."""
    assert kind in KINDS, kind
    info = {"pid": os.getpid(), "address": address, "node_id": node_id, "socket": socket, "http": http,
            "is_drivers_own": is_drivers_own}  # fmt: skip
    write_private(os.path.join(directory, f"{kind}.json"), json.dumps(info))


def declare_over(directory: str) -> None:
    """The cluster of this head shall not come back. Does nothing when its directory has gone."""
    with contextlib.suppress(OSError):
        write_private(os.path.join(directory, "over"), "")


def is_over(directory: str) -> bool:
    """Whether somebody has declared it over."""
    return os.path.exists(os.path.join(directory, "over"))


def living() -> list[Session]:
    """The sessions of this user whose daemon lives, newest first."""
    found = []
    top = root()
    try:
        names = [name for name in os.listdir(top) if name.startswith(_prefix())]
    except OSError:
        return []
    for name in names:
        for kind in KINDS:
            session = _read(os.path.join(top, name), kind)
            if session is not None and _started_before(session.pid, session.written_at):
                found.append(session)
    return sorted(found, key=lambda session: session.written_at, reverse=True)


def find(address: str = "auto", *, kind: str = "node") -> Session | None:
    """The newest session of a cluster: "auto" any, "HOST:PORT" the one with this GCS address."""
    for session in living():
        if session.kind == kind and address in ("auto", session.address):
            return session
    return None


def _read(directory: str, kind: str) -> Session | None:
    path = os.path.join(directory, f"{kind}.json")
    try:
        if not is_private(directory):
            return None  # somebody else made something of our name
        info: dict[str, Any] = json.loads(_text(path))
        written_at = os.stat(path).st_mtime
        return Session(
            kind, directory, int(info["pid"]), info["address"], info["node_id"], info["socket"], written_at,
            info.get("http", ""), bool(info.get("is_drivers_own")),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_private(directory: str) -> bool:
    """Whether only this user can have written what is in it: no link to where others write, too."""
    found = os.lstat(directory)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _started_before(pid: int, moment: float) -> bool:
    """True when `pid` lives and is older than `moment`: the writer, not a later user of its number."""
    try:
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return False
    state, start_ticks = fields[0], int(fields[19])
    uptime = float(_text("/proc/uptime").split()[0])
    started_at = time.time() - uptime + start_ticks / os.sysconf("SC_CLK_TCK")
    return state != "Z" and started_at <= moment + 1.0


def _prefix() -> str:
    return f"miniray-{os.getuid()}-"


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()
