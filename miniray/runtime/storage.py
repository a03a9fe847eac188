"""Where the GCS keeps what must survive a restart: rows of (table, key, value).

The `Storage` port and its implementations: SQLite (`sqlite_storage`: a file; the default of
`miniray-head`), memory (tests) and none (a local session, whose end is its cluster's end). One
contract suite runs over them (tests/runtime/test_storage.py).

Exactly one head writes: `claim` raises the stored epoch, and every batch checks in its own
transaction that the epoch is still the claimer's; the loser gets `StorageFenced` and must end.
`apply` returns when the rows are on disk (WAL, synchronous=FULL) and blocks meanwhile: the shell
calls it on a writer thread of its own, one batch at a time. Not thread-safe beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

Row = tuple[str, bytes, bytes]
Change = tuple[str, bytes, bytes | None]


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
            raise StorageFenced(fenced("the storage in memory", self._tables.epoch, self._epoch))
        for table, key, value in changes:
            if value is None:
                self._tables.rows.pop((table, key), None)
            else:
                self._tables.rows[(table, key)] = value

    def close(self) -> None:
        """See `Storage`."""


def open_storage(url: str) -> Storage:
    """`none:` or "" keeps nothing; `sqlite:PATH`, or a path, is a file. StorageError otherwise."""
    scheme, separator, rest = url.partition(":")
    if url == "" or (scheme == "none" and separator):
        return NoStorage()
    from miniray.runtime.sqlite_storage import SqliteStorage  # a local session never loads it

    if scheme == "sqlite" and separator:
        return SqliteStorage(rest.removeprefix("//"))
    if separator and not url.startswith(("/", ".")):
        raise StorageError(f"storage {url!r} is not known: give sqlite:PATH, a path, or none:")
    return SqliteStorage(url)


def fenced(what: str, epoch: int, mine: int) -> str:
    """What a head is told that is no longer the writer."""
    return f"another head (epoch {epoch}) has taken over {what}; this one (epoch {mine}) ends"
