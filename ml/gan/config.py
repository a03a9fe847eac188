"""The settings of one training run: a plain record that travels to every worker and into run.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

WAYS = ("ddp", "sync", "ps")
BATCHNORMS = ("group", "local")
STRATEGIES = ("average", "weighted", "momentum")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Every setting that changes what is computed, or where. Defaults are the command line's."""

    mode: str = "single"  # single | distributed
    workers: int = 1
    epochs: int = 30
    batch_size: int = 128  # of each worker
    parallel: str = "sync"  # sync | ddp | ps: see ways.py
    batchnorm: str = "group"  # group | local: whose images BatchNorm counts in ddp
    sync_interval: int = 5  # steps between merges, and of a report
    sync_strategy: str = "average"
    sync_momentum: float | None = None  # None: 1 - 1/workers
    latent_dim: int = 100
    width: int = 64
    lr: float = 2e-4
    label_smoothing: float = 0.1  # real images are taught as 1 - this
    ema_decay: float = 0.999  # per step, of the generator that is saved; 0: save the raw weights
    seed: int = 0
    amp: bool = False  # compute in bfloat16 where that is safe
    compile: bool = False  # both networks by torch.compile
    channels_last: bool = True  # memory layout of images and kernels
    device: str = "cpu"  # cpu | cuda, after "auto" is resolved
    dataset: str = "mnist5k"
    job_id: str = ""

    @property
    def momentum(self) -> float:
        """The merger's momentum: as given, else the choice of the method's authors."""
        return 1 - 1 / self.workers if self.sync_momentum is None else self.sync_momentum

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# What must not change when a run is resumed, because the saved weights would not fit or mean another thing.
FIXED_ON_RESUME = ("latent_dim", "width", "dataset")
