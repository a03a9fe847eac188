"""BatchNorm over the batches of all workers together, on any device.

torch's own synchronised BatchNorm refuses CPU tensors. In training mode the statistics here are those of
the global batch, and the gradients flow through them, so N workers compute what one would on the whole
batch. One small collective each way; a layer's state dict is that of `nn.BatchNorm2d`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

_DIMENSIONS = (0, 2, 3)


class GroupBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose batch is that of the whole torch.distributed group."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        normal: Tensor = _Normalise.apply(input, self.weight, self.bias, self)
        return normal

    def follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those of a batch of `count` values a channel."""
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def over_group(module: nn.Module) -> nn.Module:
    """`module` with every BatchNorm2d, in place, over the batches of the group."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = GroupBatchNorm2d
    return module


class _Normalise(torch.autograd.Function):
    """Batch normalisation by the group's statistics, with its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, layer: GroupBatchNorm2d) -> Tensor:
        floats = values.float()
        variance, mean = torch.var_mean(floats, _DIMENSIONS, correction=0)
        local = float(floats.numel() // floats.shape[1])
        mean, variance, count = _together(mean, variance, local)
        with torch.no_grad():
            layer.follow(mean, variance, count)
        ctx.save_for_backward(floats, weight, mean, (variance + layer.eps).rsqrt(), count)
        normal = functional.batch_norm(floats, mean, variance, weight, bias, False, 0.0, layer.eps)
        return normal.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0].float()
        total = gradient.sum(_DIMENSIONS)
        moment = torch.einsum("nchw,nchw->c", gradient, values) - mean * total
        both = torch.cat([total, moment])
        of_group = both.clone()
        dist.all_reduce(of_group)
        total_mean, moment_mean = (of_group / count).chunk(2)
        # d/dx: weight·scale·(g - mean(g) - x̂·mean(g·x̂)), per channel an affine map of g and x
        slope = -weight * scale**3 * moment_mean
        offset = -weight * scale * total_mean - slope * mean
        wide = (None, slice(None), None, None)
        passed = (weight * scale)[wide] * gradient + slope[wide] * values + offset[wide]
        return passed.to(gradients[0].dtype), moment * scale, total, None


def _together(mean: Tensor, variance: Tensor, local: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of all ranks' values, and how many there are, from each rank's own.

    Merged from the ranks' means and variances, not from sums of squares, which would lose digits.
    """
    mine = torch.cat([mean, variance, mean.new_tensor([local])])
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, mine)
    table = torch.stack(rows)
    counts = table[:, -1:]
    count = counts.sum()
    means, variances = table[:, :-1].chunk(2, dim=1)
    centre = (counts * means).sum(0) / count
    spread = (counts * (variances + (means - centre) ** 2)).sum(0) / count
    return centre, spread, count
