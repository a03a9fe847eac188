"""Which code is miniray's own and which is its user's: tracebacks and explanations show the user's."""

from __future__ import annotations

import functools
import os
import re
from types import FrameType

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MACHINERY = frozenset(os.path.join(PACKAGE, name) for name in ("runtime", "core", "_proto")) | {PACKAGE}


@functools.cache
def _libraries() -> tuple[str, ...]:
    import sysconfig  # a millisecond, for those who ask

    return ("<frozen ", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))


def is_library(file: str) -> bool:
    """True for what is hardly ever what a user wrote: the standard library, and what was installed."""
    return file.startswith(_libraries())


def is_package(file: str) -> bool:
    """True for every file of the package."""
    return file.startswith(PACKAGE)


def is_machinery(file: str) -> bool:
    """True for the files that carry calls; the libraries beside them (util, train) are what users called."""
    return os.path.dirname(file) in _MACHINERY


def place(frame: FrameType) -> str:
    """A frame in words."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


_FRAME = re.compile(r'^  File "(.+)", line \d+ in .+\n?', re.MULTILINE)


_ENTRANCES = frozenset(
    os.path.join(PACKAGE, "runtime", name)
    for name in ("boot.py", "daemon.py", "zygote.py", "worker_process.py", "executor.py")
)


def without_entrance(text: str) -> str:
    """A text with stacks of faulthandler, without the frames through which every worker comes to a task."""
    return _FRAME.sub(lambda found: "" if found[1] in _ENTRANCES else found[0], text)
