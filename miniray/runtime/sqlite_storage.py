"""Rows of the GCS in one SQLite file: the storage of `miniray-head`.

WAL with synchronous=FULL: what `apply` has written survives the machine. See `storage` for the
contract.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator

from miniray.runtime.storage import Change, Row, StorageCorrupted, StorageError, StorageFenced, fenced

SCHEMA_VERSION = 1
"""In SQLite's user_version; a file of a later version is refused."""

_BUSY_S = 5.0


class SqliteStorage:
    """Rows in one SQLite file (plus its -wal and -shm files beside it), mode 0600."""

    is_blocking = True

    def __init__(self, path: str) -> None:
        """Opens or makes the file. StorageCorrupted, StorageError."""
        self._path = path
        self._epoch = 0
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StorageError(f"the head's database {path} cannot be opened: {error.strerror}") from error
        try:
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
            )
            self._prepare()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _prepare(self) -> None:
        run = self._connection.execute
        (version,) = run("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"the head's database {self._path} was written by a later miniray (format {version}, "
                f"this one knows {SCHEMA_VERSION}): use that version, or another file"
            )
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        (found,) = run("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StorageCorrupted(_corrupted(self._path, found))
        with self._transaction():
            run(
                "CREATE TABLE IF NOT EXISTS rows (tbl TEXT, key BLOB, value BLOB, PRIMARY KEY (tbl, key)) "
                "WITHOUT ROWID"
            )
            run("CREATE TABLE IF NOT EXISTS epoch (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER)")
            run(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and alone: another process waits."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def claim(self) -> int:
        """See `Storage`."""
        try:
            with self._transaction():
                run = self._connection.execute
                run("INSERT INTO epoch VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET epoch = epoch + 1")
                (self._epoch,) = run("SELECT epoch FROM epoch").fetchone()
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return self._epoch

    def load(self) -> list[Row]:
        """See `Storage`."""
        try:
            return list(self._connection.execute("SELECT tbl, key, value FROM rows"))
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def apply(self, changes: Iterable[Change]) -> None:
        """See `Storage`. The last change of a row in a batch is the only one written."""
        last = {(table, key): value for table, key, value in changes}
        written = [(table, key, value) for (table, key), value in last.items() if value is not None]
        deleted = [row for row, value in last.items() if value is None]
        try:
            with self._transaction():
                (epoch,) = self._connection.execute("SELECT epoch FROM epoch").fetchone()
                if epoch != self._epoch:
                    raise StorageFenced(fenced(f"the head's database {self._path}", epoch, self._epoch))
                if written:
                    self._connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", written)
                if deleted:
                    self._connection.executemany("DELETE FROM rows WHERE tbl = ? AND key = ?", deleted)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """See `Storage`."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _explained(self, error: sqlite3.Error) -> StorageError:
        text = str(error)
        if isinstance(error, sqlite3.OperationalError):
            return StorageError(f"the head's database {self._path} cannot be used: {text}")
        return StorageCorrupted(_corrupted(self._path, text))


def _corrupted(path: str, detail: str) -> str:
    return (
        f"the head's database {path} is damaged ({detail}): put a copy back, or move it away to start "
        "with an empty cluster"
    )
