"""What a request may ask of the GCS or a raylet at most: sizes, counts, amounts.

The types of protobuf say what a field is, not how much of it makes sense. Everything here is far
above what programs need and far below what hurts; what is above is refused before any machine
looks at it, with a sentence that names the field, the figure and the limit. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from miniray._proto import common_pb2 as pb

MAX_ID_BYTES = 64
"""The longest id has 28."""
MAX_NAME = 64 << 10
"""Characters of names, namespaces, keys and addresses."""
MAX_TEXT = 4 << 20
"""Characters of any other text: a runtime_env, a sentence with its reasons."""
MAX_KEY_BYTES = 64 << 10
MAX_RESOURCES = 20_000
MAX_AMOUNT = 1 << 60
"""In units of 1/10,000: as bytes of memory 115 TB."""
MAX_ITEMS = 100_000
"""Of a repeated field or map."""

_NAMES = frozenset({"name", "namespace", "class_name", "function_name", "channel", "key", "node_name"})
_KEYS = frozenset({"namespace", "key", "prefix", "id", "ticket"})


def problem(message: Message, path: str = "") -> str:
    """What is too much in a message, as a sentence; "" when nothing is."""
    if isinstance(message, pb.ResourceMap):
        return _problem_of_resources(message, path)
    for field, value in message.ListFields():
        where = f"{path}.{field.name}" if path else field.name
        found = _problem_of_map(field, value, where) if _is_map(field) else _problem_of(field, value, where)
        if found:
            return found
    return ""


def _problem_of(field: FieldDescriptor, value: Any, where: str) -> str:
    values: Iterable[Any] = (value,)
    if not isinstance(value, (str, bytes, int, float, Message)):
        if len(value) > MAX_ITEMS:
            return f"{where} has {len(value)} items; at most {MAX_ITEMS} are taken"
        values = value
    for one in values:
        found = ""
        if isinstance(one, Message):
            found = problem(one, where)
        elif isinstance(one, bytes):
            found = _too_long(where, len(one), _limit_of_bytes(field.name), "bytes")
        elif isinstance(one, str):
            found = _too_long(where, len(one), MAX_NAME if field.name in _NAMES else MAX_TEXT, "characters")
        if found:
            return found
    return ""


def _limit_of_bytes(name: str) -> int:
    """0: opaque, bounded by the size of the whole message."""
    if name.endswith(("_id", "_ids")):
        return MAX_ID_BYTES
    return MAX_KEY_BYTES if name in _KEYS else 0


def _too_long(where: str, size: int, limit: int, unit: str) -> str:
    return f"{where} has {size} {unit}; at most {limit} are taken" if limit and size > limit else ""


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _problem_of_map(field: FieldDescriptor, value: Any, where: str) -> str:
    if len(value) > MAX_ITEMS:
        return f"{where} has {len(value)} entries; at most {MAX_ITEMS} are taken"
    for key, entry in value.items():
        for one in (key, entry):
            if isinstance(one, (str, bytes)) and len(one) > MAX_TEXT:
                return f"{where} has an entry of {len(one)} characters; at most {MAX_TEXT} are taken"
    return ""


def _problem_of_resources(message: pb.ResourceMap, where: str) -> str:
    amounts = message.amounts
    if len(amounts) > MAX_RESOURCES:
        return f"{where} has {len(amounts)} resources; at most {MAX_RESOURCES} are taken"
    for name, amount in amounts.items():
        if len(name) > MAX_NAME:
            return f"{where} has a name of {len(name)} characters; at most {MAX_NAME} are taken"
        if not 0 <= amount <= MAX_AMOUNT:
            most = MAX_AMOUNT // 10_000
            return f"{where} asks for {amount / 10_000:g} of {name!r}; from 0 to {most} can be asked for"
    return ""
