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

_PER_CHANNEL = (None, slice(None), None, None)
_ALL_THREE = [True, True, True]  # gradients: of the values, the weight and the bias


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


def over_group(module: nn.Module, compiled: bool = False) -> nn.Module:
    """`module` with every BatchNorm2d, in place, over the batches of the group.

    `compiled`: the module is for torch.compile, which has to leave these layers as they are.
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = GroupBatchNorm2d
            if compiled:
                layer.forward = torch.compiler.disable(layer.forward)
    return module


class _Normalise(torch.autograd.Function):
    """Batch normalisation by the group's statistics, with its gradient.

    By torch's own kernels for the passes over the images: they are several times as fast as the same
    arithmetic written out over tensors.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, layer: GroupBatchNorm2d) -> Tensor:
        floats = values.float()
        mean, variance = torch.batch_norm_update_stats(floats, None, None, 0.0)
        mean, variance, count = _together(mean, variance, floats.numel() // floats.shape[1])
        with torch.no_grad():
            layer.follow(mean, variance, count)
        ctx.save_for_backward(floats, weight, mean, variance, count)
        ctx.epsilon = layer.eps
        normal = functional.batch_norm(floats, mean, variance, weight, bias, False, 0.0, layer.eps)
        return normal.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, variance, count = ctx.saved_tensors
        # As if the statistics were constants: passed is weight·scale·g, and the sums over this worker's
        # images of g·x̂ and of g are the gradients of weight and bias.
        passed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0].float(), values, weight, mean, variance, None, None, False, ctx.epsilon, _ALL_THREE
        )
        of_group = torch.cat([of_weight, of_bias])
        dist.all_reduce(of_group)
        moment_mean, total_mean = (of_group / count).chunk(2)
        # What the statistics add: -weight·scale·(mean(g) + x̂·mean(g·x̂)), per channel an affine map of x.
        scale = (variance + ctx.epsilon).rsqrt()
        slope = -weight * scale**2 * moment_mean
        offset = -weight * scale * total_mean - slope * mean
        passed.addcmul_(values, slope[_PER_CHANNEL]).add_(offset[_PER_CHANNEL])
        return passed.to(gradients[0].dtype), of_weight, of_bias, None


def _together(mean: Tensor, variance: Tensor, local: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of all ranks' values, and how many there are, from each rank's own.

    Summed in double precision: the squares of single precision have room there.
    """
    mean, variance = mean.double(), variance.double()
    sums = torch.cat([mean, variance + mean**2, mean.new_ones(1)]).mul_(local)
    dist.all_reduce(sums)
    count = sums[-1:]
    centre, squares = (sums[:-1] / count).chunk(2)
    spread = (squares - centre**2).clamp_(min=0.0)
    return centre.float(), spread.float(), count.float()
