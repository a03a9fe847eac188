"""The packed forms of values, told apart by their first byte, and how they are taken apart.

::

    0x80 …                                  a plain pickle (protocol 5), nothing out of band
    'M' n | u64 inband | n × u64 | inband | pad to 64 | buffer | pad to 64 | buffer …
    'B' | 63 zero bytes | raw               a `bytes` object that is large
    'A' ndim dtype[14] 6 × u64 | raw        a C-contiguous array of numbers, at most 6 dimensions
    'R' n | n × (id, owner) | pad to 64 | 0x80… or 'M'…      references inside: `ref_at(i)` in the pickle

Arrays come back as read-only views on the packed bytes: from the store that is shared memory, so
a get copies nothing. Buffers start at multiples of 64 bytes. References are restored all at once,
before the value is unpickled. Any thread; no state but that of the unpickling under way.
"""

from __future__ import annotations

import pickle
import struct
import threading
from typing import Any

from miniray.ids import ObjectRef, restore_refs

ALIGNMENT = 64

_HEAD = struct.Struct("<BxxxIQ")
_ARRAY_HEAD = struct.Struct("<BB14s6Q")
_REFS_HEAD = struct.Struct("<BxxxI")
_BUFFERS, _RAW, _ARRAY, _REFS = ord("M"), ord("B"), ord("A"), ord("R")
REF_BYTES = 28 + 56
"""Of a reference inside a value: its id and the address of its owner."""
_RAW_HEAD = bytes([_RAW]) + bytes(ALIGNMENT - 1)
_BYTES_HEAD = bytes.__basicsize__ - 1
"""Where the contents of a `bytes` object begin, behind its address (CPython's id)."""

_loads = pickle.loads


class Serialized:
    """A value in pieces, ready to be written once into its place.

    `inband` is the pickle; `buffers` are contiguous memoryviews of the value's own memory: write
    them before the value changes. `refs` are the references met inside. This class is a
    value that is one pickle; `Composite` has the rest.
    """

    __slots__ = ("inband",)
    buffers: list[memoryview] = []
    refs: list[ObjectRef[Any]] = []
    handles: tuple[()] = ()

    def __init__(self, inband: bytes) -> None:
        self.inband = inband

    @property
    def nbytes(self) -> int:
        """Size of the packed form in bytes."""
        return len(self.inband)

    def parts(self) -> list[Any]:
        """Buffers that make the packed form when they are written one after the other."""
        return [self.inband]

    def pack(self) -> bytes:
        """The packed form in one piece (a copy of the buffers)."""
        return self.inband


class Flat(Serialized):
    """A 64-byte head and one buffer: large `bytes` and plain arrays."""

    __slots__ = ("body",)

    def __init__(self, head: bytes, body: Any) -> None:
        self.inband = head
        self.body = body

    @property
    def nbytes(self) -> int:
        return ALIGNMENT + len(self.body)

    def parts(self) -> list[Any]:
        return [self.inband, self.body]

    def pack(self) -> bytes:
        return b"".join((self.inband, self.body))


