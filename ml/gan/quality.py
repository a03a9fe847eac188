"""How good generated images are, from feature vectors of real and of generated ones. NumPy alone.

    frechet      distance of two Gaussians fitted to the features (Heusel et al. 2017): 0 is perfect
    precision    share of generated images that lie among the real ones (Kynkäänniemi et al. 2019)
    recall       share of real images that lie among the generated ones (the same)
    density      how crowded the real images are where the generated ones lie (Naeem et al. 2020)
    coverage     share of real images with a generated one beside them (the same)
    classes      which classes a generator draws, and how far their shares are from the data's

All of them depend on how many images are compared: a figure means something beside another one that was
measured on the same features with the same number of images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]  # (images, dimensions)
_NEIGHBOURS = 3
# A class counts as drawn when the generator gives it at least this part of its share in the data.
_COVERED_FROM = 0.1


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean (d) and covariance (d, d) of a set of features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: Features) -> Moments:
        """Of at least two feature vectors. Raises ValueError."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features of shape {features.shape}: at least two vectors are needed")
        return cls(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet(first: Moments, second: Moments) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), at least 0.

    The trace of the root is the sum of the singular values of C1^½ C2^½: real for any two covariances,
    also for those of rank below d, where the root of the product itself loses all its digits.
    """
    shift = first.mean - second.mean
    cross = np.linalg.svd(_root(first.covariance) @ _root(second.covariance), compute_uv=False).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return max(0.0, float(shift @ shift + spread - 2 * cross))


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


@dataclass(frozen=True, slots=True)
class Manifold:
    """A set of feature vectors, each with the ball that reaches to its nearest others."""

    features: Features
    squared_radii: NDArray[np.float64]

    @classmethod
    def of(cls, features: Features) -> Manifold:
        among = _squared_distances(features, features)
        # Each vector is its own nearest neighbour, at distance zero: its k-th other one has index k.
        nearest = min(_NEIGHBOURS, len(features) - 1)
        return cls(features, np.partition(among, nearest, axis=1)[:, nearest])


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """How two sets of feature vectors lie among one another.

    One stray real image with a large ball can lift `precision`, which asks for any ball: noise may lie in
    it. `density` and `coverage` (Naeem et al. 2020) do not have that weakness.
    """

    precision: float  # share of drawn vectors inside some real vector's ball
    recall: float  # share of real vectors inside some drawn vector's ball
    density: float  # real balls that a drawn vector lies in, over the neighbours; about 1 for real images
    coverage: float  # share of real vectors whose ball holds a drawn one

    @classmethod
    def of(cls, real: Manifold, drawn: Manifold) -> Neighbourhood:
        distances = _squared_distances(drawn.features, real.features)
        in_real = distances <= real.squared_radii
        in_drawn = distances <= drawn.squared_radii[:, None]
        return cls(
            float(in_real.any(axis=1).mean()),
            float(in_drawn.any(axis=0).mean()),
            float(in_real.sum(axis=1).mean() / _NEIGHBOURS),
            float(in_real.any(axis=0).mean()),
        )


def _squared_distances(first: Features, second: Features) -> NDArray[np.float64]:
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :]
    distances: NDArray[np.float64] = np.clip(squares - 2 * first @ second.T, 0, None)
    return distances


@dataclass(frozen=True, slots=True)
class ClassShares:
    """Shares of classes among generated images, beside those of the data."""

    drawn: tuple[float, ...]
    data: tuple[float, ...]

    @classmethod
    def of(cls, drawn: NDArray[np.int64], data: NDArray[np.int64], classes: int) -> ClassShares:
        """From the class of each generated and of each real image (0 … classes - 1)."""
        shares = (np.bincount(which, minlength=classes) / max(1, len(which)) for which in (drawn, data))
        one, other = (tuple(share.tolist()) for share in shares)
        return cls(one, other)

    @property
    def classes(self) -> int:
        """How many classes the data holds."""
        return sum(share > 0 for share in self.data)

    @property
    def covered(self) -> int:
        """How many of them the generator draws, at a tenth of their share or more."""
        return sum(
            0 < share <= drawn / _COVERED_FROM for drawn, share in zip(self.drawn, self.data, strict=True)
        )

    @property
    def distance(self) -> float:
        """Total variation distance of the two histograms: 0 alike, 1 nothing in common."""
        return float(np.abs(np.subtract(self.drawn, self.data)).sum() / 2)
