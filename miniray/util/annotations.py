"""`PublicAPI`, `DeveloperAPI`, `Deprecated`: decorators that say of a name whether to rely on it.

They add a paragraph to the docstring and mark the object; `Deprecated(warning=True)` also warns with
RayDeprecationWarning when the object is used, once for each place that uses it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

STABILITIES = ("stable", "beta", "alpha")


class AnnotationType(Enum):
    """What an object was marked as."""

    PUBLIC_API = "PublicAPI"
    DEVELOPER_API = "DeveloperAPI"
    DEPRECATED = "Deprecated"
    UNKNOWN = "Unknown"


class RayDeprecationWarning(DeprecationWarning):
    """Something marked by `Deprecated` was used; shown by default, as it is meant for users."""


if not sys.warnoptions:
    warnings.filterwarnings("module", category=RayDeprecationWarning)


def _sole_object(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a decorator stands without brackets."""
    return len(args) == 1 and not options and callable(args[0])


def PublicAPI(*args: Any, stability: str = "stable", api_group: str = "Others") -> Any:  # noqa: N802 (Ray's name)
    """Mark what users may rely on: `@PublicAPI` or `@PublicAPI(stability="beta")`.

    ValueError for a stability other than "stable", "beta" and "alpha".
    """
    if stability not in STABILITIES:
        raise ValueError(f"stability must be one of {STABILITIES}, got {stability!r}")

    def mark(target: T) -> T:
        if stability != "stable":
            _document(target, f"**PublicAPI ({stability}):** may still change before it is stable.")
        return _marked(target, AnnotationType.PUBLIC_API, api_group)

    return mark(args[0]) if _sole_object(args, {}) else mark


def DeveloperAPI(*args: Any) -> Any:  # noqa: N802 (Ray's name)
    """Mark what libraries build on and what may change in a minor version."""

    def mark(target: T) -> T:
        _document(target, "**DeveloperAPI:** may change in any minor version.")
        return _marked(target, AnnotationType.DEVELOPER_API)

    return mark(args[0]) if _sole_object(args, {}) else mark


def Deprecated(*args: Any, message: str = "", warning: bool = False, **unknown: Any) -> Any:  # noqa: N802 (Ray's name)
    """Mark what should not be used any more; `message` says what to use instead.

    With `warning`, making an instance of the class or calling the function warns. ValueError for an
    unknown argument.
    """
    if unknown:
        raise ValueError(f"Deprecated has no arguments {sorted(unknown)}; it has message and warning")
    advice = f"\n{message}" if message else ""

    def mark(target: Any) -> Any:
        _document(target, f"**DEPRECATED:** this may be removed in a later version.{advice}")
        _marked(target, AnnotationType.DEPRECATED)
        if not warning:
            return target
        name = getattr(target, "__qualname__", repr(target))
        text = (
            f"{name} is deprecated and may be removed in a later version. "
            f'PYTHONWARNINGS="ignore::DeprecationWarning" silences this.{advice}'
        )
        if inspect.isclass(target):
            target.__init__ = _warning(target.__init__, text)  # type: ignore[method-assign]
            return target
        return _warning(target, text)

    return mark(args[0]) if _sole_object(args, {}) else mark


def _warning(function: Callable[..., Any], text: str) -> Callable[..., Any]:
    """The function, with a warning at each call that points at the caller."""

    @functools.wraps(function)
    def warned(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(text, RayDeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return warned


def _document(target: Any, paragraph: str) -> None:
    documented = inspect.getdoc(target) if target.__doc__ else ""
    target.__doc__ = f"{documented}\n\n{paragraph}\n".lstrip("\n")


def _marked(target: T, kind: AnnotationType, api_group: str = "Others") -> T:
    """The object, with a mark that subclasses do not inherit: it holds the object's own name."""
    target._annotated = getattr(target, "__name__", "")  # type: ignore[attr-defined]
    target._annotated_type = kind  # type: ignore[attr-defined]
    target._annotated_api_group = api_group  # type: ignore[attr-defined]
    return target
