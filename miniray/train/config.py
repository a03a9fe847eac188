"""The settings of a training run: how many workers on what, where results go, what a failure means.

Names, defaults and meaning are those of Ray Train's classes of the same names.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniray.train.callback import UserCallback

DEFAULT_STORAGE = "~/miniray_results"
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_ACCELERATOR_SHARE = 0.001
"""What a worker takes of `accelerator_type:T`, so that it only selects nodes."""


def _refuse(owner: object, instead: Mapping[str, str]) -> None:
    """Raise DeprecationWarning for an old setting that was given, as Ray Train does, with the way to go."""
    for name, what in instead.items():
        if getattr(owner, name) is not None:
            raise DeprecationWarning(f"{type(owner).__name__}({name}=…) is of earlier Ray versions: {what}")


@dataclass
class ScalingConfig:
    """How many workers train, and what each of them reserves.

    Args:
        num_workers: A number, or `(least, most)`: the run then starts with as many as the cluster
            has room for, goes on with fewer when nodes die, and grows again. 0: the loop runs in the
            driver's own process, and no cluster is needed.
        use_gpu: Each worker reserves one GPU, and gradients travel over NCCL.
        resources_per_worker: What each reserves instead: ``{"CPU": 2, "GPU": 0.5}``. Default: one CPU.
        placement_strategy: Of the placement group: "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD".
        accelerator_type: Train on GPUs of this kind only: "A100". Needs `use_gpu`.
        label_selector: Labels that the node of every worker must have.
        elastic_resize_monitor_interval_s: How often a run that is smaller than `most` looks whether
            more workers would fit now; it grows at its next checkpoint.
    """

    num_workers: int | tuple[int, int] = 1
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: str = "PACK"
    accelerator_type: str | None = None
    label_selector: dict[str, str] | None = None
    trainer_resources: dict[str, float] | None = None
    elastic_resize_monitor_interval_s: float = 60.0

    def __post_init__(self) -> None:
        _refuse(self, {"trainer_resources": "the driver reserves nothing; see resources_per_worker"})
        sizes = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers,)
        if len(sizes) not in (1, 2) or not all(isinstance(size, int) for size in sizes):
            raise ValueError(f"num_workers={self.num_workers!r}: a number, or a tuple (least, most)")
        if min(sizes) < 0 or self.min_workers > self.max_workers or (len(sizes) == 2 and min(sizes) < 1):
            raise ValueError(f"num_workers={self.num_workers!r}: needs 1 <= least <= most, or a number >= 0")
        if self.placement_strategy not in STRATEGIES:
            raise ValueError(f"placement_strategy={self.placement_strategy!r} is none of {STRATEGIES}")
        if self.accelerator_type is not None and not self.use_gpu:
            raise ValueError(f"accelerator_type={self.accelerator_type!r} needs use_gpu=True")
        if self.label_selector is not None and not isinstance(self.label_selector, dict):
            raise ValueError(f"label_selector={self.label_selector!r}: one dict, for all workers' nodes")
        if self.use_gpu and self.bundle.get("GPU", 0) <= 0:
            raise ValueError("use_gpu=True, but resources_per_worker reserves no GPU")
        if not self.use_gpu and self.bundle.get("GPU", 0) > 0:
            raise ValueError("resources_per_worker reserves a GPU, but use_gpu is False")

    @property
    def elastic(self) -> bool:
        """May the number of workers change?"""
        return self.min_workers != self.max_workers

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The most workers."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker reserves."""
        if self.resources_per_worker is not None:
            found = {name: float(amount) for name, amount in self.resources_per_worker.items() if amount}
        else:
            found = {"CPU": 1.0, "GPU": 1.0} if self.use_gpu else {"CPU": 1.0}
        if self.accelerator_type is not None:
            found[f"accelerator_type:{self.accelerator_type}"] = _ACCELERATOR_SHARE
        return found


@dataclass
class FailureConfig:
    """What a failure means.

    Args:
        max_failures: How often the run may start again from its last checkpoint after a worker or a
            node died, or the loop raised; -1: always. Then it ends with `TrainingFailedError`.
    """

    max_failures: int = 0
    fail_fast: bool | str | None = None

    def __post_init__(self) -> None:
        _refuse(self, {"fail_fast": "max_failures=0 ends the run at its first failure"})
        if not isinstance(self.max_failures, int) or self.max_failures < -1:
            raise ValueError(f"max_failures={self.max_failures!r}: 0 or more, or -1 for always")


