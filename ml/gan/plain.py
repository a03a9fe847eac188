"""The same training in plain PyTorch, without the engine: what it is measured against.

Model, losses, learning rates, order of the images and noise are the job's; all else is torch's own: its Adam,
its DistributedDataParallel, its BatchNorm. Runs in one process, or in those of torchrun, each with its
share of every batch. Imports nothing of miniray.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ml.gan import model
from ml.gan.config import TrainConfig
from ml.gan.schedule import Schedule
from ml.gan.streams import Stream, normal_rows

_BETAS = (0.5, 0.999)


class PlainTraining:
    """A DCGAN in training, of rank `rank` of `size` processes."""

    def __init__(self, config: TrainConfig, images: NDArray[np.uint8], rank: int = 0, size: int = 1) -> None:
        """`size` > 1: torch.distributed has been set up."""
        self._config, self._images, self._rank = config, images, rank
        self.schedule = Schedule(len(images), config.batch_size, config.workers, config.seed, size)
        pair = model.build(config.latent_dim, config.width, config.seed)
        layout: Any = torch.channels_last if config.channels_last else torch.contiguous_format
        for module in pair:
            module.to(memory_format=layout)
        self.generator, self.discriminator = pair
        self._g, self._d = (_wrapped(module, size) for module in pair)
        self._g_adam, self._d_adam = (
            torch.optim.Adam(module.parameters(), lr=config.lr, betas=_BETAS) for module in pair
        )

    def steps(self, first: int, count: int) -> int:
        """Make `count` steps; returns on how many images of this process."""
        images = 0
        for step in range(first, first + count):
            real, noise = self._batch(step)
            self._step(real, noise)
            images += len(real)
        return images

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        schedule, config = self.schedule, self._config
        order = schedule.order(step // schedule.steps_per_epoch)
        start, end = schedule.share(step, self._rank)
        real = torch.from_numpy(self._images[order[start:end]]).float().div(127.5).sub(1.0)
        first = schedule.noise_start(step, self._rank)
        noise = normal_rows(config.seed, Stream.TRAINING_NOISE, first, end - start, config.latent_dim)
        return real.expand(-1, model.IMAGE_CHANNELS, -1, -1), torch.from_numpy(noise)

    def _step(self, real: Tensor, noise: Tensor) -> None:
        loss = functional.binary_cross_entropy_with_logits
        fake = self._g(noise)
        self._d_adam.zero_grad()
        on_real, on_fake = self._d(real), self._d(fake.detach())
        taught = torch.full_like(on_real, 1.0 - self._config.label_smoothing)
        torch.autograd.backward(loss(on_real, taught) + loss(on_fake, torch.zeros_like(on_fake)))
        self._d_adam.step()
        self._g_adam.zero_grad()
        self.discriminator.requires_grad_(False)
        belief = self.discriminator(fake)
        torch.autograd.backward(loss(belief, torch.ones_like(belief)))
        self.discriminator.requires_grad_(True)
        self._g_adam.step()


def rounds(config: TrainConfig, training: PlainTraining) -> Iterator[int]:
    """Train by rounds of the job's length; yields each one's images, of this process."""
    for round_ in training.schedule.rounds(0, config.epochs, config.sync_interval):
        yield training.steps(round_.first_step, round_.steps)


def _wrapped(module: nn.Module, size: int) -> nn.Module:
    """For several processes. Buffers stay as they are: a module runs twice before its gradients are taken."""
    if size == 1:
        return module
    parallel = nn.parallel.DistributedDataParallel
    known = inspect.signature(parallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return parallel(module, **{name: False})
