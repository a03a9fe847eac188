"""UserCallback: what a driver wants to be told while `fit` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniray.train.checkpoint import Checkpoint
    from miniray.train.config import RunConfig


class UserCallback:
    """Subclass it and give instances to `RunConfig(callbacks=…)`. Its methods run in the driver, in
    the thread of `fit`; while they run no report is read, and what they raise ends the run."""

    def after_start(self, run_config: RunConfig, world_size: int, history: list[dict[str, Any]]) -> None:
        """The workers stand; `history` is what earlier parts of the run have reported."""

    def after_report(
        self, run_config: RunConfig, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Every worker has reported: their metrics by world rank, and the stored checkpoint."""

    def after_exception(self, run_config: RunConfig, worker_exceptions: dict[int, Exception]) -> None:
        """Workers failed: world rank → error. The run may start again after this."""
