"""Data-parallel training on a cluster, with the names of Ray Train.

::

    def loop(config):
        model = train.torch.prepare_model(make_model())
        for epoch in range(config["epochs"]):
            ...
            train.report({"loss": loss}, checkpoint=Checkpoint.from_directory(folder))

    result = TorchTrainer(loop, train_loop_config={"epochs": 3},
                          scaling_config=ScalingConfig(num_workers=4)).fit()

Built on the public API alone: a placement group, one actor per worker, streams of reports. The driver
follows them, keeps checkpoints, and starts the workers again from the last one when any dies. Torch is
imported by `train.torch` only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from miniray.train.backend import BackendConfig
from miniray.train.callback import UserCallback
from miniray.train.checkpoint import Checkpoint
from miniray.train.config import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    SyncConfig,
)
from miniray.train.data_parallel_trainer import DataParallelTrainer
from miniray.train.exceptions import StorageError, TrainingFailedError, WorkerGroupError
from miniray.train.result import Result
from miniray.train.session import TrainContext, get_checkpoint, get_context, get_dataset_shard, report

if TYPE_CHECKING:
    from miniray.train.torch import TorchConfig, TorchTrainer

TRAIN_DATASET_KEY = "train"
"""The name of the data set that `get_dataset_shard` gives where none is named."""

_IN_TORCH = ("TorchConfig", "TorchTrainer")

__all__ = [
    "TRAIN_DATASET_KEY",
    "BackendConfig",
    "Checkpoint",
    "CheckpointConfig",
    "DataConfig",
    "DataParallelTrainer",
    "FailureConfig",
    "Result",
    "RunConfig",
    "ScalingConfig",
    "StorageError",
    "SyncConfig",
    "TorchConfig",
    "TorchTrainer",
    "TrainContext",
    "TrainingFailedError",
    "UserCallback",
    "WorkerGroupError",
    "collective",
    "get_checkpoint",
    "get_context",
    "get_dataset_shard",
    "report",
    "sync",
    "torch",
]


def __getattr__(name: str) -> Any:
    if name in ("collective", "torch", "sync"):
        return importlib.import_module(f"miniray.train.{name}")
    if name in _IN_TORCH:
        return getattr(importlib.import_module("miniray.train.torch"), name)
    raise AttributeError(f"module 'miniray.train' has no attribute {name!r}")
