"""Spilled objects: several per file, with checksums, files gone with their last object.

::

    <directory>/<number>.spill:   "MRSPILL1" | { object id (28) | size u64 | crc32 u32 | payload } …

Each block of a payload has a checksum of its own, so that a part which another node reads is verified
as well; the one in the file is of these. The index lives in memory only: spilled objects end with
their raylet, like the store. Methods that read, write or remove files run on the raylet's executor
threads, several at a time; `remember`, `forget` and `location` on its loop. A short read, a wrong
checksum or a full disk is an OSError that names the file. Where files go: `runtime.spill_places`.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from miniray.runtime import spill_places
from miniray.runtime.spill_places import Place

MAGIC = b"MRSPILL1"
_ENTRY = struct.Struct("<28sQI")
BLOCK_BYTES = 4 << 20

log = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Spilled:
    """Where one object's payload is."""

    place: Place
    name: str
    offset: int
    size: int
    checksums: tuple[int, ...]
    """One per block."""

    @property
    def path(self) -> str:
        """The file's name for people."""
        return self.place.path(self.name)


class SpillFiles:
    """See the module head."""

    def __init__(self, directory: str) -> None:
        """`directory`, a path or a URL, is for these files alone and goes with them."""
        self._directory = directory
        self._place: Place | None = None
        self._index: dict[bytes, Spilled] = {}
        self._users: dict[str, int] = {}
        self._number = 0
        self._lock = threading.Lock()
        """Guards `_place` and `_number`."""
        self._ended = False

    # ---- any thread: files ----

    def write(self, batch: Sequence[tuple[bytes, Any]]) -> dict[bytes, Spilled]:
        """Write one file with these (object id, buffer) pairs. OSError: nothing was kept."""
        if not batch:
            return {}
        place, name = self._next_file()
        place.make(sum(len(memoryview(buffer)) for _, buffer in batch))
        try:
            written = self._write_file(place, name, batch)
        except OSError:
            with contextlib.suppress(OSError):
                place.remove(name)
            raise
        if self._ended:     # meanwhile: nobody else removes what came late
            place.remove_all()
        return written

    def _next_file(self) -> tuple[Place, str]:
        with self._lock:
            if self._ended:
                raise OSError("nothing is spilled any more: the node ends")
            if self._place is None:
                self._place = spill_places.place_of(self._directory)
            self._number += 1
            return self._place, f"{self._number}.spill"

    @staticmethod
    def remove(unused: Sequence[Spilled]) -> None:
        """Delete the files that `forget` said nobody uses. One that cannot be deleted is logged."""
        for location in unused:
            try:
                location.place.remove(location.name)
            except OSError as error:
                log.warning("a spill file that nobody uses stays until the node's end: %s", error)

    @staticmethod
    def _write_file(place: Place, name: str, batch: Sequence[tuple[bytes, Any]]) -> dict[bytes, Spilled]:
        written = {}
        with place.errors_of(name), place.create(name) as file:
            _write_all(file, memoryview(MAGIC))
            at = len(MAGIC)
            for object_id, buffer in batch:
                view = memoryview(buffer)
                checksums = tuple(zlib.crc32(block) for block in _blocks(view))
                entry = _ENTRY.pack(object_id, len(view), zlib.crc32(repr(checksums).encode()))
                _write_all(file, memoryview(entry))
                at += _ENTRY.size
                _write_all(file, view)
                written[object_id] = Spilled(place, name, at, len(view), checksums)
                at += len(view)
        return written

    @staticmethod
    def read_into(location: Spilled, target: memoryview) -> None:
        """Read an object's payload and verify it."""
        with target[: location.size] as payload:
            _read_blocks(location, 0, payload)

    @staticmethod
    def read_part(location: Spilled, offset: int, length: int) -> memoryview:
        """A piece of an object's payload, verified: for streams to other nodes."""
        end = min(offset + length, location.size)
        first = offset // BLOCK_BYTES
        start = first * BLOCK_BYTES
        whole = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, location.size)
        blocks = memoryview(bytearray(max(0, whole - start)))
        _read_blocks(location, first, blocks)
        return blocks[offset - start : end - start]

    # ---- loop's thread: index ----

    def remember(self, object_id: bytes, location: Spilled) -> None:
        """The object is on disk now."""
        self._index[object_id] = location
        self._users[location.name] = self._users.get(location.name, 0) + 1

    def forget(self, object_id: bytes) -> Spilled | None:
        """The object is not needed any more. Returns the last one of a file: it is for `remove`."""
        location = self._index.pop(object_id, None)
        if location is None:
            return None
        self._users[location.name] -= 1
        if self._users[location.name]:
            return None
        del self._users[location.name]
        return location

    def location(self, object_id: bytes) -> Spilled | None:
        """Where the object is on disk, if it is."""
        return self._index.get(object_id)

    def remove_all(self) -> None:
        """The raylet ends."""
        self._index.clear()
        self._users.clear()
        with self._lock:
            self._ended = True
        if self._place is not None:
            self._place.remove_all()


def _write_all(file: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):  # write() may take less than it is given
        taken = file.write(view[done:])
        if not taken:
            raise OSError("it takes no more bytes")
        done += taken


def _blocks(view: memoryview) -> list[memoryview]:
    """A payload in the pieces that have a checksum each."""
    return [view[at : at + BLOCK_BYTES] for at in range(0, len(view), BLOCK_BYTES)]


def _read_blocks(location: Spilled, first: int, target: memoryview) -> None:
    """Fill `target` with blocks from number `first` on. OSError for a short file or a wrong checksum.

    No view of `target` outlives this call, also not in an error's traceback: the memory may be given back.
    """
    with location.place.errors_of(location.name), location.place.open(location.name) as file:
        file.seek(location.offset + first * BLOCK_BYTES)
        for number, at in enumerate(range(0, len(target), BLOCK_BYTES), first):
            with target[at : at + BLOCK_BYTES] as block:
                _fill(file, block, location.path)
                if zlib.crc32(block) != location.checksums[number]:
                    raise OSError(f"{location.path}: wrong checksum, the data at offset "
                                  f"{location.offset + number * BLOCK_BYTES} is damaged")


def _fill(file: Any, block: memoryview, path: str) -> None:
    done = 0
    while done < len(block):
        with block[done:] as rest:
            count = file.readinto(rest)
        if not count:
            raise OSError(f"{path} ends {len(block) - done} bytes too early")
        done += count
