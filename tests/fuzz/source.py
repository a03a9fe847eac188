"""Bytes as decisions: numbers, text, ids and whole protobuf messages of whatever shape the bytes say.

When they are used up all decisions are zero, so every input comes to an end.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor as Field

T = TypeVar("T")

SIZES = {
    "job_id": 4, "creator_job_id": 4, "actor_id": 16, "creator_actor_id": 16, "task_id": 24,
    "parent_task_id": 24, "placement_group_id": 18, "cluster_id": 16, "ticket": 16,
}  # fmt: skip
"""Sizes of ids by field name; other bytes fields that name an id have 28 bytes."""
DEPTH = 5
INT64 = (-(2**63), -1, 0, 1, 2, 9_999, 10_000, 10_001, 2**31, 2**62, 2**63 - 1)
NUMBERS = (0.0, 1.0, -1.0, 1e-9, 1e308, -1e308, math.inf, -math.inf, math.nan)
TEXTS = (
    "", "CPU", "GPU", "memory", "node", "actor", "job", "worker", "group", "log", "error", "explain",
    "{}", "[]", "null", '{"env_vars": 1}', '{"working_dir": "gcs://x"}', "x" * 300, "a\nb", "\u202e",
    "CPU_group_0_00", "node:10.0.0.1", "FAILED", "../..",
)  # fmt: skip


class Source:
    """See the module head."""

    def __init__(self, data: bytes, known: Sequence[bytes] = ()) -> None:
        """`known`: ids that mean something to whoever gets the messages; of any length."""
        self._data = data
        self._at = 0
        self.known = list(known)

    @property
    def empty(self) -> bool:
        return self._at >= len(self._data)

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1, out of one byte (or two)."""
        size = 1 if bound <= 256 else 2
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "little") % bound

    def chance(self, one_in: int) -> bool:
        return self.below(one_in) == one_in - 1

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def raw(self, limit: int = 64) -> bytes:
        size = self.below(limit)
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def identifier(self, name: str) -> bytes:
        """A known id, a fresh one of a size that fits, or none at all."""
        size = SIZES.get(name, 28)
        fitting = [one for one in self.known if len(one) == size]
        how = self.below(8)
        if how < 5 and fitting:
            return self.pick(fitting)
        if how == 5:
            return self.raw()
        return bytes([self.below(4)]) * size if how == 6 else b""

    def integer(self) -> int:
        how = self.below(4)
        if how == 3:
            return self.pick(INT64)
        return self.below(6) if how else self.below(65536)

    def number(self) -> float:
        if self.chance(3):
            return self.pick(NUMBERS)
        if self.chance(8):
            return float(struct.unpack("<d", self.raw(9)[:8].ljust(8, b"\0"))[0])
        return float(self.below(100))

    def message(self, kind: type[Any], depth: int = DEPTH) -> Any:
        """A message of this type."""
        made = kind()
        fields = list(kind.DESCRIPTOR.fields)
        chosen = [field for field in fields if field.containing_oneof is not None]
        if chosen:
            self._fill(made, self.pick(chosen), depth)
        for field in fields:
            if field.containing_oneof is None and not self.chance(4):
                self._fill(made, field, depth)
        return made

    def _fill(self, made: Any, field: Any, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            target = getattr(made, field.name)
            value = field.message_type.fields_by_name["value"]
            if value.message_type is None:
                for _ in range(self.below(3)):
                    target[self.pick(TEXTS)] = self._scalar(value)
            return
        if field.is_repeated:
            target = getattr(made, field.name)
            for _ in range(self.below(4)):
                if field.message_type is None:
                    target.append(self._scalar(field))
                elif depth:
                    target.append(self.message(field.message_type._concrete_class, depth - 1))
        elif field.message_type is None:
            setattr(made, field.name, self._scalar(field))
        elif depth:
            inner = self.message(field.message_type._concrete_class, depth - 1)
            getattr(made, field.name).CopyFrom(inner)

    def _scalar(self, field: Any) -> Any:
        if field.type == Field.TYPE_BYTES:
            if field.name in SIZES or field.name.endswith(("_id", "_ids", "jobs", "workers", "locations")):
                return self.identifier(field.name.removesuffix("s"))
            return self.raw(200)
        if field.type == Field.TYPE_STRING:
            return self.pick(TEXTS)
        if field.type == Field.TYPE_BOOL:
            return bool(self.below(2))
        if field.type in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT):
            return self.number()
        if field.type == Field.TYPE_ENUM:
            return self.pick([value.number for value in field.enum_type.values])
        return _within(field, self.integer())


def _within(field: Any, value: int) -> int:
    if field.type in (Field.TYPE_UINT32, Field.TYPE_FIXED32):
        return value & 0xFFFFFFFF
    if field.type in (Field.TYPE_UINT64, Field.TYPE_FIXED64):
        return value & 0xFFFFFFFFFFFFFFFF
    if field.type in (Field.TYPE_INT64, Field.TYPE_SINT64, Field.TYPE_SFIXED64):
        return value
    return max(-(2**31), min(value, 2**31 - 1))
