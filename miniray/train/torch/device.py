"""The device of a worker: the GPUs that were reserved for it, else the CPU."""

from __future__ import annotations

from collections.abc import Sequence
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


def get_gpu_name() -> str:
    """The GPU of this worker's first device, as the whole cluster may call it; "" without one."""
    import miniray as ray

    gpus = ray.get_gpu_ids() if get_device().type == "cuda" else []
    return f"GPU {gpus[0]} of node {ray.get_runtime_context().get_node_id()}" if gpus else ""


def choose_backend(asked: str | None, gpus: Sequence[str]) -> tuple[str, str]:
    """The backend for ranks on these GPUs ("" is none), and why it is not the one that is expected, or "".

    Raises ValueError where NCCL was asked for and cannot be: it needs a GPU for each rank alone.
    """
    shared = next((gpu for gpu in gpus if gpu and gpus.count(gpu) > 1), "")
    crowd = f"workers {[rank for rank, gpu in enumerate(gpus) if gpu == shared]} share {shared}"
    lonely = [rank for rank, gpu in enumerate(gpus) if not gpu]
    if asked == "nccl" and (shared or lonely):
        fault = crowd if shared else f"workers {lonely} have no GPU"
        raise ValueError(f"backend='nccl' needs a GPU for each worker alone, and {fault}: use 'gloo'")
    if asked:
        return asked, ""
    if lonely:
        return "gloo", ""
    if shared:
        return "gloo", f"{crowd}, so gradients travel by gloo: NCCL needs a GPU for each"
    return "nccl", ""


def tensor_on(device: Any, value: Any, dtype: Any = None) -> Any:
    """An array as a tensor on a device; through pinned memory to a GPU."""
    import torch

    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
    if getattr(device, "type", "cpu") == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device=device, dtype=dtype, non_blocking=True)
