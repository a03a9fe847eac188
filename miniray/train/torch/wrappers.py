"""`prepare_model` and `prepare_data_loader`: one line each turns a loop for one process into one for N."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from miniray.train.session import get_context
from miniray.train.torch.device import get_device


def prepare_model(
    model: Any,
    move_to_device: bool | Any = True,
    parallel_strategy: str | None = "ddp",
    parallel_strategy_kwargs: dict[str, Any] | None = None,
) -> Any:
    """The model on this worker's device and, with several workers, wrapped to train as one.

    Args:
        model: A torch module.
        move_to_device: True, False, or the device.
        parallel_strategy: "ddp" (gradients are averaged), "fsdp" (parameters are sharded), or None.
        parallel_strategy_kwargs: Further arguments of DistributedDataParallel or fully sharded one.
    """
    if parallel_strategy not in ("ddp", "fsdp", None):
        raise ValueError(f"parallel_strategy={parallel_strategy!r}: 'ddp', 'fsdp' or None")
    device = get_device() if isinstance(move_to_device, bool) else move_to_device
    if move_to_device is not False:
        model = model.to(device)
    options = dict(parallel_strategy_kwargs or {})
    if get_context().get_world_size() == 1 or parallel_strategy is None:
        return model
    if parallel_strategy == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, **options)
    from torch.nn.parallel import DistributedDataParallel

    if device.type == "cuda":
        options = {"device_ids": [device], "output_device": device} | options
    return DistributedDataParallel(model, **options)


def prepare_data_loader(
    data_loader: Any, add_dist_sampler: bool = True, move_to_device: bool = True, auto_transfer: bool = True
) -> Any:
    """A data loader of this worker's share of the data, whose batches come on its device.

    Args:
        data_loader: A torch DataLoader; shuffling stays as it was. Call `loader.sampler.set_epoch(n)`
            before each epoch, or all epochs shuffle alike.
        add_dist_sampler: With several workers, give each its share.
        move_to_device: Move each batch.
        auto_transfer: On a GPU, copy without waiting.
    """
    from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler

    context = get_context()
    loader = data_loader
    splits = add_dist_sampler and context.get_world_size() > 1
    if (
        splits
        and not isinstance(loader.sampler, DistributedSampler)
        and not isinstance(loader.dataset, IterableDataset)
    ):
        sampler = DistributedSampler(
            loader.dataset, num_replicas=context.get_world_size(), rank=context.get_world_rank(),
            shuffle=isinstance(loader.sampler, RandomSampler),
        )  # fmt: skip
        loader = DataLoader(
            loader.dataset, batch_size=loader.batch_size, sampler=sampler, num_workers=loader.num_workers,
            collate_fn=loader.collate_fn, drop_last=loader.drop_last, timeout=loader.timeout,
            pin_memory=loader.pin_memory, worker_init_fn=loader.worker_init_fn, generator=loader.generator,
        )  # fmt: skip
    device = get_device()
    return _OnDevice(loader, device, auto_transfer) if move_to_device and device.type != "cpu" else loader


class _OnDevice:
    """A data loader whose batches come on a device."""

    def __init__(self, loader: Any, device: Any, non_blocking: bool) -> None:
        self._loader, self._device, self._non_blocking = loader, device, non_blocking

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return (self._moved(batch) for batch in self._loader)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._moved(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            parts = [self._moved(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value.to(self._device, non_blocking=self._non_blocking) if hasattr(value, "to") else value


def enable_reproducibility(seed: int = 0) -> None:
    """Seed Python, NumPy and torch, and have torch use deterministic algorithms."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def accelerate(amp: bool = False) -> None:
    """Raises DeprecationWarning, as in Ray Train: use torch's own mixed precision."""
    raise DeprecationWarning(_AMP)


def prepare_optimizer(optimizer: Any) -> Any:
    """Raises DeprecationWarning, as in Ray Train: use the optimizer as it is."""
    raise DeprecationWarning(_AMP)


def backward(tensor: Any) -> None:
    """Raises DeprecationWarning, as in Ray Train: call `tensor.backward()`."""
    raise DeprecationWarning(_AMP)


_AMP = (
    "mixed precision is torch's own: `with torch.autocast(...)` around the forward pass, "
    "torch.amp.GradScaler for float16, optimizers and losses used as they are"
)
