"""Logs that outlive their session: those of a daemon that was killed, or that failed.

A session directory always vanishes. When its raylet did not end in order (kill -9, the loss of its
zygote, an error), what it and its workers had logged is copied to `$XDG_STATE_HOME/miniray/logs/`
(~/.local/state/…) under the session directory's name: the end of each file, and the newest `KEPT`
sessions. The raylet does it if it can, else its zygote, so nothing here may raise or take long.
"""

from __future__ import annotations

import contextlib
import os

from miniray.runtime import state_directory

FILE_BYTES = 1 << 20
FILES = 200
KEPT = 10
ENDED = "ended"
"""A file in the session directory of a raylet that looks after its logs itself."""


def place_of(session_dir: str) -> str:
    """Where the logs of a session go if it fails."""
    return state_directory.place("logs", os.path.basename(session_dir))


def settle(session_dir: str, failed: bool) -> None:
    """The raylet ends: keep its logs if it `failed`, and tell the zygote that this is done."""
    with contextlib.suppress(OSError):
        if failed:
            keep(session_dir)
        os.close(os.open(os.path.join(session_dir, ENDED), os.O_CREAT | os.O_WRONLY, 0o600))


def keep_unsettled(session_dir: str) -> None:
    """The raylet has gone; keep its logs unless it has ended in order."""
    with contextlib.suppress(OSError):
        if os.path.isdir(session_dir) and not os.path.exists(os.path.join(session_dir, ENDED)):
            keep(session_dir)


def keep(session_dir: str) -> None:
    """Copy the logs, if there is anything in them. OSError."""
    logs = os.path.join(session_dir, "logs")
    found = [entry for entry in os.scandir(logs) if entry.is_file() and entry.stat().st_size]
    if not found:
        return
    found.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    place = state_directory.make("logs", os.path.basename(session_dir))
    for entry in found[:FILES]:
        _copy_end(entry.path, os.path.join(place, entry.name))
    _drop_oldest(os.path.dirname(place))


def _copy_end(source: str, target: str) -> None:
    with open(source, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - FILE_BYTES))
        data = file.read(FILE_BYTES)
    with open(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as copy:
        copy.write(data)


def _drop_oldest(folder: str) -> None:
    """Of the sessions' folders; what else is there is none of ours."""
    kept = [entry for entry in os.scandir(folder) if entry.is_dir() and entry.name.startswith("miniray-")]
    kept.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in kept[KEPT:]:
        import shutil

        shutil.rmtree(entry.path, ignore_errors=True)
