"""The storage contract, over every implementation; and what only a file can go through."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from miniray.runtime import storage as st
from miniray.runtime.sqlite_storage import SqliteStorage

Factory = Callable[[], st.Storage]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Factory:
    """Opens the same storage again, as another head would."""
    if request.param == "memory":
        tables = st.MemoryTables()
        return lambda: st.MemoryStorage(tables)
    return lambda: SqliteStorage(str(tmp_path / "dir" / "gcs.db"))


def rows(storage: st.Storage) -> list[st.Row]:
    return sorted(storage.load())


def test_what_was_applied_is_loaded_by_the_next_head(reopen: Factory) -> None:
    first = reopen()
    first.claim()
    first.apply([("kv", b"a", b"1"), ("kv", b"b", b""), ("job", b"a", b"\x00\xff")])
    first.apply([("kv", b"a", b"2"), ("job", b"a", None), ("job", b"never", None)])
    first.close()
    second = reopen()
    assert rows(second) == [("kv", b"a", b"2"), ("kv", b"b", b"")]
    second.close()


def test_the_last_change_of_a_row_in_a_batch_counts(reopen: Factory) -> None:
    storage = reopen()
    storage.claim()
    storage.apply([("kv", b"a", b"1"), ("kv", b"a", None), ("kv", b"a", b"3")])
    storage.apply([("kv", b"b", b"1"), ("kv", b"b", None)])
    assert rows(storage) == [("kv", b"a", b"3")]
    storage.close()


def test_epochs_grow_with_every_claim(reopen: Factory) -> None:
    first, second = reopen(), reopen()
    assert first.claim() < second.claim()
    assert reopen().claim() == 3


def test_a_head_that_was_taken_over_cannot_write(reopen: Factory) -> None:
    old, new = reopen(), reopen()
    old.claim()
    old.apply([("kv", b"a", b"old")])
    new.claim()
    with pytest.raises(st.StorageFenced, match="another head"):
        old.apply([("kv", b"a", b"stale"), ("kv", b"b", b"stale")])
    new.apply([("kv", b"c", b"new")])
    assert rows(new) == [("kv", b"a", b"old"), ("kv", b"c", b"new")]


def test_an_empty_batch_is_harmless(reopen: Factory) -> None:
    storage = reopen()
    storage.claim()
    storage.apply([])
    assert storage.load() == []


def test_a_batch_survives_kill_9_right_after_apply(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    program = (
        "import os, sys; from miniray.runtime.sqlite_storage import SqliteStorage\n"
        "s = SqliteStorage(sys.argv[1]); s.claim()\n"
        "s.apply([('kv', b'k%d' % i, b'v') for i in range(100)]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -9
    assert len(SqliteStorage(str(path)).load()) == 100


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    path.write_bytes(b"this is not a database at all, and long enough to be read" * 20)
    with pytest.raises(st.StorageCorrupted, match=r"gcs\.db is damaged .* move it away"):
        SqliteStorage(str(path))


def test_a_file_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    storage = SqliteStorage(str(path))
    storage.claim()
    storage.apply([("kv", os.urandom(20), os.urandom(2000)) for _ in range(200)])
    storage.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(size // 2))
    with pytest.raises(st.StorageCorrupted):
        SqliteStorage(str(path)).load()


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(st.StorageError, match="later miniray"):
        SqliteStorage(str(path))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(st.StorageError, match="cannot be opened"):
        SqliteStorage(str(tmp_path))


def test_the_file_is_private(tmp_path: Path) -> None:
    SqliteStorage(str(tmp_path / "gcs.db"))
    assert (tmp_path / "gcs.db").stat().st_mode & 0o777 == 0o600


def test_urls_pick_the_implementation(tmp_path: Path) -> None:
    assert isinstance(st.open_storage(""), st.NoStorage)
    assert isinstance(st.open_storage("none:"), st.NoStorage)
    assert isinstance(st.open_storage(f"sqlite:{tmp_path}/a.db"), SqliteStorage)
    assert isinstance(st.open_storage(f"{tmp_path}/b.db"), SqliteStorage)
    with pytest.raises(st.StorageError, match="not known"):
        st.open_storage("oracle://x")
