"""What can still be read of a damaged database of the head, straight from its pages.

SQLite gives up a table when a page of it is damaged. Here every page of the file is looked at by
itself: rows stand in the cells of b-tree pages of the index kind (the table is WITHOUT ROWID), long
ones go on in overflow pages. Nothing is trusted but a row's own checksum, so a page that was hit
costs its rows and no others. `secure_delete` keeps deleted rows out; pages in the -wal file replace
those of the main file, commit by commit.

Format: https://www.sqlite.org/fileformat2.html. Reads the whole file into memory; no locks.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from miniray.runtime.storage import Row, checksum

INTERIOR_INDEX, LEAF_INDEX = 0x02, 0x0A
HEADER_BYTES = 100
WAL_HEADER_BYTES, WAL_FRAME_BYTES = 32, 24
PAGE_SIZE = 4096
"""What miniray's files have, where the header cannot be read."""


@dataclass
class Salvaged:
    """What was found: rows with a right checksum, the highest epoch, pages that made no sense."""

    rows: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    broken_rows: int = 0
    """Cells that look like rows and have the wrong checksum."""
    pages: int = 0

    def listed(self) -> list[Row]:
        """The rows, in order."""
        return [(table, key, value) for (table, key), value in sorted(self.rows.items())]


def salvage(path: str) -> Salvaged:
    """Everything that can be read of the database at `path`; OSError."""
    with open(path, "rb") as file:
        main = file.read()
    wal = b""
    if os.path.exists(path + "-wal"):
        with open(path + "-wal", "rb") as file:
            wal = file.read()
    size = _page_size(main)
    pages = {number: main[(number - 1) * size : number * size]
             for number in range(1, (len(main) + size - 1) // size + 1)}  # fmt: skip
    pages.update(_committed(wal, size))
    return _Reader(pages, size).read()


def _page_size(main: bytes) -> int:
    if not main.startswith(b"SQLite format 3\0"):
        return PAGE_SIZE
    size = int.from_bytes(main[16:18], "big") or PAGE_SIZE
    size = 65536 if size == 1 else size
    return size if size >= 512 and size & (size - 1) == 0 else PAGE_SIZE


def _committed(wal: bytes, size: int) -> dict[int, bytes]:
    """The pages of whole transactions in a write-ahead log, up to the first that is cut or damaged."""
    pages: dict[int, bytes] = {}
    if len(wal) < WAL_HEADER_BYTES or int.from_bytes(wal[:4], "big") & ~1 != 0x377F0682:
        return pages
    order = ">" if wal[3] & 1 else "<"
    sums = _wal_checksum(order, wal[:24], (0, 0))
    salt = wal[16:24]
    pending: dict[int, bytes] = {}
    step = WAL_FRAME_BYTES + size
    for at in range(WAL_HEADER_BYTES, len(wal) - step + 1, step):
        head = wal[at : at + WAL_FRAME_BYTES]
        page = wal[at + WAL_FRAME_BYTES : at + step]
        sums = _wal_checksum(order, page, _wal_checksum(order, head[:8], sums))
        if head[8:16] != salt or struct.unpack(">II", head[16:24]) != sums:
            break
        pending[int.from_bytes(head[:4], "big")] = page
        if head[4:8] != bytes(4):       # the last frame of a transaction
            pages.update(pending)
            pending = {}
    return pages


def _wal_checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


class _Reader:
    def __init__(self, pages: dict[int, bytes], size: int) -> None:
        self._pages = pages
        self._size = size
        self._found = Salvaged()

    def read(self) -> Salvaged:
        for number, page in self._pages.items():
            start = HEADER_BYTES if number == 1 else 0
            if len(page) > start + 8 and page[start] in (LEAF_INDEX, INTERIOR_INDEX):
                self._found.pages += 1
                for payload in self._payloads(page, start):
                    self._take(payload)
        return self._found

    def _payloads(self, page: bytes, start: int) -> Iterator[bytes]:
        """The records of a page's cells."""
        interior = page[start] == INTERIOR_INDEX
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        pointers = start + (12 if interior else 8)
        for index in range(min(count, self._size // 2)):
            at = int.from_bytes(page[pointers + 2 * index : pointers + 2 * index + 2], "big")
            at += 4 if interior else 0
            if pointers < at < len(page):
                payload = self._payload(page, at)
                if payload is not None:
                    yield payload

    def _payload(self, page: bytes, at: int) -> bytes | None:
        """One cell's record, with what stands in overflow pages."""
        length, at = _varint(page, at)
        usable = self._size
        most, least = (usable - 12) * 64 // 255 - 23, (usable - 12) * 32 // 255 - 23
        if length <= most:
            return page[at : at + length]
        if length > len(self._pages) * self._size:
            return None
        local = least + (length - least) % (usable - 4)
        local = local if local <= most else least
        parts = [page[at : at + local]]
        following = int.from_bytes(page[at + local : at + local + 4], "big")
        missing = length - local
        while missing > 0:
            overflow = self._pages.get(following)
            if overflow is None:
                return None
            parts.append(overflow[4 : 4 + min(missing, usable - 4)])
            missing -= usable - 4
            following = int.from_bytes(overflow[:4], "big")
        return b"".join(parts)

    def _take(self, payload: bytes) -> None:
        row = _record(payload)
        if row is None:
            return
        table, key, value, crc = row
        try:
            name = table.decode()
        except UnicodeDecodeError:
            self._found.broken_rows += 1
            return
        if crc == checksum(name, key, value):
            self._found.rows[(name, key)] = value
        else:
            self._found.broken_rows += 1


def _record(payload: bytes) -> tuple[bytes, bytes, bytes, int] | None:
    """(table, key, value, checksum) of a record with these four columns; None for any other."""
    header, at = _varint(payload, 0)
    types = []
    while at < header <= len(payload):
        kind, at = _varint(payload, at)
        types.append(kind)
    if len(types) != 4 or not (types[0] >= 13 and types[0] % 2 and types[3] <= 9):
        return None
    if any(kind < 12 or kind % 2 for kind in types[1:3]):
        return None
    parts = []
    at = header
    for kind in types:
        length = (kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind]
        parts.append(payload[at : at + length])
        at += length
    crc = {8: 0, 9: 1}.get(types[3], int.from_bytes(parts[3], "big", signed=True))
    return parts[0], parts[1], parts[2], crc


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends. Beyond the end of `data` it is 0."""
    value = 0
    for index in range(9):
        if at >= len(data):
            return 0, at
        byte = data[at]
        at += 1
        if index == 8:
            return (value << 8) | byte, at
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            break
    return value, at
