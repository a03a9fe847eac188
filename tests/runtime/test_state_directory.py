"""What outlives a session lies where nobody else can put something in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from miniray.commands import start
from miniray.runtime import kept_logs, state_directory
from miniray.runtime.daemon import HeadOptions
from miniray.runtime.head_daemon import _own_file
from miniray.runtime.sqlite_storage import SqliteStorage
from miniray.runtime.storage import StorageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a umask that gives everything to everybody."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    former = os.umask(0)
    try:
        yield tmp_path  # type: ignore[misc]
    finally:
        os.umask(former)


def open_to_others(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.stat().st_mode & 0o077]


def test_whatever_the_umask_nobody_else_can_enter(home: Path) -> None:
    log = start.log_file("head")
    assert log.parent == home / ".local/state/miniray/logs"
    path = _own_file(HeadOptions(port=7001))
    assert path == home / ".local/state/miniray/head-7001.sqlite"
    SqliteStorage(str(path)).close()
    SqliteStorage(str(home / "elsewhere" / "below" / "tables.sqlite")).close()
    session = home / "miniray-0-aa"
    (session / "logs").mkdir(parents=True)
    (session / "logs" / "daemon.log").write_text("why")
    kept_logs.keep(str(session))
    assert (home / ".local/state/miniray/logs/miniray-0-aa/daemon.log").exists()
    assert [path for path in open_to_others(home) if session not in (path, *path.parents)] == []


def test_one_that_was_left_open_is_closed_and_its_neighbours_stay_as_they_are(home: Path) -> None:
    left = home / ".local" / "state" / "miniray"
    left.mkdir(parents=True)
    assert state_directory.make() == str(left)
    assert left.stat().st_mode & 0o777 == 0o700
    assert left.parent.stat().st_mode & 0o777 == 0o777


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_one_of_another_user_is_refused_before_tables_are_read_from_it(home: Path) -> None:
    state_directory.make()
    os.chown(state_directory.place(), 65534, 65534)
    with pytest.raises(state_directory.NotOurs, match="another user .uid 65534.*XDG_STATE_HOME"):
        state_directory.make("logs")
    with pytest.raises(StorageError, match="another user"):
        _own_file(HeadOptions(port=7001))
