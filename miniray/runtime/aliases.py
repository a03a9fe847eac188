"""Other names of the package: a program that says `sys.modules["ray"] = miniray` says it for its workers.

The driver tells its job which names it uses (`used`), and each worker of the job takes them over
(`adopt`). A name may also be a package of the program's own that puts miniray in its place when it
is imported: then the worker imports that package, with whatever else it sets up. The genuine Ray
is never imported for it. Any thread.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder

_PACKAGE = __name__.partition(".")[0]
_GENUINE = "_raylet."
"""A file that begins like this is in Ray's own package."""


def used() -> list[str]:
    """The names besides its own under which this process knows the package."""
    package = sys.modules[_PACKAGE]
    return [name for name, module in list(sys.modules.items()) if module is package and name != _PACKAGE]


def adopt(name: str) -> None:
    """Make `import NAME` mean miniray in this process, unless the name is taken."""
    if name not in sys.modules and _has_substitute(name):
        importlib.import_module(name)
    sys.modules.setdefault(name, sys.modules[_PACKAGE])


def _has_substitute(name: str) -> bool:
    """Whether there is a package of this name to import, and it is not the genuine one."""
    found = PathFinder.find_spec(name)
    if found is None or found.origin is None:
        return False
    return not any(entry.startswith(_GENUINE) for entry in os.listdir(os.path.dirname(found.origin)))
