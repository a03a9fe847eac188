"""Node labels: what keys and selectors look like, and the messages they become.

A selector maps label keys to "value", "!value", "in(a, b)" or "!in(a, b)". Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from miniray.util import scheduling_strategies as strategies

if TYPE_CHECKING:
    from miniray._proto.common_pb2 import LabelMatch

RESERVED = "ray.io/"
"""Labels that nodes give themselves."""

_NAME = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_SELECTOR = re.compile(rf"!?in\(({_NAME})(, ?{_NAME})*\)|!?{_NAME}")
_SHAPE = (
    "must be 63 chars or less beginning and ending with an alphanumeric character ([a-z0-9A-Z]) "
    "with dashes (-), underscores (_), dots (.), and alphanumerics between."
)


def key_error(key: str) -> str | None:
    """What is wrong with a label key, or None."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not re.fullmatch(rf"{_NAME}(\.{_NAME})*", prefix)):
        return (
            f"Invalid label key prefix `{prefix}`. Prefix must be a series of DNS labels "
            "separated by dots (.), not longer than 253 characters in total."
        )
    if not re.fullmatch(_NAME, name):
        return f"Invalid label key name `{name}`. Name {_SHAPE}"
    return None


def pair_error(key: str, value: Any) -> str | None:
    """What is wrong with a label that a node is to have, or None."""
    if not isinstance(value, str):
        return f"The value of label `{key}` must be a string, got {value!r} of type {type(value)}."
    if key.startswith(RESERVED):
        return f"The label key `{key}` begins with `{RESERVED}`, which is reserved."
    wrong = key_error(key)
    if wrong is None and value and not re.fullmatch(_NAME, value):
        wrong = f"Invalid label value `{value}`. Value {_SHAPE}"
    return wrong


def selector_error(selector: Mapping[str, str] | None) -> str | None:
    """What is wrong with a label selector, or None."""
    for key, value in (selector or {}).items():
        wrong = key_error(key)
        if wrong:
            return wrong
        if value and not _SELECTOR.fullmatch(value):
            return (
                f"Invalid label selector value `{value}`. The label selector value should contain optional "
                f"operators and a label value. Supported operators are: ! and {{'in'}}. Value {_SHAPE}"
            )
    return None


def add_expression(out: LabelMatch, key: str, operator: Any) -> None:
    """Fill `out` with the match that an operator of `NodeLabelSchedulingStrategy` stands for."""
    out.key = key
    out.operator = {
        strategies.In: out.IN,
        strategies.NotIn: out.NOT_IN,
        strategies.Exists: out.EXISTS,
        strategies.DoesNotExist: out.NOT_EXISTS,
    }[type(operator)]
    out.values.extend(getattr(operator, "values", ()))


def add_selector(out: Any, selector: Mapping[str, str] | None) -> None:
    """Append the matches of a label selector ("v", "!v", "in(a, b)", "!in(a, b)") to `out`."""
    for key, text in (selector or {}).items():
        match = out.add(key=key)
        negated = text.startswith("!")
        body = text[1:] if negated else text
        match.operator = match.NOT_IN if negated else match.IN
        inside = re.fullmatch(r"in\((.*)\)", body)
        match.values.extend(
            value.strip() for value in inside.group(1).split(",")
        ) if inside else match.values.append(body)