@dataclass
class CheckpointConfig:
    """Which checkpoints stay.

    Args:
        num_to_keep: The best so many; None: all. The newest stays besides, as the run restarts from it.
        checkpoint_score_attribute: The metric, reported with the checkpoint, that says which are
            best; None: the newest are.
        checkpoint_score_order: "max" or "min" of that metric is best.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: str = "max"
    checkpoint_frequency: int | None = None
    checkpoint_at_end: bool | None = None

    def __post_init__(self) -> None:
        instead = "the loop says when, by train.report(metrics, checkpoint=…)"
        _refuse(self, {"checkpoint_frequency": instead, "checkpoint_at_end": instead})
        if self.num_to_keep is not None and self.num_to_keep < 1:
            raise ValueError(f"num_to_keep={self.num_to_keep}: None or at least 1")
        if self.checkpoint_score_order not in ("max", "min"):
            raise ValueError(f"checkpoint_score_order={self.checkpoint_score_order!r}: 'max' or 'min'")


@dataclass
class SyncConfig:
    """How files get into the run's folder; accepted for programs that give one.

    What a loop reports as a checkpoint is in the folder when `report` returns, or with the report where the
    node does not see the folder, so there is nothing to wait for or to repeat.

    Args:
        sync_period, sync_timeout: Seconds; of no effect.
        sync_artifacts: Other files of the workers: not copied, so True is refused.
        sync_artifacts_on_checkpoint: Of no effect without `sync_artifacts`.
    """

    sync_period: int = 300
    sync_timeout: int = 1800
    sync_artifacts: bool = False
    sync_artifacts_on_checkpoint: bool = True

    def __post_init__(self) -> None:
        if self.sync_artifacts:
            raise ValueError("sync_artifacts=True: put the files into the checkpoint that the loop reports")


@dataclass
class RunConfig:
    """What the run is called, where it leaves things, and how it is watched.

    Args:
        name: Of the run, and of its folder. A run that finds its own folder goes on from the newest
            checkpoint there. Default: a new name.
        storage_path: The folder of runs, of the driver. Nodes that see it under the same path write their
            checkpoints there themselves; those of others travel through the object store.
            Default: ``~/miniray_results``.
        failure_config: See `FailureConfig`.
        checkpoint_config: See `CheckpointConfig`.
        callbacks: Told in the driver about each report; see `UserCallback`.
        worker_runtime_env: The runtime environment of the workers.
        sync_config: See `SyncConfig`.
        verbose: 0: the driver prints nothing; 1: one live line.
    """

    name: str | None = None
    storage_path: str | Path | None = None
    failure_config: FailureConfig = field(default_factory=FailureConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    callbacks: Sequence[UserCallback] = ()
    worker_runtime_env: dict[str, Any] | None = None
    verbose: int = 1
    sync_config: SyncConfig | None = None
    stop: Any = None
    progress_reporter: Any = None
    log_to_file: Any = None

    def __post_init__(self) -> None:
        callback = "give callbacks=[…], a UserCallback"
        stop = "return from the loop, or raise in a UserCallback"
        _refuse(
            self,
            {"stop": stop, "progress_reporter": callback, "log_to_file": "the node's logs have all output"},
        )
        if self.failure_config is None:
            self.failure_config = FailureConfig()
        if self.checkpoint_config is None:
            self.checkpoint_config = CheckpointConfig()
        if not self.name:
            self.name = f"train_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(3)}"
        if "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name={self.name!r} becomes a folder: no '/' in it, no '.' before it")
        self.storage_path = Path(self.storage_path or DEFAULT_STORAGE).expanduser().absolute()

    @property
    def path(self) -> Path:
        """The run's folder."""
        assert self.storage_path is not None and self.name is not None
        return Path(self.storage_path) / self.name


@dataclass
class DataConfig:
    """Which of the trainer's `datasets` each worker gets a share of: "all", or a list of names.

    The others come whole to every worker.
    """

    datasets_to_split: str | Sequence[str] = "all"

    def splits(self, name: str) -> bool:
        """Is this data set cut into shares?"""
        return self.datasets_to_split == "all" or name in self.datasets_to_split
