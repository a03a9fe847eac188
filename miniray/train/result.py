"""Result: what a training run came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniray.train.checkpoint import Checkpoint


@dataclass
class Result:
    """The end of a run.

    Attributes:
        metrics: The last metrics that worker 0 reported; None if there were none.
        checkpoint: The newest checkpoint.
        error: What ended the run, if it failed.
        path: The run's folder.
        best_checkpoints: The checkpoints that were kept, with their metrics, best first.
        history: All that worker 0 reported, in order; also in `result.jsonl`.
        return_value: What the loop returned on worker 0.
    """

    metrics: dict[str, Any] | None
    checkpoint: Checkpoint | None
    error: Exception | None = None
    path: str = ""
    best_checkpoints: list[tuple[Checkpoint, dict[str, Any]]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    return_value: Any = None

    @property
    def metrics_dataframe(self) -> Any:
        """`history` as a pandas DataFrame; needs pandas."""
        import pandas  # type: ignore[import-untyped,unused-ignore]

        return pandas.DataFrame(self.history)

    def get_best_checkpoint(self, metric: str, mode: str) -> Checkpoint | None:
        """The kept checkpoint with the "max" or "min" of a metric. ValueError if none has it."""
        if mode not in ("max", "min"):
            raise ValueError(f"mode={mode!r}: 'max' or 'min'")
        known = [
            (metrics[metric], at)
            for at, (_, metrics) in enumerate(self.best_checkpoints)
            if metric in metrics
        ]
        if not known and self.best_checkpoints:
            raise ValueError(f"no checkpoint was reported with a metric {metric!r}")
        if not known:
            return None
        _, at = max(known) if mode == "max" else min(known)
        return self.best_checkpoints[at][0]

    @classmethod
    def from_path(cls, path: str | Path) -> Result:
        """The result that lies in a run's folder. Raises StorageError if it is none."""
        from miniray.train.storage import RunFolder

        return RunFolder.read(Path(path).expanduser()).result()
