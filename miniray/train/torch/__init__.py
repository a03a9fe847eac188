"""Training with torch.distributed; names as in `ray.train.torch`."""

from miniray.train.torch.config import TorchConfig
from miniray.train.torch.device import get_device, get_devices
from miniray.train.torch.trainer import TorchTrainer
from miniray.train.torch.wrappers import (
    accelerate,
    backward,
    enable_reproducibility,
    prepare_data_loader,
    prepare_model,
    prepare_optimizer,
)

__all__ = [
    "TorchConfig",
    "TorchTrainer",
    "accelerate",
    "backward",
    "enable_reproducibility",
    "get_device",
    "get_devices",
    "prepare_data_loader",
    "prepare_model",
    "prepare_optimizer",
]