class Composite(Serialized):
    """A pickle with buffers out of band or references inside."""

    __slots__ = ("buffers", "refs", "_table")

    def __init__(
        self,
        inband: bytes,
        buffers: list[memoryview],
        refs: list[ObjectRef[Any]] | None = None,
        table: bytes = b"",
    ) -> None:
        self.inband = inband
        self.buffers = buffers
        self.refs = refs or []
        self._table = table

    @property
    def nbytes(self) -> int:
        return sum(len(part) for part in self.parts())

    def parts(self) -> list[Any]:
        table = self._table
        if not table:
            return self._value_parts()
        head = _REFS_HEAD.pack(_REFS, len(table) // REF_BYTES)
        return [head, table, bytes(-(len(head) + len(table)) % ALIGNMENT), *self._value_parts()]

    def _value_parts(self) -> list[Any]:
        buffers = self.buffers
        if not buffers:
            return [self.inband]
        lengths = [len(buffer) for buffer in buffers]
        head = _HEAD.pack(_BUFFERS, len(buffers), len(self.inband))
        head += struct.pack(f"<{len(buffers)}Q", *lengths)
        out: list[Any] = [head, self.inband]
        at = len(head) + len(self.inband)
        for buffer, length in zip(buffers, lengths):
            padding = -at % ALIGNMENT
            if padding:
                out.append(bytes(padding))
            out.append(buffer)
            at += padding + length
        return out

    def pack(self) -> bytes:
        return b"".join(self.parts())


# ---- arrays and bytes in a form of their own ----


def flat_bytes(value: bytes) -> Serialized:
    """Large `bytes`: neither pickled nor copied before they are written."""
    return Flat(_RAW_HEAD, value)


def flat_array(array: Any) -> Serialized | None:
    """An array in its own form, or None when it needs a pickle."""
    dtype = array.dtype
    shape = array.shape
    if dtype.kind not in "fiubc" or len(shape) > 6 or not array.flags.c_contiguous or not array.size:
        return None
    head = _ARRAY_HEAD.pack(_ARRAY, len(shape), dtype.str.encode(), *shape, *(0,) * (6 - len(shape)))
    return Flat(head, array.data.cast("B") if shape else memoryview(array.tobytes()))


_array_type: Any = None
_dtypes: dict[bytes, Any] = {}


def _load_array(view: memoryview) -> Any:
    """The array of the packed form `view`, a read-only view on it."""
    global _array_type
    head = _ARRAY_HEAD.unpack_from(view)
    dtype = _dtypes.get(head[2])
    if dtype is None:
        import numpy

        _array_type = numpy.ndarray
        dtype = _dtypes[head[2]] = numpy.dtype(head[2].rstrip(b"\0").decode())
    return _array_type(head[3 : 3 + head[1]], dtype, view, ALIGNMENT)


# ---- references ----


class _Restoring(threading.local):
    """The references of the value that this thread unpickles."""

    refs: list[ObjectRef[Any]] = []


_restoring = _Restoring()

def ref_at(index: int) -> ObjectRef[Any]:
    """What a pickle has in a reference's place."""
    return _restoring.refs[index]


def _unpack_with_refs(buf: Any, view: memoryview) -> Any:
    _, count = _REFS_HEAD.unpack_from(view)
    end = _REFS_HEAD.size + count * REF_BYTES
    value: Any = view[end + -end % ALIGNMENT :]
    if value[0] != 0x80 and _is_misaligned(buf):
        value = aligned(value)
    outer = _restoring.refs
    _restoring.refs = restore_refs(bytes(view[_REFS_HEAD.size : end]))
    try:
        return unpack(value)
    finally:
        _restoring.refs = outer


# ---- taking apart ----


def unpack(buf: Any) -> Any:
    """The value that was packed into `buf` (bytes, memoryview or a pinned store buffer).

    Arrays are read-only views that keep `buf` alive. Raises what unpickling raises.
    """
    if type(buf) is bytes and buf[0] == 0x80:
        return _loads(buf)
    view = memoryview(buf)
    if view.itemsize != 1 or view.ndim != 1:
        view = view.cast("B")
    first = view[0]
    if first == 0x80:
        return _loads(view)
    if first == _RAW:
        return bytes(view[ALIGNMENT:])
    if first == _REFS:
        return _unpack_with_refs(buf, view)
    if first not in (_ARRAY, _BUFFERS):
        raise ValueError(f"not a packed value: first byte is {first:#x}")
    if _is_misaligned(buf):
        view = aligned(view)
    if first == _ARRAY:
        return _load_array(view.toreadonly())
    return _unpack(view.toreadonly())


def _is_misaligned(buf: Any) -> bool:
    """True of bytes in this process whose contents do not begin at a multiple of 64."""
    return type(buf) is bytes and (id(buf) + _BYTES_HEAD) % ALIGNMENT != 0


def aligned(view: memoryview) -> memoryview:
    """A copy that starts at a multiple of 64, as objects in the store do: vector code wants it."""
    import numpy

    room = numpy.empty(len(view) + ALIGNMENT, numpy.uint8)
    start = -room.__array_interface__["data"][0] % ALIGNMENT
    place = room.data[start : start + len(view)]
    place[:] = view
    return place


def pieces(buf: Any) -> tuple[memoryview, list[memoryview]] | None:
    """The pickle in a packed value and the buffers beside it; None where it is none, or has references."""
    view = memoryview(buf).cast("B")
    if view[0] == 0x80:
        return view, []
    return _parts(view) if view[0] == _BUFFERS else None


def _unpack(view: memoryview) -> Any:
    inband, buffers = _parts(view)
    return _loads(inband, buffers=buffers)


def _parts(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    _, count, inband_length = _HEAD.unpack_from(view)
    lengths = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
    at = _HEAD.size + 8 * count
    inband = view[at : at + inband_length]
    at += inband_length
    buffers = []
    for length in lengths:
        at += -at % ALIGNMENT
        buffers.append(view[at : at + length])
        at += length
    return inband, buffers
