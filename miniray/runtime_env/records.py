"""Dataclasses from what JSON made of them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any


def from_plain(kind: Any, value: Any) -> Any:
    """`value`, with the mappings in it made into the dataclasses that `kind` names.

    Follows dataclass fields, lists, dicts and Optional. TypeError, from the dataclass, for a field
    that it lacks or does not know.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_plain(hints.get(name, Any), item) for name, item in value.items()})
    if origin is list and isinstance(value, list):
        return [from_plain(arguments[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        return {key: from_plain(arguments[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType) and value is not None:
        options = [option for option in arguments if option is not type(None)]
        return from_plain(options[0], value) if len(options) == 1 else value
    return value
