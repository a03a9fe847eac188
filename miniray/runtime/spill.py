"""Spilled objects: several per file, with checksums, files gone with their last object.

::

    <directory>/<number>.spill:   "MRSPILL1" | { object id (28) | size u64 | crc32 u32 | payload } …

Each block of a payload has a checksum of its own, so that a part which another node reads is verified
as well; the one in the file is of these. The index lives in memory only: spilled objects end with
their raylet, like the store. Methods that read or write files run on the raylet's executor threads;
`remember`, `forget` and `location` on its loop. A short read, a wrong checksum or a full disk is an
OSError that names the file.

A directory may also be a URL that fsspec knows (s3://…, gs://…); fsspec is imported for that only.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from miniray.runtime import session_lock, sessions
from miniray.runtime.state_directory import make_private

MAGIC = b"MRSPILL1"
DISK_FULL_SHARE = 0.95
"""Nothing is written to a disk that is fuller than this."""
_ENTRY = struct.Struct("<28sQI")
BLOCK_BYTES = 4 << 20


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


class Place(Protocol):
    """Where files go. Every failure is an OSError."""

    def make(self, needed: int) -> None:
        """Make the directory; OSError when `needed` bytes do not fit."""

    def create(self, name: str) -> Any:
        """A new binary file, open for writing."""

    def open(self, name: str) -> Any:
        """A binary file, open for reading, that can seek."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    def remove_all(self) -> None:
        """Delete the directory."""

    def path(self, name: str) -> str:
        """The file's name for people."""


class LocalPlace:
    """A directory of this machine, and of nobody but this raylet."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def make(self, needed: int) -> None:
        """See `Place`."""
        make_private(self._directory)
        if not sessions.is_private(self._directory):  # its name can be foreseen
            raise OSError(f"somebody else has made {self._directory}, and could change what is spilled there")
        import shutil

        usage = shutil.disk_usage(self._directory)
        if usage.used + needed > DISK_FULL_SHARE * usage.total:
            raise OSError(f"the disk of {self._directory} is {100 * usage.used / usage.total:.0f} % full "
                          f"({usage.free >> 20} MiB free, {needed >> 20} MiB to write)")

    def create(self, name: str) -> Any:
        """See `Place`."""
        return open(os.open(self.path(name), os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb", buffering=0)

    def open(self, name: str) -> Any:
        """See `Place`."""
        return open(self.path(name), "rb", buffering=0)

    def remove(self, name: str) -> None:
        """See `Place`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def remove_all(self) -> None:
        """See `Place`."""
        session_lock.remove(self._directory)

    def path(self, name: str) -> str:
        """See `Place`."""
        return os.path.join(self._directory, name)


class UrlPlace:
    """A directory of some other file system, by fsspec; one of this raylet's own below the URL."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise OSError(f"spilling to {url} needs the package fsspec: pip install fsspec") from None
        self._url = f"{url.rstrip('/')}/miniray-{os.urandom(8).hex()}"
        self._system, self._path = fsspec.core.url_to_fs(self._url)

    def make(self, needed: int) -> None:
        """See `Place`."""
        self._system.makedirs(self._path, exist_ok=True)

    def create(self, name: str) -> Any:
        """See `Place`."""
        return self._system.open(f"{self._path}/{name}", "wb")

    def open(self, name: str) -> Any:
        """See `Place`."""
        return self._system.open(f"{self._path}/{name}", "rb")

    def remove(self, name: str) -> None:
        """See `Place`."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm(f"{self._path}/{name}")

    def remove_all(self) -> None:
        """See `Place`."""
        with contextlib.suppress(OSError):
            self._system.rm(self._path, recursive=True)

    def path(self, name: str) -> str:
        """See `Place`."""
        return f"{self._url}/{name}"


class SpillFiles:
    """See the module head."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._place: Place | None = None
        self._index: dict[bytes, Spilled] = {}
        self._users: dict[str, int] = {}
        self._number = 0

    # ---- any thread: files ----

    def write(self, batch: Sequence[tuple[bytes, Any]]) -> dict[bytes, Spilled]:
        """Write one file with these (object id, buffer) pairs. OSError: nothing was kept."""
        place = self._open_place()
        place.make(sum(len(memoryview(buffer)) for _, buffer in batch))
        self._number += 1
        name = f"{self._number}.spill"
        try:
            return self._write_file(place, name, batch)
        except OSError:
            place.remove(name)
            raise

    def _open_place(self) -> Place:
        if self._place is None:
            is_url = "://" in self._directory
            self._place = UrlPlace(self._directory) if is_url else LocalPlace(self._directory)
        return self._place

    @staticmethod
    def _write_file(place: Place, name: str, batch: Sequence[tuple[bytes, Any]]) -> dict[bytes, Spilled]:
        written = {}
        with place.create(name) as file:
            file.write(MAGIC)
            at = len(MAGIC)
            for object_id, buffer in batch:
                view = memoryview(buffer)
                checksums = tuple(zlib.crc32(block) for block in _blocks(view))
                file.write(_ENTRY.pack(object_id, len(view), zlib.crc32(repr(checksums).encode())))
                at += _ENTRY.size
                done = 0
                while done < len(view):  # write() may take less than it is given
                    done += file.write(view[done:]) or 0
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

    def forget(self, object_id: bytes) -> None:
        """The object is not needed any more; its file goes with its last object."""
        location = self._index.pop(object_id, None)
        if location is None:
            return
        self._users[location.name] -= 1
        if not self._users[location.name]:
            del self._users[location.name]
            location.place.remove(location.name)

    def location(self, object_id: bytes) -> Spilled | None:
        """Where the object is on disk, if it is."""
        return self._index.get(object_id)

    def remove_all(self) -> None:
        """The raylet ends."""
        self._index.clear()
        self._users.clear()
        if self._place is not None:
            self._place.remove_all()


def _blocks(view: memoryview) -> list[memoryview]:
    """A payload in the pieces that have a checksum each."""
    return [view[at : at + BLOCK_BYTES] for at in range(0, len(view), BLOCK_BYTES)]


def _read_blocks(location: Spilled, first: int, target: memoryview) -> None:
    """Fill `target` with blocks from number `first` on. OSError for a short file or a wrong checksum.

    No view of `target` outlives this call, also not in an error's traceback: the memory may be given back.
    """
    with location.place.open(location.name) as file:
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
