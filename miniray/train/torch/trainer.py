"""TorchTrainer: a DataParallelTrainer whose workers are ranks of one torch.distributed group."""

from __future__ import annotations

from typing import Any

from miniray.train.data_parallel_trainer import DataParallelTrainer, Loop
from miniray.train.torch.config import TorchConfig


class TorchTrainer(DataParallelTrainer):
    """See DataParallelTrainer. `torch_config` says how the process group is made."""

    def __init__(
        self, train_loop_per_worker: Loop, *, torch_config: TorchConfig | None = None, **options: Any
    ) -> None:
        super().__init__(train_loop_per_worker, backend_config=torch_config or TorchConfig(), **options)
