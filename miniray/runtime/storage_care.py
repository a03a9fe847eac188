"""Looking after the head's tables while no head runs on them: `check` and `repair`.

`check` opens them as a head would, claims nothing, and reports. `repair` writes what can still be read
(`sqlite_salvage`) to a new file and puts the damaged one aside under another name: nothing is deleted.
In Redis damaged rows are written to a file beside the caller and dropped. Blocking; for the command line.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field

from miniray.runtime.sqlite_salvage import salvage
from miniray.runtime.sqlite_storage import SqliteStorage, last_epoch, set_epoch
from miniray.runtime.storage import REDIS_SCHEMES, Row, StorageError, open_storage

EPOCHS_SKIPPED = 1_000
"""Added to the last epoch that can be read: the real last one may be later."""
BESIDE = ("", "-wal", "-shm", "-acknowledged")


@dataclass
class Report:
    """What a look found. `problem` is "" when all is well."""

    place: str
    rows: dict[str, int] = field(default_factory=dict)
    problem: str = ""


@dataclass
class Repair:
    """What a repair kept, what it could not, and where the damaged tables are now ("": in place)."""

    place: str
    kept: dict[str, int]
    lost: list[str]
    aside: str


def check(place: str) -> Report:
    """Open the tables at `place` (a path or URL) and read every row; StorageError if there are none."""
    path = _path(place)
    if path and not os.path.exists(path):
        raise StorageError(f"there is no database at {path}")
    try:
        storage = open_storage(place)
        try:
            return Report(place, _counts(storage.load()))
        finally:
            storage.close()
    except StorageError as error:
        return Report(place, problem=str(error))


def repair(place: str) -> Repair:
    """Save what can be read. StorageError when there is nothing to repair, or a head is running there."""
    return _repair_file(_path(place)) if _path(place) else _repair_redis(place)


def _path(place: str) -> str:
    scheme, separator, rest = place.partition(":")
    if separator and scheme in REDIS_SCHEMES:
        return ""
    return os.path.abspath(rest.removeprefix("//") if scheme == "sqlite" and separator else place)


def _counts(rows: list[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for table, _key, _value in rows:
        counts[table] = counts.get(table, 0) + 1
    return dict(sorted(counts.items()))


# ---- SQLite


def _repair_file(path: str) -> Repair:
    if not os.path.exists(path):
        raise StorageError(f"there is no database at {path}")
    user = _user_of(path)
    if user:
        raise StorageError(f"process {user} has {path} open: stop that head first")
    report = check(path)
    if not report.problem:
        raise StorageError(f"{path} is sound: there is nothing to repair")
    rows, lost = _readable(path)
    draft = f"{path}-repaired-{os.getpid()}"
    _write(draft, rows, _last_epoch(path) + EPOCHS_SKIPPED)
    aside = _free_name(path)
    for suffix in BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    for suffix in BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.rename(draft + suffix, path + suffix)
    return Repair(path, _counts(rows), [report.problem.partition(": `miniray")[0], *lost], aside)


def _readable(path: str) -> tuple[list[Row], list[str]]:
    found = salvage(path)
    lost = []
    if found.broken_rows:
        lost.append(f"{found.broken_rows} rows could be found but not read: their checksums are wrong")
    if not found.rows:
        lost.append("no row could be read: the new database is empty")
    elif ("meta", b"cluster_id") not in found.rows:
        lost.append("the cluster's identity was lost: a new one is made")
    return found.listed(), lost


def _write(path: str, rows: list[Row], epoch: int) -> None:
    storage = SqliteStorage(path)
    storage.claim()
    storage.apply(rows)
    storage.close()
    set_epoch(path, epoch)


def _last_epoch(path: str) -> int:
    """The epoch in the damaged file, as far as SQLite can read it, else the count of its writes."""
    epoch = last_epoch(path)
    if epoch is not None:
        return epoch
    with contextlib.suppress(OSError):
        with open(path + "-acknowledged", "rb") as file:
            return int.from_bytes(file.read(8), "little")
    return 0


def _free_name(path: str) -> str:
    number = 1
    while os.path.exists(f"{path}.damaged-{number}"):
        number += 1
    return f"{path}.damaged-{number}"


def _user_of(path: str) -> int:
    """A process of this user that has the file open; 0 for none."""
    wanted = os.stat(path)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                for number in os.listdir(f"/proc/{name}/fd"):
                    with contextlib.suppress(OSError):
                        found = os.stat(f"/proc/{name}/fd/{number}")
                        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                            return int(name)
    return 0


# ---- Redis


def _repair_redis(place: str) -> Repair:
    from miniray.runtime.redis_storage import RedisStorage

    storage = RedisStorage(place)
    try:
        damaged = list(storage.damaged_rows())
        if not damaged:
            raise StorageError(f"the rows in {place} are sound: there is nothing to repair")
        aside = _free_name(os.path.abspath("miniray-redis-rows"))
        with open(aside, "x", encoding="ascii") as file:
            json.dump({name.hex(): value.hex() for name, value in damaged}, file)
        storage.drop([name for name, _value in damaged])
        lost = [f"the row {name[:60]!r} had changed" for name, _value in damaged]
        return Repair(place, _counts(storage.load()), lost, aside)
    finally:
        storage.close()
