"""Rows of the GCS in one SQLite file: the storage of `miniray-head`.

WAL with synchronous=FULL: what `apply` has written survives the machine. What SQLite does not see by
itself is seen here: every row has a checksum (a flipped bit), the file is made whole under another
name first (an empty file is a truncated one), and a small file beside it counts the batches that were
acknowledged (a lost or cut -wal takes acknowledged batches along, and SQLite would not mention it).
That count is written without fsync: it is for kill -9 and for people, and never ahead of the rows.

See `storage` for the contract, `sqlite_salvage` for what can be done about a damaged file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator

from miniray.runtime.state_directory import make_private
from miniray.runtime.storage import (
    Change,
    Row,
    StorageCorrupted,
    StorageError,
    StorageFenced,
    StorageForeign,
    StorageFull,
    StorageReadOnly,
    StorageVersion,
    checksum,
    fenced,
    least_epoch,
    repair_with,
)

APPLICATION_ID = 0x6D696E69
"""In SQLite's header: whose file this is."""
SCHEMA_VERSION = 2
"""In SQLite's user_version; a file of a later version is refused."""
ROWS = (
    "CREATE TABLE rows (tbl TEXT, key BLOB, value BLOB, crc INTEGER, PRIMARY KEY (tbl, key)) WITHOUT ROWID"
)
STATE = "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER, batches INTEGER)"

UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises: its own errors, or one about the text of its own error when names are damaged."""

_BUSY_S = 5.0
_COUNT = struct.Struct("<Q")


class SqliteStorage:
    """Rows in one SQLite file (plus -wal, -shm and -acknowledged beside it), mode 0600."""

    is_blocking = True

    def __init__(self, path: str) -> None:
        """Opens or makes the file. StorageError and its kinds."""
        self._path = path
        self._epoch = 0
        self._counter = -1
        try:
            make_private(os.path.dirname(os.path.abspath(path)))
            if not os.path.exists(path):
                _require_that_none_was(path)
                _make(path)
            if os.path.getsize(path) == 0:
                raise StorageCorrupted(_damaged(path, "it is empty, and was not made so"))
            os.close(os.open(path, os.O_RDWR))
        except OSError as error:
            raise StorageError(f"the head's database {path} cannot be opened: {error.strerror}") from error
        except UNREADABLE as error:
            raise _explained(path, error) from error
        try:
            self._connection = _connect(path)
            self._examine()
        except UNREADABLE as error:
            raise _explained(path, error) from error
        self._open_counter()

    def _examine(self) -> None:
        run = self._connection.execute
        (version,) = run("PRAGMA user_version").fetchone()
        (application,) = run("PRAGMA application_id").fetchone()
        tables = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        first_format = version == 1 and {"rows", "epoch"} <= tables
        if version > SCHEMA_VERSION and application in (0, APPLICATION_ID):
            raise StorageVersion(
                f"the head's database {self._path} was written by a later miniray (format {version}, "
                f"this one knows {SCHEMA_VERSION}): use that version, or another file"
            )
        if not tables:
            raise StorageCorrupted(_damaged(self._path, "it has no tables"))
        if application != APPLICATION_ID and not first_format:
            names = ", ".join(sorted(tables))
            raise StorageForeign(
                f"{self._path} is a database of another program (tables: {names}): "
                "give --storage another path"
            )
        _be_durable(self._connection)
        (found,) = run("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise StorageCorrupted(_damaged(self._path, found))
        if first_format:
            self._upgrade()
        elif not {"rows", "state"} <= tables:
            raise StorageCorrupted(_damaged(self._path, "a table is missing"))

    def _upgrade(self) -> None:
        """From the first format, which had no checksums."""
        self._connection.create_function("row_checksum", 3, checksum, deterministic=True)
        with self._transaction():
            run = self._connection.execute
            (epoch,) = run("SELECT coalesce(max(epoch), 0) FROM epoch").fetchone()
            run("ALTER TABLE rows RENAME TO former")
            run(ROWS)
            run("INSERT INTO rows SELECT tbl, key, value, row_checksum(tbl, key, value) FROM former")
            run("DROP TABLE former")
            run("DROP TABLE epoch")
            run(STATE)
            run("INSERT INTO state VALUES (1, ?, 0)", (epoch,))
            _sign(self._connection)

    def _open_counter(self) -> None:
        """The acknowledged batches, as the last head counted them, must all be there."""
        try:
            self._counter = os.open(self._path + "-acknowledged", os.O_RDWR | os.O_CREAT, 0o600)
            counted = os.pread(self._counter, _COUNT.size, 0)
        except OSError as error:
            raise StorageError(
                f"{self._path}-acknowledged cannot be opened: {error.strerror}"
            ) from error
        acknowledged = _COUNT.unpack(counted)[0] if len(counted) == _COUNT.size else 0
        there = self._state()[1]
        if acknowledged > there:
            self.close()
            raise StorageCorrupted(_damaged(
                self._path, f"the last {acknowledged - there} of {acknowledged} acknowledged writes are "
                "missing: its -wal file was cut or removed, or the file is an older copy"))  # fmt: skip

    def _state(self) -> tuple[int, int]:
        """(epoch, batches written)."""
        try:
            found = self._connection.execute("SELECT epoch, batches FROM state").fetchone()
        except UNREADABLE as error:
            raise _explained(self._path, error) from error
        if found is None or not all(isinstance(value, int) for value in found):
            raise StorageCorrupted(_damaged(self._path, "its epoch is missing"))
        return found[0], found[1]

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
                self._connection.execute("UPDATE state SET epoch = max(epoch + 1, ?)", (least_epoch(),))
                self._epoch, _ = self._state()
        except UNREADABLE as error:
            raise _explained(self._path, error) from error
        return self._epoch

    def load(self) -> list[Row]:
        """See `Storage`. StorageCorrupted if the checksum of a row is wrong."""
        rows: list[Row] = []
        try:
            for table, key, value, crc in self._connection.execute("SELECT tbl, key, value, crc FROM rows"):
                if not _sound(table, key, value, crc):
                    raise StorageCorrupted(_damaged(self._path, f"a row of table {table!r} has changed"))
                rows.append((table, key, value))
        except UNREADABLE as error:
            raise _explained(self._path, error) from error
        return rows

    def apply(self, changes: Iterable[Change]) -> None:
        """See `Storage`. The last change of a row in a batch is the only one written."""
        last = {(table, key): value for table, key, value in changes}
        written = [(*row, value, checksum(*row, value)) for row, value in last.items() if value is not None]
        deleted = [row for row, value in last.items() if value is None]
        try:
            with self._transaction():
                epoch, batches = self._state()
                if epoch != self._epoch:
                    raise StorageFenced(fenced(f"the head's database {self._path}", epoch, self._epoch))
                if written:
                    self._connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", written)
                if deleted:
                    self._connection.executemany("DELETE FROM rows WHERE tbl = ? AND key = ?", deleted)
                if last:
                    batches += 1
                    self._connection.execute("UPDATE state SET batches = ?", (batches,))
        except UNREADABLE as error:
            raise _explained(self._path, error) from error
        if last:
            os.pwrite(self._counter, _COUNT.pack(batches), 0)

    def close(self) -> None:
        """See `Storage`."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if self._counter >= 0:
            os.close(self._counter)
            self._counter = -1


