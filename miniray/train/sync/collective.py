"""`rules.merge` between the ranks of a torch.distributed group: nobody holds all vectors.

Two reductions: one of the whole vector, one of the spread of the means, which the pooled variances need.
An all-reduce gives every rank the same bits, so all ranks go on from the same parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from miniray.train.sync.rules import Parts, Vector


def group_mean(vector: Vector, share: float, parts: Parts, device: Any = "cpu") -> Vector:
    """The mean of all ranks' vectors, each counting by its share, with pooled running variances.

    Every rank must call this at the same time. `device`: where the group's backend reduces (a GPU for
    NCCL). Raises ValueError when the vector has another length, or no rank's share is positive.
    """
    import torch
    import torch.distributed as dist

    if vector.shape != (parts.size,):
        raise ValueError(f"a vector of {vector.shape} where the model has {parts.size} values")
    total = torch.tensor(float(share), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    if share < 0 or total.item() <= 0:
        raise ValueError(f"shares must be zero or more, and not all zero: {share} of {total.item()}")
    part = np.float32(share / total.item())
    mean = torch.from_numpy(vector * part).to(device)
    dist.all_reduce(mean)
    merged: Vector = mean.cpu().numpy()
    if parts.statistics:
        spread = torch.from_numpy(part * (vector[parts.means] - merged[parts.means]) ** 2).to(device)
        dist.all_reduce(spread)
        merged[parts.variances] += spread.cpu().numpy()
    return merged
