"""The DCGAN: a generator from latent vectors to 3×32×32 images and a discriminator back to one logit.

Shapes follow Radford et al. (2016), one resolution lower than the paper's:

    generator      latent ─▶ 4w×4×4 ─▶ 2w×8×8 ─▶ w×16×16 ─▶ 3×32×32    (tanh, so images lie in [-1, 1])
    discriminator  3×32×32 ─▶ w×16×16 ─▶ 2w×8×8 ─▶ 4w×4×4 ─▶ 1          (a logit, no sigmoid)

`width` is w, 64 in the paper. A saved state dict tells its own latent size and width, so a generator is
rebuilt from its weights alone. Initial weights are a function of the seed and of nothing else: N workers
that build the same model hold the same weights before they have exchanged a byte.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

IMAGE_CHANNELS = 3
IMAGE_SIZE = 32
_INIT_STD = 0.02
_FIRST_LAYER = "layers.0.weight"


class Generator(nn.Module):
    """Latent vectors (n, latent_dim) to images (n, 3, 32, 32) in [-1, 1]."""

    def __init__(self, latent_dim: int = 100, width: int = 64) -> None:
        super().__init__()
        self.latent_dim, self.width = latent_dim, width
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent_dim, 4 * width, 4, 1, 0, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, IMAGE_CHANNELS, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        images: Tensor = self.layers(latent.view(latent.shape[0], self.latent_dim, 1, 1))
        return images


class Discriminator(nn.Module):
    """Images (n, 3, 32, 32) in [-1, 1] to logits (n,): large means "looks real"."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(IMAGE_CHANNELS, width, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(4 * width, 1, 4, 1, 0, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits.flatten()


def initialise(module: nn.Module, seed: int) -> None:
    """DCGAN's initial weights from `seed`: convolutions N(0, 0.02), norms N(1, 0.02) with zero bias."""
    draw = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, _INIT_STD, generator=draw)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, _INIT_STD, generator=draw)
            nn.init.zeros_(layer.bias)


def build(latent_dim: int, width: int, seed: int) -> tuple[Generator, Discriminator]:
    """A new pair on the CPU with initial weights drawn from `seed`."""
    generator, discriminator = Generator(latent_dim, width), Discriminator(width)
    initialise(generator, 2 * seed)
    initialise(discriminator, 2 * seed + 1)
    return generator, discriminator


def generator_from(weights: Mapping[str, Tensor]) -> Generator:
    """Rebuild a generator from its state dict, ready to draw (evaluation mode).

    Raises ValueError when the tensors are not those of a `Generator`.
    """
    first = weights.get(_FIRST_LAYER)
    if first is None or first.dim() != 4 or first.shape[1] % 4:
        raise ValueError(f"not a generator's weights: no usable '{_FIRST_LAYER}' among {list(weights)[:4]}")
    generator = Generator(latent_dim=first.shape[0], width=first.shape[1] // 4)
    try:
        generator.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(f"not a generator's weights: {error}") from error
    return generator.eval()
