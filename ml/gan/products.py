"""The two outermost convolutions of a DCGAN as what they are: matrix products.

The generator's first kernel begins at a single pixel, the discriminator's last one covers its whole input.
Kernels for convolutions take two to ten times as long for these as a product of matrices, together 6 % of
a step on one core. Weights, shapes and state dicts are those of the torch layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CHANNELS_LAST = (0, 2, 3, 1)
_CHANNELS_FIRST = (0, 3, 1, 2)


class FromPixel(nn.ConvTranspose2d):
    """A transposed convolution of images of one pixel: (n, c, 1, 1) to (n, out, height, width)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert input.shape[2:] == (1, 1) and output_size is None
        _, out, height, width = self.weight.shape
        if not _lies_channels_last(self.weight):
            return (input.flatten(1) @ self.weight.flatten(1)).view(-1, out, height, width)
        product = input.flatten(1) @ self.weight.permute(_CHANNELS_LAST).flatten(1)
        return product.view(-1, height, width, out).permute(_CHANNELS_FIRST)


class ToPixel(nn.Conv2d):
    """A convolution whose kernel covers its input: (n, c, height, width) to (n, out, 1, 1)."""

    def forward(self, input: Tensor) -> Tensor:
        assert input.shape[2:] == self.weight.shape[2:]
        kernel = self.weight
        if _lies_channels_last(input):
            input, kernel = input.permute(_CHANNELS_LAST), kernel.permute(_CHANNELS_LAST)
        return (input.flatten(1) @ kernel.flatten(1).t()).view(-1, kernel.shape[0], 1, 1)


def as_products(module: nn.Module) -> None:
    """Have a network of a DCGAN compute its outermost convolution, the one without stride, by a product."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.stride == (1, 1):
            assert layer.padding == (0, 0) and layer.bias is None
            layer.__class__ = FromPixel if isinstance(layer, nn.ConvTranspose2d) else ToPixel


def _lies_channels_last(tensor: Tensor) -> bool:
    return bool(tensor.is_contiguous(memory_format=torch.channels_last))
