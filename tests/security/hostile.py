"""Hostile messages made of the protocol's own descriptors: each bytes field of each type, filled as asked."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

Fill = Callable[[FieldDescriptor], bytes]
"""What to put into a bytes field."""


class Bomb:
    """Unpickled, it makes a directory that nobody else makes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.path,)


def bomb(path: str) -> bytes:
    """The pickle of a `Bomb`."""
    return pickle.dumps(Bomb(path), protocol=2)


def variants(kind: type[Any], fill: Fill) -> list[Any]:
    """Messages of a type with every bytes field filled: one for each choice of each oneof, at any depth."""
    descriptor: Descriptor = kind.DESCRIPTOR
    chosen = [field for field in descriptor.fields if field.containing_oneof is not None]
    plain = [field for field in descriptor.fields if field.containing_oneof is None]
    inner = {field.name: variants(field.message_type._concrete_class, fill)
             for field in plain if field.message_type is not None and not _is_map(field)}
    out = []
    for index in range(max([1, *map(len, inner.values())])):
        message = kind()
        for field in plain:
            _set(message, field, inner.get(field.name), index, fill)
        if not chosen:
            out.append(message)
        for field in chosen:
            choices = variants(field.message_type._concrete_class, fill) if field.message_type else [None]
            for choice in choices:
                one = kind()
                one.CopyFrom(message)
                _set(one, field, [choice], 0, fill)
                out.append(one)
    return out


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _set(message: Any, field: FieldDescriptor, choices: list[Any] | None, index: int, fill: Fill) -> None:
    if field.message_type is not None:
        if choices is None:
            return  # a map: there is none with bytes
        choice = choices[min(index, len(choices) - 1)]
        if field.is_repeated:
            getattr(message, field.name).append(choice)
        else:
            getattr(message, field.name).CopyFrom(choice)
            getattr(message, field.name).SetInParent()
    elif field.type == FieldDescriptor.TYPE_BYTES:
        if field.is_repeated:
            getattr(message, field.name).extend([fill(field), fill(field)])
        else:
            setattr(message, field.name, fill(field))
    elif field.containing_oneof is not None:
        setattr(message, field.name, getattr(message, field.name))


def bytes_fields(kind: type[Any]) -> set[str]:
    """The full names of all bytes fields that a type has, at any depth."""
    return set(_bytes_fields(kind.DESCRIPTOR))


def _bytes_fields(descriptor: Descriptor) -> Iterator[str]:
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from _bytes_fields(field.message_type)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            yield field.full_name


def filled_fields(message: Any) -> set[str]:
    """The full names of the bytes fields that a message has set."""
    found = set()
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_BYTES:
            found.add(field.full_name)
        elif field.message_type is not None and not _is_map(field):
            for one in value if field.is_repeated else [value]:
                found |= filled_fields(one)
    return found
