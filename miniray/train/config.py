"""The settings of a training run: how many workers on what, where results go, what a failure means.

Names, defaults and meaning are those of Ray Train's classes of the same names.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniray.train.callback import UserCallback

DEFAULT_STORAGE = "~/miniray_results"
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


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
        elastic_resize_monitor_interval_s: How often a run that is smaller than `most` looks whether
            more workers would fit now; it grows at its next checkpoint.
    """

    num_workers: int | tuple[int, int] = 1
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: str = "PACK"
    elastic_resize_monitor_interval_s: float = 60.0

    def __post_init__(self) -> None:
        sizes = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers,)
        if len(sizes) not in (1, 2) or not all(isinstance(size, int) for size in sizes):
            raise ValueError(f"num_workers={self.num_workers!r}: a number, or a tuple (least, most)")
        if min(sizes) < 0 or self.min_workers > self.max_workers or (len(sizes) == 2 and min(sizes) < 1):
            raise ValueError(f"num_workers={self.num_workers!r}: needs 1 <= least <= most, or a number >= 0")
        if self.placement_strategy not in STRATEGIES:
            raise ValueError(f"placement_strategy={self.placement_strategy!r} is none of {STRATEGIES}")
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
            return {name: float(amount) for name, amount in self.resources_per_worker.items() if amount}
        return {"CPU": 1.0, "GPU": 1.0} if self.use_gpu else {"CPU": 1.0}


@dataclass
class FailureConfig:
    """What a failure means.

    Args:
        max_failures: How often the run may start again from its last checkpoint after a worker or a
            node died, or the loop raised; -1: always. Then it ends with `TrainingFailedError`.
    """

    max_failures: int = 0

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
        if self.num_to_keep is not None and self.num_to_keep < 1:
            raise ValueError(f"num_to_keep={self.num_to_keep}: None or at least 1")
        if self.checkpoint_score_order not in ("max", "min"):
            raise ValueError(f"checkpoint_score_order={self.checkpoint_score_order!r}: 'max' or 'min'")


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
        verbose: 0: the driver prints nothing; 1: one live line.
    """

    name: str | None = None
    storage_path: str | Path | None = None
    failure_config: FailureConfig = field(default_factory=FailureConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    callbacks: Sequence[UserCallback] = ()
    worker_runtime_env: dict[str, Any] | None = None
    verbose: int = 1

    def __post_init__(self) -> None:
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
