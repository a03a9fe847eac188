"""The field `pip`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pip:
    """Packages to install, and whether `pip check` must be content with them."""

    packages: list[str]
    pip_check: bool = False
