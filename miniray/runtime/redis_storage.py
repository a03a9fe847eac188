"""Rows of the GCS in Redis, for a head that may move to another machine: `--storage redis://HOST:PORT/DB`.

Two hashes: `miniray:rows`, each value with its checksum before it, and `miniray:state` (format, epoch,
batches). A batch is one script, so it is written whole, and only while this head's epoch holds. An
answer means that Redis has it on its disk: a server with WAITAOF is asked, an older one must run with
`appendfsync always`. `?durability=memory` in the URL gives that up, for a Redis that replicates
instead. A server that goes away is waited for; the batch is repeated, which changes nothing twice.

Used from the writer thread of the GCS alone, as all storages. Needs the extra `miniray[redis]`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

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

FORMAT = 1
ROWS = "miniray:rows"
STATE = "miniray:state"
AWAY_S = 10.0
"""So long a server may be away before the head gives up."""
ON_DISK_MS = 10_000
_PAUSE_S = 0.1

CLAIM = """
local epoch = math.max(tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0') + 1, tonumber(ARGV[1]))
redis.call('HSET', KEYS[1], 'epoch', epoch)
return epoch
"""
"""KEYS: state. ARGV: the least epoch."""

APPLY = """
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[1] then
  return redis.call('HGET', KEYS[2], 'epoch')
end
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  at = at + 2
end
while ARGV[at] do
  redis.call('HDEL', KEYS[1], ARGV[at])
  at = at + 1
end
redis.call('HSET', KEYS[2], 'batches', ARGV[2])
return 0
"""
"""KEYS: rows, state. ARGV: epoch, batches, how many rows to write, those, rows to delete."""

T = TypeVar("T")


class RedisStorage:
    """See the module head."""

    is_blocking = True

    def __init__(self, url: str) -> None:
        """Connects. StorageError and its kinds."""
        try:
            import redis
        except ImportError as error:
            text = "a storage in Redis needs the package redis: pip install 'miniray[redis]'"
            raise StorageError(text) from error
        self._redis = redis
        address, self._in_memory = _split(url)
        self._shown = without_password(address)
        self._epoch = 0
        self._batches = 0
        try:
            self._client: Any = redis.Redis.from_url(address, socket_timeout=AWAY_S + ON_DISK_MS / 1000)
        except (ValueError, TypeError) as error:
            raise StorageError(f"{self._shown} is no address of a Redis: {error}") from error
        self._waits_for_disk = False
        self._do(self._examine)

    def _examine(self) -> None:
        if not self._in_memory:
            self._require_disk()
        version = self._client.hget(STATE, "format")
        if version is None:
            if self._client.exists(ROWS):
                raise StorageCorrupted(self._damaged(f"{ROWS} is there without {STATE}"))
        elif not version.isdigit():
            raise StorageCorrupted(self._damaged(f"its format is {version!r}"))
        elif int(version) > FORMAT:
            raise StorageVersion(
                f"the tables in {self._shown} were written by a later miniray (format {int(version)}, this "
                f"one knows {FORMAT}): use that version, or another database number"
            )

    def _require_disk(self) -> None:
        version = tuple(int(part) for part in self._client.info("server")["redis_version"].split(".")[:2])
        self._waits_for_disk = version >= (7, 2)
        if self._waits_for_disk and self._client.info("persistence")["aof_enabled"]:
            return
        settings = self._client.config_get("append*")
        if settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always":
            return
        raise StorageError(
            f"{self._shown} acknowledges writes before they are on its disk (appendonly "
            f"{settings.get('appendonly')}, appendfsync {settings.get('appendfsync')}): run `redis-cli "
            "config set appendonly yes` and `redis-cli config set appendfsync always`, or add "
            "?durability=memory to the URL if losing the head's tables with that server is acceptable"
        )

    def claim(self) -> int:
        """See `Storage`."""

        def step() -> None:
            self._client.hsetnx(STATE, "format", FORMAT)
            self._epoch = int(self._client.eval(CLAIM, 1, STATE, least_epoch()))
            self._batches = int(self._client.hget(STATE, "batches") or 0)
            self._await_disk()

        self._do(step)
        return self._epoch

    def load(self) -> list[Row]:
        """See `Storage`. StorageCorrupted if the checksum of a row is wrong."""
        found = self._do(lambda: self._client.hgetall(ROWS))
        rows = []
        for field, packed in found.items():
            row = unpack(field, packed)
            if row is None:
                raise StorageCorrupted(self._damaged(f"the row {field[:60]!r} has changed"))
            rows.append(row)
        return rows

    def apply(self, changes: Iterable[Change]) -> None:
        """See `Storage`. The last change of a row in a batch is the only one written."""
        last = {(table, key): value for table, key, value in changes}
        written = [part for row, value in last.items() if value is not None
                   for part in (field_of(*row), pack(*row, value))]
        deleted = [field_of(*row) for row, value in last.items() if value is None]
        batches = self._batches + bool(last)
        arguments = [self._epoch, batches, len(written) // 2, *written, *deleted]

        def step() -> bytes | int:
            other: bytes | int = self._client.eval(APPLY, 2, ROWS, STATE, *arguments)
            if last:
                self._await_disk()
            return other

        other = self._do(step)
        if other != 0:
            raise StorageFenced(fenced(f"the tables in {self._shown}", int(other or 0), self._epoch))
        self._batches = batches

    def close(self) -> None:
        """See `Storage`."""
        self._client.close()

    def damaged_rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Fields and values whose checksum is wrong: for `check` and `repair`."""
        for field, packed in self._do(lambda: self._client.hgetall(ROWS)).items():
            if unpack(field, packed) is None:
                yield field, packed

    def drop(self, fields: list[bytes]) -> None:
        """Delete rows by their field: those that `damaged_rows` found."""
        if fields:
            self._do(lambda: self._client.hdel(ROWS, *fields))

    def _await_disk(self) -> None:
        if self._waits_for_disk and not self._in_memory:
            (on_disk, _replicas) = self._client.execute_command("WAITAOF", 1, 0, ON_DISK_MS)
            if not on_disk:
                raise StorageError(
                    f"{self._shown} has not put a write on its disk within {ON_DISK_MS // 1000} s: look at "
                    "its disk and its appendonly setting"
                )

    def _do(self, step: Callable[[], T]) -> T:
        """Carry out `step`; again while the server cannot be reached."""
        redis = self._redis
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return step()
            except redis.AuthenticationError as error:
                raise StorageError(f"{self._shown} refuses the password: {error}") from error
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{self._shown} cannot be reached for {AWAY_S:.0f} s ({error}): does that Redis run?"
                    ) from error
            except redis.ResponseError as error:
                raise self._explained(str(error)) from error
            time.sleep(_PAUSE_S)

    def _explained(self, text: str) -> StorageError:
        if text.startswith("WRONGTYPE"):
            return StorageForeign(
                f"{ROWS} or {STATE} in {self._shown} belongs to another program: give another database "
                "number (redis://HOST:PORT/DB)"
            )
        if text.startswith("MISCONF") or "maxmemory" in text:
            return StorageFull(f"{self._shown} has no room: {text}")
        if text.startswith("READONLY"):
            return StorageReadOnly(f"{self._shown} is a replica and takes no writes: give its primary")
        return StorageError(f"{self._shown} refuses: {text}")

    def _damaged(self, detail: str) -> str:
        return f"the tables in {self._shown} are damaged ({detail}): {repair_with(self._shown)}"


def field_of(table: str, key: bytes) -> bytes:
    """The name of a row in the hash."""
    return table.encode() + b"\0" + key


def pack(table: str, key: bytes, value: bytes) -> bytes:
    """A row's value with its checksum before it."""
    return checksum(table, key, value).to_bytes(4, "little") + value


def unpack(field: bytes, packed: bytes) -> Row | None:
    """The row, or None if its checksum is wrong."""
    table, separator, key = field.partition(b"\0")
    value = packed[4:]
    try:
        name = table.decode()
    except UnicodeDecodeError:
        return None
    right = separator and packed[:4] == checksum(name, key, value).to_bytes(4, "little")
    return (name, key, value) if right else None


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _split(url: str) -> tuple[str, bool]:
    """The URL for the client, and whether Redis need not have written what it acknowledges."""
    address, _, text = url.partition("?")
    query = dict(parse_qsl(text))
    durability = query.pop("durability", "disk")
    if durability not in ("disk", "memory"):
        raise StorageError(f"durability={durability} in a storage's URL: give disk or memory")
    return f"{address}?{urlencode(query)}" if query else address, durability == "memory"
