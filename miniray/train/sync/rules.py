"""The rules of merging: average, weighted average, average with block momentum.

Pure NumPy: no torch, no engine, no clock. A model travels as one flat float32 vector in four parts,

    [ weights │ running means │ running variances │ counters ]

because the parts merge by different rules. Weights are averaged. BatchNorm's running statistics are pooled:
the variance of the union of the workers' batches is the mean of the variances *plus* the variance of the
means, so the merged statistics are those of all images seen, and a variance can never turn negative,
whatever the strategy does to the weights. Counters are averaged; they are equal where all workers make the
same steps, and exact in float32 up to 2^24.

Momentum is block-wise model-update filtering (Chen & Huo, 2016): with the last common weights w, the average
a and the velocity v,   v ← m·v + (a − w),   w ← w + v.   Their choice m = 1 − 1/N is the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
STRATEGIES = ("average", "weighted", "momentum")


@dataclass(frozen=True, slots=True)
class Parts:
    """Lengths of the parts of a vector: `statistics` is the number of means, and of variances again."""

    weights: int
    statistics: int
    counters: int

    @property
    def size(self) -> int:
        return self.weights + 2 * self.statistics + self.counters

    @property
    def means(self) -> slice:
        return slice(self.weights, self.weights + self.statistics)

    @property
    def variances(self) -> slice:
        return slice(self.weights + self.statistics, self.weights + 2 * self.statistics)


def merge(vectors: Sequence[Vector], shares: Sequence[float], parts: Parts) -> Vector:
    """The mean of `vectors`, each counting by its share, with pooled running variances.

    Accumulates in float32 in the order given, so the same inputs give the same bits everywhere.
    Raises ValueError when lengths differ or no share is positive.
    """
    if len(vectors) != len(shares) or not vectors:
        raise ValueError(f"{len(vectors)} vectors and {len(shares)} shares: one share each, and at least one")
    if any(vector.shape != (parts.size,) for vector in vectors):
        raise ValueError(
            f"vectors of {[vector.shape for vector in vectors]}; each must hold {parts.size} values"
        )
    total = float(sum(shares))
    if min(shares) < 0 or total <= 0:
        raise ValueError(f"shares must be zero or more, and not all zero: {list(shares)}")
    merged = np.zeros(parts.size, dtype=np.float32)
    scratch = np.empty(parts.size, dtype=np.float32)
    for vector, share in zip(vectors, shares):
        merged += np.multiply(vector, np.float32(share / total), out=scratch)
    centre = merged[parts.means]
    for vector, share in zip(vectors, shares):
        merged[parts.variances] += np.float32(share / total) * (vector[parts.means] - centre) ** 2
    return merged


class Merger:
    """Merges round after round by one strategy, and follows the merged weights with a moving average.

    State: the last merged vector, the velocity (momentum only) and the moving average, each one vector.
    A plain object, or an actor of its own; calls must not overlap.
    """

    def __init__(
        self,
        parts: Parts,
        initial: Vector,
        *,
        strategy: str = "average",
        momentum: float = 0.0,
        ema_decay: float = 0.0,
        ema: Vector | None = None,
        velocity: Vector | None = None,
    ) -> None:
        """`ema_decay` is per step of a worker; at 0 the moving average equals the merged weights.

        `ema` and `velocity` continue an earlier Merger.
        """
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy '{strategy}' is none of {', '.join(STRATEGIES)}")
        if not (0 <= momentum < 1 and 0 <= ema_decay < 1):
            raise ValueError(f"momentum {momentum} and ema_decay {ema_decay} must lie in [0, 1)")
        self._parts, self._strategy = parts, strategy
        self._momentum, self._ema_decay = np.float32(momentum), ema_decay
        self._merged = np.array(initial, dtype=np.float32)
        self._ema = np.array(initial if ema is None else ema, dtype=np.float32)
        self._velocity = np.zeros(parts.weights, dtype=np.float32)
        if velocity is not None:
            self._velocity[:] = velocity
        for vector in (self._merged, self._ema):
            if vector.shape != (parts.size,):
                raise ValueError(f"a vector of {vector.shape} where the model has {parts.size} values")

    def merge(self, steps: int, images: Sequence[float], *vectors: Vector) -> Vector:
        """Merge the workers' vectors after `steps` steps in which worker i trained on `images[i]` images.

        Returns the vector that all workers must load next; the caller must not write to it.
        """
        shares = images if self._strategy == "weighted" else [1] * len(vectors)
        return self.advance(steps, merge(vectors, shares, self._parts))

    def advance(self, steps: int, mean: Vector) -> Vector:
        """Go on from the workers' mean, however it was made. The vector becomes the Merger's."""
        if self._strategy == "momentum":
            weights = slice(self._parts.weights)
            self._velocity *= self._momentum
            self._velocity += mean[weights] - self._merged[weights]
            np.add(self._merged[weights], self._velocity, out=mean[weights])
        self._merged = mean
        self._follow(np.float32(self._ema_decay**steps))
        return mean

    def _follow(self, keep: np.float32) -> None:
        if self._ema_decay == 0:
            self._ema = self._merged
            return
        self._ema *= keep
        self._ema += (np.float32(1) - keep) * self._merged

    def state(self) -> tuple[Vector, Vector, Vector]:
        """(merged, moving average, velocity): what a checkpoint needs. The caller must not write to them."""
        return self._merged, self._ema, self._velocity
