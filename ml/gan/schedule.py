"""Which images and which noise each step uses: pure arithmetic that every worker agrees on without talking.

An epoch is one shuffling of the data, cut into global batches of workers × batch_size images; each worker
trains on its contiguous share of every global batch. A last part of at least half a global batch is a
(smaller) step of its own; less is left out, and differs from epoch to epoch. Noise is indexed like the
images, so the global batch of a step has the same images and the same noise for any number of workers that
make the same global batch size. A round is the steps between two merges; rounds end with the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml.gan.streams import Stream, permutation


@dataclass(frozen=True, slots=True)
class Round:
    """`steps` consecutive steps from `first_step` on, inside epoch `epoch` (counted from 0)."""

    epoch: int
    first_step: int
    steps: int
    ends_epoch: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """The plan of a run over `images` images. Steps are counted from 0 over all epochs."""

    images: int
    batch_size: int
    workers: int
    seed: int
    parts: int = 0
    """Into how many shares each global batch is cut, where that is not `workers`."""

    @property
    def shares(self) -> int:
        """Into how many shares each global batch is cut."""
        return self.parts or self.workers

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.workers

    @property
    def steps_per_epoch(self) -> int:
        return max(1, (self.images + self.global_batch // 2) // self.global_batch)

    def rounds(self, start_step: int, epochs: int, interval: int) -> Iterator[Round]:
        """The rounds from `start_step` (any step, also inside an epoch) to the end of epoch `epochs`."""
        per_epoch = self.steps_per_epoch
        step = start_step
        while step < epochs * per_epoch:
            epoch, done = divmod(step, per_epoch)
            steps = min(interval, per_epoch - done)
            yield Round(epoch, step, steps, ends_epoch=done + steps == per_epoch)
            step += steps

    def size(self, step: int) -> int:
        """How many images all workers together train on in a step."""
        return min(self.global_batch, self.images - (step % self.steps_per_epoch) * self.global_batch)

    def share(self, step: int, rank: int) -> tuple[int, int]:
        """First and one-past-last place of worker `rank`'s images in the shuffling of this step's epoch."""
        start = (step % self.steps_per_epoch) * self.global_batch
        size = self.size(step)
        return start + size * rank // self.shares, start + size * (rank + 1) // self.shares

    def noise_start(self, step: int, rank: int) -> int:
        """Index of the first noise row of worker `rank` in this step."""
        offset = self.share(step, rank)[0] - (step % self.steps_per_epoch) * self.global_batch
        return step * self.global_batch + offset

    def images_in(self, round_: Round, rank: int) -> int:
        """How many images worker `rank` trains on in a round."""
        bounds = (
            self.share(step, rank) for step in range(round_.first_step, round_.first_step + round_.steps)
        )
        return sum(end - start for start, end in bounds)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The shuffling of an epoch: image numbers in the order of training."""
        return permutation(self.seed, Stream.DATA_ORDER, epoch, self.images)
