"""The one door to torchvision.

torchvision's wheels on the usual index are built for CUDA. Beside a CPU build of torch, `import torchvision`
raises RuntimeError ("operator torchvision::nms does not exist"), not ImportError, although every part that
this job uses (data sets) is plain Python. It imports and works once the missing operators are declared.
So: a plain import first; only where that fails, declare the operators, say so once, and try again; where
that fails too, return None, and the callers' own readers carry on.

Not thread-safe; called from the driver's main thread.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")

_door: list[ModuleType | None] = []  # empty until the first call
_declared: list[Any] = []  # the Library must live as long as the operators are wanted


def torchvision() -> ModuleType | None:
    """The module torchvision, or None where it is missing or cannot be mended. The answer is kept."""
    if not _door:
        _door.append(_open())
    return _door[0]


def models() -> ModuleType:
    """torchvision.models. Raises ImportError where torchvision cannot be had."""
    if torchvision() is None:
        raise ImportError("torchvision does not import here")
    return importlib.import_module("torchvision.models")


def _open() -> ModuleType | None:
    try:
        return importlib.import_module("torchvision")
    except ImportError:
        return None
    except (RuntimeError, OSError) as error:
        return _open_mended(error)


def _open_mended(first_error: Exception) -> ModuleType | None:
    _forget()
    try:
        _declare()
        module = importlib.import_module("torchvision")
    except Exception as error:  # a foreign module's start-up: whatever it raises, we go on without it
        _forget()
        warnings.warn(
            f"torchvision is installed but does not import ({error}); using our own readers", stacklevel=3
        )
        return None
    warnings.warn(
        f"torchvision and torch are different builds ({str(first_error).splitlines()[0]}); "
        "declared the missing operators and went on. Data sets work, compiled operators do not.",
        stacklevel=3,
    )
    return module


def _declare() -> None:
    import torch

    if not _declared:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call,unused-ignore]
        for name in _OPERATORS:
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call,unused-ignore]
        _declared.append(library)


def _forget() -> None:
    """Drop the half-imported package, or the next import would return it."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
