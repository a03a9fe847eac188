"""Which code is miniray's own and which is its user's: tracebacks and explanations show the user's."""

from __future__ import annotations

import os
from types import FrameType

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MACHINERY = frozenset(os.path.join(PACKAGE, name) for name in ("runtime", "core", "_proto")) | {PACKAGE}


def is_package(file: str) -> bool:
    """True for every file of the package."""
    return file.startswith(PACKAGE)


def is_machinery(file: str) -> bool:
    """True for the files that carry calls; the libraries beside them (util, train) are what users called."""
    return os.path.dirname(file) in _MACHINERY


def place(frame: FrameType) -> str:
    """A frame in words."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
