"""Writes scalars as TensorBoard event files, without TensorBoard.

An event file is a row of records, each framed by its length and checksums,

    u64 length │ u32 masked crc32c(length) │ bytes │ u32 masked crc32c(bytes)

whose bytes are a protobuf `Event`: 1 wall_time (double), 2 step (int64), 3 file_version (string),
5 summary { 1 value { 1 tag (string), 2 simple_value (float) } }, 7 session_log { 1 status }.
`START` (status 1) at a step makes readers forget what an earlier file said from that step on, which
is what a run that goes back to its checkpoint means.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_START = b"\x08\x01"


class EventWriter:
    """Appends to one new event file in `folder`. One thread."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """`first_step`: the step that this file goes on with."""
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        self._write(_text(3, "brain.Event:2"))
        if first_step:
            self._write(_number(2, first_step) + _bytes(7, _START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve, readable at once."""
        summary = b"".join(
            _bytes(1, _text(1, tag) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items()
        )
        self._write(_number(2, step) + _bytes(5, summary))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _table() -> list[int]:
    """Of crc32c: the Castagnoli polynomial, bits reversed."""
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        rows.append(byte)
    return rows


_CRC = _table()


def _masked(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
