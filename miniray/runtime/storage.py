"""Where the GCS keeps what must survive a restart: rows of (table, key, value).

The `Storage` port and its implementations: SQLite (`sqlite_storage`: a file; the default of
`miniray-head`), Redis (`redis_storage`: for a head that may move), memory (tests) and none (a local
session, whose end is its cluster's end). One contract suite runs over them
(tests/runtime/test_storage.py). What is damaged is refused by its kind of StorageError, with the
command that helps (`miniray storage check|repair`): a head never starts empty because of damage.

Exactly one head writes: `claim` raises the stored epoch, and every batch checks in its own
transaction that the epoch is still the claimer's; the loser gets `StorageFenced` and must end.
`apply` returns when the rows are on disk (WAL, synchronous=FULL) and blocks meanwhile: the shell
calls it on a writer thread of its own, one batch at a time. Not thread-safe beyond that.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from typing import Protocol

EPOCHS_BEGAN_S = 1_767_225_600
"""New year of 2026: an epoch is the upper half of an unsigned number of 64 bits, until 2060."""
EPOCHS_PER_S = 4
"""More heads than that cannot be started one after the other."""
EPOCH_BY_CLOCK_MOST = (1 << 32) - (1 << 24)
"""A clock that is decades ahead leaves epochs to count up to."""

Row = tuple[str, bytes, bytes]
Change = tuple[str, bytes, bytes | None]


class StorageError(Exception):
    """The storage cannot be read or written; the message names it and says what to do."""


class StorageCorrupted(StorageError):
    """It is damaged: cut, overwritten, or a bit of it flipped."""


class StorageForeign(StorageError):
    """What is there belongs to another program."""


class StorageVersion(StorageError):
    """A later miniray wrote it."""


class StorageFull(StorageError):
    """No room is left."""


class StorageReadOnly(StorageError):
    """It cannot be written."""


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
        """Later than that of a head that was here before."""
        return least_epoch()

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
    """`none:` or "" keeps nothing; `sqlite:PATH`, or a path, is a file; `redis://…`. Else StorageError."""
    scheme, separator, rest = url.partition(":")
    if url == "" or (scheme == "none" and separator):
        return NoStorage()
    if scheme in REDIS_SCHEMES and separator:
        from miniray.runtime.redis_storage import RedisStorage

        return RedisStorage(url)
    from miniray.runtime.sqlite_storage import SqliteStorage  # a local session never loads it

    if scheme == "sqlite" and separator:
        return SqliteStorage(rest.removeprefix("//"))
    if separator and not url.startswith(("/", ".")):
        raise StorageError(
            f"storage {url!r} is not known: give sqlite:PATH, a path, redis://HOST:PORT/DB or none:"
        )
    return SqliteStorage(url)


REDIS_SCHEMES = ("redis", "rediss", "unix")


def least_epoch() -> int:
    """What the epoch of a head that starts now is at least: above those of heads on other, lost, tables.

    Nodes that know a later head take an earlier one for a late packet, and would wait in silence.
    """
    return min(max(1, int((time.time() - EPOCHS_BEGAN_S) * EPOCHS_PER_S)), EPOCH_BY_CLOCK_MOST)


def checksum(table: str, key: bytes, value: bytes) -> int:
    """What is kept beside a row, so that a flipped bit in any of the three is seen."""
    head = b"%s\0%d\0" % (table.encode(), len(key))
    return zlib.crc32(value, zlib.crc32(key, zlib.crc32(head)))


def repair_with(place: str) -> str:
    """The end of a refusal: what to do about damage."""
    return (
        f"`miniray storage check {place}` says more, `miniray storage repair {place}` saves what can be "
        "read; or put a copy back"
    )


def wrong_tables(hostname: str, node_id: bytes) -> StorageForeign:
    """What a head is told whose tables are not those that its nodes know."""
    return StorageForeign(
        f"node {node_id.hex()[:12]} on {hostname} belongs to a cluster of which nothing is in this "
        "head's storage: it was emptied, or is another one. What runs there goes on. Start the head "
        "with the storage of before; to begin with nothing, end that node first"
    )


def fenced(what: str, epoch: int, mine: int) -> str:
    """What a head is told that is no longer the writer."""
    return f"another head (epoch {epoch}) has taken over {what}; this one (epoch {mine}) ends"
