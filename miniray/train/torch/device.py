"""The device of a worker: the GPUs that were reserved for it, else the CPU."""

from __future__ import annotations

from typing import Any


def get_devices() -> list[Any]:
    """The torch devices of this worker.

    A worker sees the GPUs that it reserved and no others, as its first ones.
    """
    import torch

    import miniray as ray

    gpus = ray.get_gpu_ids() if ray.is_initialized() else []
    if gpus and torch.cuda.is_available():
        return [torch.device(f"cuda:{at}") for at in range(min(len(gpus), torch.cuda.device_count()))]
    return [torch.device("cpu")]


def get_device() -> Any:
    """The torch device of this worker; the first one if it reserved several GPUs."""
    return get_devices()[0]


def tensor_on(device: Any, value: Any, dtype: Any = None) -> Any:
    """An array as a tensor on a device; through pinned memory to a GPU."""
    import torch

    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
    if getattr(device, "type", "cpu") == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device=device, dtype=dtype, non_blocking=True)
