"""Arguments checked against a signature at the call, before anything is sent.

A call is on the fast path when it has no keywords and its count lies between `lowest` and `highest`;
callers look at that themselves, and `Signature.check` binds in full what is not. Pure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Signature:
    """The parameters of a function, or of a method without `self`."""

    __slots__ = ("highest", "lowest", "parameters")

    def __init__(self, parameters: list[inspect.Parameter]) -> None:
        self.parameters = parameters
        positional = [p for p in parameters if p.kind in _POSITIONAL]
        self.lowest = sum(p.default is p.empty for p in positional)
        self.highest = len(positional)
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                self.highest = 1 << 30
            elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                self.lowest = 1 << 30  # no call without keywords can fit: always bind

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """TypeError, as Python would raise it, when the arguments do not fit."""
        if kwargs or not self.lowest <= len(args) <= self.highest:
            try:
                inspect.Signature(self.parameters).bind(*args, **kwargs)
            except TypeError as e:
                raise TypeError(str(e)) from None

    def __reduce__(self) -> Any:
        # Defaults and annotations stay behind: they may be large or not picklable.
        return _rebuild, ([(p.name, int(p.kind), p.default is not p.empty) for p in self.parameters],)


def _rebuild(parameters: list[tuple[str, int, bool]]) -> Signature:
    kinds = list(inspect._ParameterKind)
    return Signature(
        [
            inspect.Parameter(name, kinds[kind], default=None if optional else inspect.Parameter.empty)
            for name, kind, optional in parameters
        ]
    )


ANYTHING = Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)
"""Takes all: for callables that do not say what they take."""


def of_function(function: Callable[..., Any]) -> Signature:
    """The signature of a function; one that takes anything where Python cannot tell."""
    try:
        return Signature(list(inspect.signature(function).parameters.values()))
    except (TypeError, ValueError):
        return ANYTHING


def of_method(function: Callable[..., Any]) -> Signature:
    """The signature of an instance method as its callers see it."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ANYTHING
    if parameters and parameters[0].kind in _POSITIONAL:
        parameters = parameters[1:]
    return Signature(parameters)
