"""Other names of the package: a program that says `sys.modules["ray"] = miniray` says it for its workers.

The driver tells its job which names it uses (`used`), and each worker of the job takes them over
(`adopt`). A name may also be a package of the program's own that puts miniray in its place when it
is imported: then the worker imports that package, with whatever else it sets up. The genuine Ray
is never imported for it.

`import ray` also makes some of Ray's submodules attributes of the package, and programs reach for
them unimported (`ray._private.worker`, say). A substitute that has such modules gets them loaded
the same way. Any thread.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from importlib.machinery import PathFinder

_PACKAGE = __name__.partition(".")[0]
_GENUINE = "_raylet."
"""A file that begins like this is in Ray's own package."""

_LOADED_BY_RAY = (
    "_common.utils", "_private.client_mode_hook", "_private.ray_constants", "_private.services",
    "_private.state", "_private.utils", "_private.worker",
)  # fmt: skip
"""Submodules that are there after `import ray` of Ray itself."""


def used() -> list[str]:
    """The names besides its own under which this process knows the package."""
    package = sys.modules[_PACKAGE]
    names = [name for name, module in list(sys.modules.items()) if module is package and name != _PACKAGE]
    for name in names:
        _complete(name)
    return names


def adopt(name: str) -> None:
    """Make `import NAME` mean miniray in this process, unless the name is taken."""
    if name not in sys.modules and _has_substitute(name):
        importlib.import_module(name)
    sys.modules.setdefault(name, sys.modules[_PACKAGE])
    if sys.modules[name] is sys.modules[_PACKAGE]:
        _complete(name)


def _complete(name: str) -> None:
    """Load what `import ray` would have loaded, where a substitute has it."""
    for submodule in _LOADED_BY_RAY:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"{name}.{submodule}")


def _has_substitute(name: str) -> bool:
    """Whether there is a package of this name to import, and it is not the genuine one."""
    found = PathFinder.find_spec(name)
    if found is None or found.origin is None:
        return False
    return not any(entry.startswith(_GENUINE) for entry in os.listdir(os.path.dirname(found.origin)))
