"""Directories of sessions that were killed whole are removed by the next one; living ones never."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from miniray.runtime import session_lock


def session(root: Path, name: str) -> Path:
    directory = root / f"miniray-{os.getuid()}-{name}"
    directory.mkdir()
    return directory


def age(directory: Path) -> None:
    past = time.time() - session_lock.YOUNG_S - 10
    os.utime(directory, (past, past))


def test_only_what_nobody_holds_goes(tmp_path: Path) -> None:
    held, dead = session(tmp_path, "held"), session(tmp_path, "dead")
    young, old = session(tmp_path, "young"), session(tmp_path, "old")
    other = tmp_path / "miniray-elsewhere"
    other.mkdir()
    fd = session_lock.hold(str(held))
    os.close(session_lock.hold(str(dead)))
    for directory in (held, dead, old, other):
        age(directory)
    assert sorted(session_lock.sweep(str(tmp_path))) == sorted([str(dead), str(old)])
    assert held.exists() and young.exists() and other.exists()
    os.close(fd)
    age(held)
    assert session_lock.sweep(str(tmp_path)) == [str(held)]


def test_a_fork_holds_on_for_its_parent(tmp_path: Path) -> None:
    directory = session(tmp_path, "forked")
    code = (
        f"import os, time; from miniray.runtime import session_lock\nsession_lock.hold({str(directory)!r})\n"
        "if os.fork() == 0: time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    parent.wait()
    age(directory)
    assert session_lock.sweep(str(tmp_path)) == []
    os.killpg(parent.pid, 9)
    deadline = time.monotonic() + 10
    while session_lock.sweep(str(tmp_path)) == []:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_directory_that_is_no_place_of_ours_is_no_error(tmp_path: Path) -> None:
    assert session_lock.sweep(str(tmp_path / "nowhere")) == []
