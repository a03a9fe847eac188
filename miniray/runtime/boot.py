"""The first code of a local session's daemon, run as a file: `python boot.py FD`.

A daemon needs a few modules of the package and none of its public face, which would cost it half
its start-up time. So the package is entered bare here: `miniray.runtime.daemon` is imported
without running `miniray/__init__.py`. The zygote, whose workers do need it, completes the package
after the fork (`complete_package`).
"""

from __future__ import annotations

import gc
import os
import sys
from types import ModuleType

ROOM_FOR_TITLES = " " * 160
"""The last argument of a process whose forks write longer titles over its command line."""


def interpreter() -> list[str]:
    """This interpreter, as it was asked to look for modules: with its -I, -S and -s."""
    asked = (("-I", sys.flags.isolated), ("-S", sys.flags.no_site), ("-s", sys.flags.no_user_site))
    return [sys.executable, *(flag for flag, given in asked if given)]


def enter_bare_package() -> None:
    """Make `miniray.…` importable without its `__init__`."""
    own = os.path.dirname(os.path.abspath(__file__))    # -I and -P leave it out
    root = os.path.dirname(own)
    parent = os.path.dirname(root)
    sys.path[:] = [entry for entry in sys.path if entry and os.path.abspath(entry) != own]
    if parent not in sys.path:
        sys.path.insert(0, parent)
    package = ModuleType("miniray")
    package.__path__ = [root]
    sys.modules["miniray"] = package


def complete_package() -> None:
    """Run `miniray/__init__.py` in the bare package; nothing to do when it was imported as usual."""
    from importlib import util

    package = sys.modules["miniray"]
    if package.__spec__ is not None:
        return
    root = package.__path__[0]
    spec = util.spec_from_file_location(
        "miniray", os.path.join(root, "__init__.py"), submodule_search_locations=[root])
    assert spec is not None and spec.loader is not None
    package.__spec__, package.__loader__, package.__file__ = spec, spec.loader, spec.origin
    spec.loader.exec_module(package)


if __name__ == "__main__":
    gc.disable()  # nothing of the imports is garbage; `daemon` switches it on again
    enter_bare_package()
    from miniray.runtime.daemon import main

    main(sys.argv)
