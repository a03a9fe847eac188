"""Backends: what is set up in every worker before the loop starts. `TorchConfig` is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miniray.train.session import TrainContext


@dataclass
class BackendConfig:
    """The backend that sets nothing up, and the base of others. Instances travel to the workers."""

    def on_start(self, context: TrainContext, group: str) -> None:
        """In each worker, before the loop; `group` is a name that this start of the workers alone has."""

    def on_shutdown(self) -> None:
        """In each worker, after the loop has returned."""
