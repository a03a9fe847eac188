"""DataParallelTrainer: run one function on every worker of a group, with restarts and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from miniray.train import datasets as data_sets
from miniray.train.backend import BackendConfig
from miniray.train.checkpoint import Checkpoint
from miniray.train.config import DataConfig, RunConfig, ScalingConfig
from miniray.train.controller import Controller, Job, LocalController
from miniray.train.result import Result
from miniray.train.storage import STATE, RunFolder

Loop = Callable[..., Any]


class DataParallelTrainer:
    """Runs `train_loop_per_worker` on every worker; see `fit`.

    Args:
        train_loop_per_worker: The loop; takes `train_loop_config`, or nothing. It calls
            `train.report`, and begins at `train.get_checkpoint()`.
        train_loop_config: Its argument.
        backend_config: What is set up in each worker first.
        scaling_config: How many workers, and what each reserves.
        run_config: Name, folder, failures, checkpoints.
        datasets: name → array, or dictionary of arrays; the loop asks for them by
            `train.get_dataset_shard`.
        dataset_config: Which of them are cut into shares: all, unless it says otherwise.
        resume_from_checkpoint: Where the loop begins if the run has no checkpoint of its own.
    """

    def __init__(
        self,
        train_loop_per_worker: Loop,
        *,
        train_loop_config: dict[str, Any] | None = None,
        backend_config: BackendConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
        dataset_config: DataConfig | None = None,
        resume_from_checkpoint: Checkpoint | None = None,
    ) -> None:
        if not callable(train_loop_per_worker):
            raise TypeError(f"train_loop_per_worker is {train_loop_per_worker!r}: give a function")
        for name, data in (datasets or {}).items():
            data_sets.check(name, data)
        self.run_config = run_config or RunConfig()
        self.scaling_config = scaling_config or ScalingConfig()
        self._job = Job(
            train_loop_per_worker, train_loop_config, backend_config or BackendConfig(),
            self.scaling_config, self.run_config, dict(datasets or {}), dataset_config or DataConfig(),
            resume_from_checkpoint,
        )  # fmt: skip

    def fit(self) -> Result:
        """Train to the end, in this process's cluster; starts a local one if there is none.

        A run whose folder has checkpoints goes on from the newest.

        Raises:
            TrainingFailedError: more failures than `max_failures`.
            StorageError: the folder cannot be used.
        """
        folder = RunFolder(self.run_config.path, self.run_config.checkpoint_config)
        try:
            folder.state.failures, folder.state.error, folder.state.finished = 0, "", False
            if self.scaling_config.max_workers == 0:
                return LocalController(self._job, folder).run()
            import miniray as ray

            if not ray.is_initialized():
                ray.init()
            return Controller(self._job, folder).run()
        finally:
            folder.close()

    @classmethod
    def can_restore(cls, path: str | Path) -> bool:
        """Is there a run in this folder to go on with?"""
        return (Path(path).expanduser() / STATE).exists()

    @classmethod
    def restore(cls, path: str | Path, train_loop_per_worker: Loop, **options: Any) -> DataParallelTrainer:
        """A trainer that goes on with the run in a folder; `options` as at its first start.

        Raises ValueError if there is no run.
        """
        folder = Path(path).expanduser().absolute()
        if not cls.can_restore(folder):
            raise ValueError(f"no run to go on with in {folder}: it has no {STATE}")
        run: RunConfig = options.pop("run_config", None) or RunConfig()
        run.name, run.storage_path = folder.name, folder.parent
        return cls(train_loop_per_worker, run_config=run, **options)
