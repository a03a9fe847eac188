"""One copy of the model that trains on its share of the data. Knows torch, knows nothing of the engine.

A step is one update of the discriminator and one of the generator (binary cross-entropy on logits, Adam with
betas 0.5/0.999, real images taught as 1 - label_smoothing), with one forward pass of the generator for both.

Nothing here draws from a global random generator: see streams.py. One thread; torch uses the number of
threads that the owner of the process has set.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from miniray.train.sync.rules import Vector
from ml.gan import model
from ml.gan.adam import Adam
from ml.gan.config import TrainConfig
from ml.gan.products import as_products
from ml.gan.schedule import Schedule
from ml.gan.streams import Stream, normal_rows
from ml.gan.vector import Layout

_BETAS = (0.5, 0.999)
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker measured in one round: means over its images."""

    images: int
    seconds: float
    d_loss: float
    g_loss: float
    d_real: float  # the discriminator's belief in real images, 0 to 1
    d_fake: float  # ... and in generated ones


class Replica:
    """A generator, a discriminator and their optimisers, trained by rank `rank` of `config.workers`."""

    def __init__(
        self, config: TrainConfig, rank: int, images: NDArray[np.uint8], schedule: Schedule | None = None
    ) -> None:
        """`images` (n, 1 or 3, 32, 32) may be a read-only view of shared memory; only batches are copied.

        `schedule`: where the number of workers is not that of `config`.
        """
        self._config, self._rank, self._images = config, rank, images
        self._schedule = schedule or Schedule(len(images), config.batch_size, config.workers, config.seed)
        self.device = torch.device(config.device)
        pair = model.build(config.latent_dim, config.width, config.seed)
        self._generator, self._discriminator = (self._placed(module) for module in pair)
        self.modules = {"generator": self._generator, "discriminator": self._discriminator}
        self._draw, self._judge = (self._ready_to_run(module) for module in self.modules.values())
        self._share_gradients: Callable[[Iterable[Tensor]], None] | None = None
        self._layout = Layout(self.modules)
        self._optimisers = [Adam(module.parameters(), config.lr, _BETAS) for module in self.modules.values()]
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def _placed(self, module: _Module) -> _Module:
        """On the device, ready to train; channels last gives 5 to 20 % more images/s on a CPU than first."""
        as_products(module)
        moved: Any = module.to(self.device)
        if self._config.channels_last:
            moved.to(memory_format=torch.channels_last)  # in place; torch's stubs do not know this argument
        return module.train()

    def _ready_to_run(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The module as a step runs it; compiled, where that is asked for, at the first call."""
        run: Callable[[Tensor], Tensor] = torch.compile(module) if self._config.compile else module
        return run

    def share_gradients(self, together: Callable[[Iterable[Tensor]], None]) -> None:
        """From now on step on the sum of all workers' gradients, which `together` makes in place."""
        self._share_gradients = together

    def load(self, vector: Vector) -> None:
        """Take over merged weights. `vector` may be read-only."""
        self._layout.unpack(vector, self.modules)

    def vector(self) -> Vector:
        """The current weights as one flat vector of its own."""
        return self._layout.pack(self.modules)

    def digest(self) -> str:
        """A fingerprint of the current weights: equal exactly when all bits are."""
        return hashlib.blake2b(self.vector().tobytes(), digest_size=8).hexdigest()

    def train(self, first_step: int, steps: int) -> Report:
        """Make `steps` steps from `first_step` on, on this rank's share of the data."""
        started = time.perf_counter()
        totals = torch.zeros(4, device=self.device)
        images = 0
        for step in range(first_step, first_step + steps):
            real = self._batch(step)
            count = len(real)
            totals += count * self._step(real, self._noise(step, count), self._weight(step, count))
            images += count
        means = (totals / images).tolist()
        return Report(images, time.perf_counter() - started, *means)

    def _batch(self, step: int) -> Tensor:
        epoch = step // self._schedule.steps_per_epoch
        if self._order[0] != epoch:
            self._order = (epoch, self._schedule.order(epoch))
        start, end = self._schedule.share(step, self._rank)
        batch = torch.from_numpy(self._images[self._order[1][start:end]])  # indexing copies: ours to write
        scaled = self._moved(batch).float().div_(127.5).sub_(1.0)
        return scaled.expand(-1, model.IMAGE_CHANNELS, -1, -1)

    def _noise(self, step: int, count: int) -> Tensor:
        first = self._schedule.noise_start(step, self._rank)
        rows = normal_rows(self._config.seed, Stream.TRAINING_NOISE, first, count, self._config.latent_dim)
        return self._moved(torch.from_numpy(rows))

    def _moved(self, host: Tensor) -> Tensor:
        """A tensor on the device; to a GPU from pinned memory, so that nothing waits for the copy."""
        return host if self.device.type == "cpu" else host.pin_memory().to(self.device, non_blocking=True)

    def _weight(self, step: int, count: int) -> float:
        """What this worker's mean counts in the mean of all: its share of the step's images."""
        if self._share_gradients is None:
            return 1.0
        return count / self._schedule.size(step)

    def _backward(self, loss: Tensor, weight: float, parameters: Iterable[Tensor]) -> None:
        torch.autograd.backward(loss if weight == 1.0 else weight * loss)
        if self._share_gradients is not None:
            self._share_gradients(parameters)

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.amp)

    def _judged(self, images: Tensor) -> Tensor:
        with self._precision():
            return self._judge(images).float()

    def _step(self, real: Tensor, noise: Tensor, weight: float) -> Tensor:
        """One update of each network; returns (d_loss, g_loss, d_real, d_fake) without waiting for a GPU."""
        g_optimiser, d_optimiser = self._optimisers
        with self._precision():
            fake = self._draw(noise)

        d_optimiser.zero_grad()
        on_real, on_fake = self._judged(real), self._judged(fake.detach())
        taught = torch.full_like(on_real, 1.0 - self._config.label_smoothing)
        d_loss = functional.binary_cross_entropy_with_logits(on_real, taught)
        d_loss = d_loss + functional.softplus(on_fake).mean()  # the same loss for the target 0
        self._backward(d_loss, weight, self._discriminator.parameters())
        d_optimiser.step()

        g_optimiser.zero_grad()
        self._discriminator.requires_grad_(False)  # its gradients would be computed and thrown away
        g_loss = functional.softplus(-self._judged(fake)).mean()
        self._backward(g_loss, weight, self._generator.parameters())
        self._discriminator.requires_grad_(True)
        g_optimiser.step()
        measured = (d_loss, g_loss, torch.sigmoid(on_real).mean(), torch.sigmoid(on_fake).mean())
        return torch.stack([value.detach() for value in measured])

    def moments(self) -> Vector:
        """The optimisers' state as one flat vector; zeros before the first step."""
        vector: Vector = torch.cat([optimiser.moments() for optimiser in self._optimisers]).numpy()
        return vector

    def load_moments(self, moments: Vector, steps: int) -> None:
        """Continue the optimisers from `moments()` as they were after `steps` steps."""
        values = torch.from_numpy(np.array(moments, dtype=np.float32))
        sizes = [2 * sum(one.numel() for one in module.parameters()) for module in self.modules.values()]
        for optimiser, part in zip(self._optimisers, torch.split(values, sizes)):
            optimiser.load_moments(part, steps)
