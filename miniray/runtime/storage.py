"""Where the GCS keeps what must survive a restart: rows of (table, key, value).

The `Storage` port and its implementations: SQLite (a file; the default of `miniray-head`),
memory (tests) and none (a local session, whose end is its cluster's end). One contract suite
runs over them (tests/runtime/test_storage.py).

Exactly one head writes: `claim` raises the stored epoch, and every batch checks in its own
transaction that the epoch is still the claimer's; the loser gets `StorageFenced` and must end.
`apply` returns when the rows are on disk (WAL, synchronous=FULL) and blocks meanwhile: the shell
calls it on a writer thread of its own, one batch at a time. Not thread-safe beyond that.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Protocol

Row = tuple[str, bytes, bytes]
Change = tuple[str, bytes, bytes | None]

SCHEMA_VERSION = 1
"""In SQLite's user_version; a file of a later version is refused."""

_BUSY_S = 5.0


class StorageError(Exception):
    """The storage cannot be read or written; the message names it and says what to do."""


class StorageCorrupted(StorageError):
    """What is there is not, or no longer, a database of miniray."""


class StorageFenced(StorageError):
    """Another head has taken the storage over; this one must not write any more."""


class Storage(Protocol):
    """The port. Every method may raise StorageError."""

    is_blocking: bool
    """Whether `apply` waits for a disk and belongs on a thread of its own."""

    def claim(self) -> int:
        """Become the one writer. Returns the new epoch, above every earlier one."""

    def load(self) -> list[Row]:
        """All rows."""

    def apply(self, changes: Iterable[Change]) -> None:
        """Write (or, where the value is None, delete) all rows or none, durably."""

    def close(self) -> None:
        """Let go; the storage can be claimed by another process."""


class NoStorage:
    """Keeps nothing: for a cluster that ends with its head."""

    is_blocking = False

    def claim(self) -> int:
        """Always the first epoch."""
        return 1

    def load(self) -> list[Row]:
        """Nothing."""
        return []

    def apply(self, changes: Iterable[Change]) -> None:
        """Forget them."""

    def close(self) -> None:
        """Nothing to let go."""


class MemoryTables:
    """What a `MemoryStorage` writes to; outlives it, as a file outlives a process."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], bytes] = {}
        self.epoch = 0


class MemoryStorage:
    """Rows in memory: heads that share a `MemoryTables` see one another as through a file."""

    is_blocking = False

    def __init__(self, tables: MemoryTables | None = None) -> None:
        self._tables = tables or MemoryTables()
        self._epoch = 0

    def claim(self) -> int:
        """See `Storage`."""
        self._tables.epoch += 1
        self._epoch = self._tables.epoch
        return self._epoch

    def load(self) -> list[Row]:
        """See `Storage`."""
        return [(table, key, value) for (table, key), value in self._tables.rows.items()]

    def apply(self, changes: Iterable[Change]) -> None:
        """See `Storage`."""
        if self._tables.epoch != self._epoch:
            raise StorageFenced(_fenced("the storage in memory", self._tables.epoch, self._epoch))
        for table, key, value in changes:
            if value is None:
                self._tables.rows.pop((table, key), None)
            else:
                self._tables.rows[(table, key)] = value

    def close(self) -> None:
        """See `Storage`."""


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
                    raise StorageFenced(_fenced(f"the head's database {self._path}", epoch, self._epoch))
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


def open_storage(url: str) -> Storage:
    """`none:` or "" keeps nothing; `sqlite:PATH`, or a path, is a file. StorageError otherwise."""
    scheme, separator, rest = url.partition(":")
    if url == "" or (scheme == "none" and separator):
        return NoStorage()
    if scheme == "sqlite" and separator:
        return SqliteStorage(rest.removeprefix("//"))
    if separator and not url.startswith(("/", ".")):
        raise StorageError(f"storage {url!r} is not known: give sqlite:PATH, a path, or none:")
    return SqliteStorage(url)


def _corrupted(path: str, detail: str) -> str:
    return (
        f"the head's database {path} is damaged ({detail}): put a copy back, or move it away to start "
        "with an empty cluster"
    )


def _fenced(what: str, epoch: int, mine: int) -> str:
    return f"another head (epoch {epoch}) has taken over {what}; this one (epoch {mine}) ends"
