"""A damaged database of the head is refused by kind, never taken for an empty one, and can be repaired."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from miniray.runtime import storage as st
from miniray.runtime import storage_care
from miniray.runtime.sqlite_storage import SqliteStorage

TABLES = ("kv", "actor", "job", "node")


def row(number: int) -> st.Row:
    size = 20_000 if number % 50 == 0 else 50 + number % 700        # some go on in overflow pages
    return TABLES[number % 4], b"key%05d" % number, bytes([number % 251]) * size


def filled(path: Path, count: int = 400) -> list[st.Row]:
    """A database as a head leaves it that ended in order; its rows."""
    storage = SqliteStorage(str(path))
    storage.claim()
    rows = [row(number) for number in range(count)]
    for start in range(0, count, 50):
        storage.apply(rows[start : start + 50])
    storage.apply([("kv", b"gone%d" % number, b"secret" * 20) for number in range(50)])
    storage.apply([("kv", b"gone%d" % number, None) for number in range(50)])
    storage.close()
    return sorted(rows)


def killed(path: Path, batches: int) -> None:
    """A database as kill -9 leaves it: its rows are in the -wal."""
    program = (
        "import os, sys; from miniray.runtime.sqlite_storage import SqliteStorage\n"
        "s = SqliteStorage(sys.argv[1]); s.claim()\n"
        "for i in range(int(sys.argv[2])): s.apply([('kv', b'k%d' % i, b'v' * 300)])\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), str(batches)], timeout=60, check=False)
    assert done.returncode == -9


def refused(path: Path) -> st.StorageError:
    """How a head is refused that would start on the file."""
    with pytest.raises(st.StorageError) as caught:
        SqliteStorage(str(path)).load()
    assert str(path) in str(caught.value)
    return caught.value


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    filled(whole)
    size = whole.stat().st_size
    for cut in (0, 1, 50, 100, 4095, 4096, 8192, size // 2, size - 4096):
        path = tmp_path / "gcs.db"
        shutil.copy(whole, path)
        os.truncate(path, cut)
        error = refused(path)
        assert isinstance(error, (st.StorageCorrupted, st.StorageForeign)), (cut, error)
        assert f"miniray storage repair {path}" in str(error), cut


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    rows = filled(whole)
    size = whole.stat().st_size
    generator = random.Random(7)
    seen = 0
    for _ in range(120):
        path = tmp_path / "gcs.db"
        shutil.copy(whole, path)
        at = generator.randrange(size)
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << generator.randrange(8)]))
        try:
            storage = SqliteStorage(str(path))
            found = sorted(storage.load())
            storage.close()
        except st.StorageError as error:
            assert not isinstance(error, st.StorageFenced)
            seen += 1
        else:
            assert found == rows, f"a bit of byte {at} was flipped, and nobody noticed"
        for leftover in tmp_path.glob("gcs.db*"):
            leftover.unlink()
    assert seen > 70, "most bytes are data"


def test_acknowledged_writes_that_went_with_the_wal_are_missed(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    killed(path, 20)
    wal = tmp_path / "gcs.db-wal"
    keep = wal.read_bytes()
    for broken in (b"", keep[: len(keep) // 2], keep[:-100], keep[:5000] + b"\xff" + keep[5001:]):
        shutil.copy(path, tmp_path / "copy.db")
        shutil.copy(tmp_path / "gcs.db-acknowledged", tmp_path / "copy.db-acknowledged")
        (tmp_path / "copy.db-wal").write_bytes(broken)
        error = refused(tmp_path / "copy.db")
        assert isinstance(error, st.StorageCorrupted) and "acknowledged writes are missing" in str(error)
        for leftover in tmp_path.glob("copy.db*"):
            leftover.unlink()
    assert len(SqliteStorage(str(path)).load()) == 20, "with its log it is whole"


def test_a_file_that_was_removed_is_missed_and_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    killed(path, 20)
    path.rename(tmp_path / "kept.db")
    error = refused(path)
    assert isinstance(error, st.StorageCorrupted) and "is missing, and had" in str(error)
    assert not path.exists()
    (tmp_path / "kept.db").rename(path)
    assert len(SqliteStorage(str(path)).load()) == 20, "the refusal has left the log beside it alone"
    for part in tmp_path.glob("gcs.db*"):
        part.unlink()
    assert SqliteStorage(str(path)).load() == []


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_bytes(b"this is not a database at all, and long enough to be read" * 20)
    assert isinstance(refused(text), st.StorageForeign)
    assert text.read_bytes().startswith(b"this is not")
    other = tmp_path / "browser.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()
    before = other.read_bytes()
    error = refused(other)
    assert isinstance(error, st.StorageForeign) and "tables: bookmarks" in str(error)
    assert other.read_bytes() == before
    with pytest.raises(st.StorageError, match="cannot be opened"):
        SqliteStorage(str(tmp_path))


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    error = refused(path)
    assert isinstance(error, st.StorageVersion) and "later miniray (format 99" in str(error)


def test_a_file_of_the_first_format_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE rows (tbl TEXT, key BLOB, value BLOB, PRIMARY KEY (tbl, key)) WITHOUT ROWID")
    connection.execute("CREATE TABLE epoch (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER)")
    connection.execute("INSERT INTO rows VALUES ('kv', ?, ?)", (b"a", b"1"))
    connection.execute("INSERT INTO epoch VALUES (1, 41)")
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    connection.close()
    storage = SqliteStorage(str(path))
    assert storage.claim() > 41
    assert storage.load() == [("kv", b"a", b"1")]
    storage.apply([("kv", b"b", b"2")])
    storage.close()
    assert len(SqliteStorage(str(path)).load()) == 2


def test_a_full_disk_and_a_read_only_file_are_errors_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    rows = filled(path)
    storage = SqliteStorage(str(path))
    storage.claim()
    (pages,) = storage._connection.execute("PRAGMA page_count").fetchone()
    storage._connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(st.StorageFull, match=r"gcs\.db cannot be written .*full.*free some space"):
        storage.apply([("kv", b"more%d" % number, bytes(4000)) for number in range(500)])
    storage._connection.execute("PRAGMA query_only=1")
    with pytest.raises(st.StorageReadOnly, match="the right to write it"):
        storage.apply([("kv", b"a", b"1")])
    storage.close()
    again = SqliteStorage(str(path))
    assert sorted(again.load()) == rows, "a refused batch has left nothing"
    again.close()


def test_repair_keeps_all_that_was_not_hit_and_puts_the_rest_aside(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    rows = filled(path)
    storage = SqliteStorage(str(path))
    epoch = storage.claim()
    storage.close()
    damage = path.read_bytes()
    middle = len(damage) // 2 // 4096 * 4096
    path.write_bytes(damage[:middle] + os.urandom(8192) + damage[middle + 8192 :])
    refused(path)
    assert storage_care.check(str(path)).problem
    done = storage_care.repair(str(path))
    kept = SqliteStorage(str(path))
    found = kept.load()
    assert set(found) <= set(rows) and len(found) > len(rows) * 3 // 4
    assert sum(done.kept.values()) == len(found) and done.lost
    assert not any(key.startswith(b"gone") for _, key, _ in found), "what was deleted stays deleted"
    assert kept.claim() > epoch
    kept.close()
    assert Path(done.aside).exists() and not storage_care.check(str(path)).problem


@pytest.mark.parametrize("hurt", ["header", "schema", "log"])
def test_repair_finds_every_row_when_none_was_hit(tmp_path: Path, hurt: str) -> None:
    path = tmp_path / "gcs.db"
    if hurt == "log":
        killed(path, 30)
        wal = tmp_path / "gcs.db-wal"
        wal.write_bytes(wal.read_bytes()[:-10])
        expected = 29       # of the last batch a page is cut
    else:
        expected = len(filled(path))
        with path.open("r+b") as file:
            file.seek(0 if hurt == "header" else 4000)
            file.write(os.urandom(90))
    refused(path)
    done = storage_care.repair(str(path))
    assert sum(done.kept.values()) == expected
    storage = SqliteStorage(str(path))
    assert len(storage.load()) == expected
    storage.close()


def test_repair_leaves_alone_what_is_sound_absent_or_in_use(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    with pytest.raises(st.StorageError, match="there is no database"):
        storage_care.repair(str(path))
    filled(path)
    with pytest.raises(st.StorageError, match="nothing to repair"):
        storage_care.repair(str(path))
    program = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    os.truncate(path, 5000)
    with pytest.raises(st.StorageError, match=f"process {holder.pid} has .* open: stop that head first"):
        storage_care.repair(str(path))
    holder.communicate()


def miniray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "miniray", *arguments],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip


def test_the_command_checks_and_repairs_and_a_head_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    filled(path)
    sound = miniray("storage", "check", str(path))
    assert sound.returncode == 0 and "is sound: 100 actor, 100 job, 100 kv, 100 node" in sound.stdout
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096))
    head = miniray("head", "--port", "0", "--storage", str(path))
    assert head.returncode == 1 and f"miniray storage repair {path}" in head.stderr, head
    damaged = miniray("storage", "check", str(path))
    assert damaged.returncode == 1 and "is damaged" in damaged.stderr
    repaired = miniray("storage", "repair", str(path))
    assert repaired.returncode == 0, repaired
    assert "kept:" in repaired.stdout and "lost:" in repaired.stdout and "damaged-1" in repaired.stdout
    assert miniray("storage", "check", str(path)).returncode == 0
