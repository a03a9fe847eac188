"""Data for training loops: put into the object store once, read in place by every worker of a node.

A data set is an array, a tensor, or a dictionary of equally long ones. The driver puts each into the
object store; a node that trains has one copy, and `Shard.data` are views of it. Only batches are copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class Shard:
    """A worker's rows of a data set, and the way to go over them."""

    def __init__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Rows `rank` of `world_size` equal, contiguous parts (they differ by one row at most)."""
        self.columns = list(data) if isinstance(data, Mapping) else []
        total = _rows(data)
        self.start, self.stop = total * rank // world_size, total * (rank + 1) // world_size
        part = slice(self.start, self.stop)
        self.data = {name: data[name][part] for name in self.columns} if self.columns else data[part]
        """The rows: views, read-only."""

    def __len__(self) -> int:
        return int(self.stop - self.start)

    def count(self) -> int:
        """How many rows there are."""
        return len(self)

    def iter_batches(
        self, *, batch_size: int = 256, drop_last: bool = False, local_shuffle_seed: int | None = None
    ) -> Iterator[Any]:
        """Batches of rows, as arrays of their own: in order, or shuffled by a seed."""
        rows = np.arange(len(self))
        if local_shuffle_seed is not None:
            rows = np.random.default_rng(local_shuffle_seed).permutation(rows)
        end = len(rows) - len(rows) % batch_size if drop_last else len(rows)
        for start in range(0, end, batch_size):
            yield self._take(rows[start : start + batch_size])

    def iter_torch_batches(
        self, *, batch_size: int = 256, device: Any = None, dtypes: Any = None, **options: Any
    ) -> Iterator[Any]:
        """`iter_batches` as torch tensors, on the worker's device unless another is named."""
        from miniray.train.torch.device import get_device, tensor_on

        where = get_device() if device is None else device
        for batch in self.iter_batches(batch_size=batch_size, **options):
            if isinstance(batch, dict):
                kinds = dtypes if isinstance(dtypes, Mapping) else dict.fromkeys(batch, dtypes)
                yield {name: tensor_on(where, value, kinds.get(name)) for name, value in batch.items()}
            else:
                yield tensor_on(where, batch, dtypes)

    def _take(self, rows: Any) -> Any:
        if self.columns:
            return {name: self.data[name][rows] for name in self.columns}
        return self.data[rows]


def check(name: str, data: Any) -> None:
    """Raise TypeError unless `data` can be a data set."""
    parts = list(data.values()) if isinstance(data, Mapping) else [data]
    if not parts or not all(hasattr(part, "shape") and len(part.shape) > 0 for part in parts):
        raise TypeError(f"data set {name!r} is {type(data).__name__}: give an array, or a dict of arrays")
    lengths = {len(part) for part in parts}
    if len(lengths) > 1:
        raise ValueError(f"data set {name!r}: its arrays have {sorted(lengths)} rows: they must be equal")


def _rows(data: Any) -> int:
    return len(next(iter(data.values()))) if isinstance(data, Mapping) else len(data)