def set_epoch(path: str, epoch: int) -> None:
    """Let the next claim give more than `epoch`: for a repaired file, whose nodes know a later one."""
    with contextlib.closing(_connect(path)) as connection:
        connection.execute("UPDATE state SET epoch = max(epoch, ?)", (epoch,))


def last_epoch(path: str) -> int | None:
    """The epoch of a perhaps damaged file; None where it cannot be read."""
    with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT epoch FROM state").fetchone()[0])
    return None


def _require_that_none_was(path: str) -> None:
    """Nobody moves a database away and leaves what stands beside it: then it was lost, and is missed."""
    with contextlib.suppress(FileNotFoundError), open(path + "-acknowledged", "rb") as counter:
        counted = counter.read(_COUNT.size)
        if len(counted) == _COUNT.size and any(counted):
            raise StorageCorrupted(
                f"the head's database {path} is missing, and had {_COUNT.unpack(counted)[0]} acknowledged "
                f"writes according to {path}-acknowledged: put it back with its -wal file, or remove what "
                "is left beside it to begin with nothing"
            )


def _make(path: str) -> None:
    """A new, empty database that comes into being whole."""
    draft = f"{path}-new-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN")
            connection.execute(ROWS)
            connection.execute(STATE)
            connection.execute("INSERT INTO state VALUES (1, 0, 0)")
            _sign(connection)
            connection.execute("COMMIT")
        finally:
            connection.close()
        for leftover in ("-acknowledged", "-wal", "-shm"):    # of a file that had nothing in it
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + leftover)
        with contextlib.suppress(FileExistsError):      # another head was first: its file is as good
            os.link(draft, path)
    finally:
        os.unlink(draft)


def _sign(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")    # damage: the checksum tells
    return connection


def _be_durable(connection: sqlite3.Connection) -> None:
    """`secure_delete`: what was deleted cannot come back when a damaged file is salvaged."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}")


def _sound(table: object, key: object, value: object, crc: object) -> bool:
    if not (isinstance(table, str) and isinstance(key, bytes) and isinstance(value, bytes)):
        return False
    return crc == checksum(table, key, value)


_KINDS: tuple[tuple[str, type[StorageError], str], ...] = (
    ("database or disk is full", StorageFull, "free some space, and start the head again: nothing is lost"),
    ("readonly database", StorageReadOnly, "give this user the right to write it, or --storage another path"),
    ("disk I/O error", StorageError, "look at the disk (dmesg), then `miniray storage check`"),
)


def _explained(path: str, error: Exception) -> StorageError:
    text = str(error)
    for part, kind, remedy in _KINDS:
        if part in text:
            return kind(f"the head's database {path} cannot be written ({text}): {remedy}")
    if isinstance(error, sqlite3.OperationalError):
        return StorageError(f"the head's database {path} cannot be used: {text}")
    if "not a database" in text:
        return StorageForeign(
            f"{path} is not a database of miniray, or its beginning is damaged ({text}): give --storage "
            f"another path, or {repair_with(path)}"
        )
    return StorageCorrupted(_damaged(path, text))


def _damaged(path: str, detail: str) -> str:
    return f"the head's database {path} is damaged ({detail}): {repair_with(path)}"


