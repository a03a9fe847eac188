"""What sessions that were killed whole have left is cleared away by the next; living ones never are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miniray.runtime import remains, session_lock
from tests.system.support import alive, eventually


def session(root: Path, name: str) -> Path:
    directory = root / f"miniray-{os.getuid()}-{name}"
    directory.mkdir()
    return directory


def age(directory: Path) -> None:
    past = time.time() - remains.YOUNG_S - 10
    os.utime(directory, (past, past))


def test_only_what_nobody_holds_goes(tmp_path: Path) -> None:
    held, dead = session(tmp_path, "held"), session(tmp_path, "dead")
    young, old = session(tmp_path, "young"), session(tmp_path, "old")
    other = tmp_path / "miniray-elsewhere"
    other.mkdir()
    fd = session_lock.hold(str(held))
    os.close(session_lock.hold(str(dead)))
    for directory in (old, other):
        age(directory)
    assert sorted(remains.sweep(str(tmp_path))) == sorted([str(dead), str(old)])
    assert held.exists() and young.exists() and other.exists()
    os.close(fd)
    assert remains.sweep(str(tmp_path)) == [str(held)]


def test_a_fork_holds_on_for_its_parent(tmp_path: Path) -> None:
    directory = session(tmp_path, "forked")
    code = (
        f"import os, time; from miniray.runtime import session_lock\nsession_lock.hold({str(directory)!r})\n"
        "if os.fork() == 0: time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    parent.wait()
    assert remains.sweep(str(tmp_path)) == []
    os.killpg(parent.pid, 9)
    eventually(lambda: remains.sweep(str(tmp_path)), "nobody holds it")


def test_where_it_spilled_to_goes_too(tmp_path: Path) -> None:
    directory, spilled = session(tmp_path, "spiller"), tmp_path / "spilled"
    spilled.mkdir()
    os.close(session_lock.hold(str(directory), str(spilled)))
    assert remains.sweep(str(tmp_path)) == [str(directory)]
    assert not spilled.exists()


def test_processes_of_a_dead_session_end_however_they_were_started(tmp_path: Path) -> None:
    dead, living = session(tmp_path, "dead"), session(tmp_path, "living")
    fd = session_lock.hold(str(living))
    os.close(session_lock.hold(str(dead)))
    started: list[list[int]] = []
    for directory in (dead, living):
        code = (
            f"import subprocess, sys; from miniray.runtime import orphans\norphans.mark({str(directory)!r})\n"
            "quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}\n"
            "clean = subprocess.Popen(['sleep', '1000'], env={}, start_new_session=True, **quiet)\n"
            "shell = 'setsid sleep 1000 >/dev/null 2>&1 & echo $!'\n"
            "twice = subprocess.run(['sh', '-c', shell], capture_output=True)\n"
            "print(clean.pid, int(twice.stdout))\n"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        started.append([int(word) for word in told.stdout.split()])
    of_dead, of_living = started
    try:
        assert all(alive(pid) for pid in (*of_dead, *of_living))
        assert remains.sweep(str(tmp_path)) == [str(dead)]
        eventually(lambda: not any(alive(pid) for pid in of_dead), "they end")
        assert all(alive(pid) for pid in of_living)
    finally:
        os.close(fd)
        remains.sweep(str(tmp_path))
    eventually(lambda: not any(alive(pid) for pid in of_living), "they end, too")


def test_a_session_that_is_about_to_end_in_order_is_not_dead(tmp_path: Path) -> None:
    """Its lock is gone already, or still held: its processes are left to it."""
    directory = session(tmp_path, "ending")
    code = (
        "import os, time; from miniray.runtime import orphans, session_lock\n"
        f"orphans.mark({str(directory)!r}); session_lock.hold({str(directory)!r}, '/elsewhere')\n"
        "print('held', flush=True); time.sleep(1000)\n"
    )
    raylet = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert raylet.stdout is not None and raylet.stdout.readline() == b"held\n"
        assert not remains.clear(str(directory))
        (directory / session_lock.NAME).unlink()
        assert remains.sweep(str(tmp_path)) == []
        remains.clear_when_dead(str(directory))
        assert not directory.exists() and raylet.poll() is None
    finally:
        raylet.kill()
        raylet.communicate()


def test_a_session_that_begins_while_it_is_looked_at_is_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = session(tmp_path, "beginning")
    locks: list[int] = []
    take_over = session_lock.take_over

    def between(place: str) -> int | None:
        try:
            return take_over(place)
        finally:
            locks.append(session_lock.hold(place))

    monkeypatch.setattr(session_lock, "take_over", between)
    assert remains.sweep(str(tmp_path)) == [] and directory.exists()
    os.close(locks[0])


def test_a_lock_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = session(tmp_path, "full")
    os.close(session_lock.hold(str(directory)))
    (directory / "logs").mkdir()
    (directory / "socket").touch()
    removed: list[str] = []
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: removed.append(path))
    session_lock.remove(str(directory))
    assert removed == [str(directory / "logs"), str(directory)]
    assert sorted(os.listdir(directory)) == [session_lock.NAME, "logs"]


def test_a_directory_that_is_no_place_of_ours_is_no_error(tmp_path: Path) -> None:
    assert remains.sweep(str(tmp_path / "nowhere")) == []
