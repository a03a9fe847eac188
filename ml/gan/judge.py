"""The judge of a run: one data set's features, measured once, and every generator held against them.

Runs in the driver, in one thread, so that training keeps the other cores. Making a judge takes a few seconds
(the feature network is trained), a verdict on 1,000 images well under one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.gan.features import Extractor, Inception, inception_weights, one_thread, train_extractor
from ml.gan.quality import ClassShares, Features, Manifold, Moments, Neighbourhood, frechet
from ml.gan.streams import Stream, permutation

_MOST_FOR_NEIGHBOURS = 1_000  # neighbourhoods compare all pairs


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured on one set of generated images; see quality.py for what the figures mean."""

    images: int
    frechet: float
    neighbourhood: Neighbourhood
    classes: ClassShares | None  # None: the data set has no labels
    fid: float | None = None  # on Inception's features, where its weights are here

    def to_json(self) -> dict[str, Any]:
        """Plain values, as quality.json and the report show them."""
        found: dict[str, Any] = {"images": self.images, "frechet": self.frechet, "fid": self.fid}
        found |= asdict(self.neighbourhood)
        if self.classes is not None:
            found |= {
                "classes": self.classes.classes,
                "classes_covered": self.classes.covered,
                "class_distance": self.classes.distance,
                "class_shares": [round(share, 4) for share in self.classes.drawn],
            }
        return {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in found.items()
            if value is not None
        }


class Judge:
    """Holds generated images against one data set."""

    @one_thread()
    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, count: int, device: str = "cpu"
    ) -> None:
        """`count`: how many generated images a verdict will be on; as many real ones are compared."""
        self._extractor = train_extractor(images, labels, device)
        order = permutation(0, Stream.FEATURES, 0, len(images))
        # Real images that stand for the data, and others, which show what is the best to be had.
        chosen, others = images[order[:count]], images[order[count : 2 * count]]
        self._features, classes = self._extractor.look(chosen)
        self._moments = Moments.of(self._features)
        self._manifold = Manifold.of(_first(self._features))
        self._classes = classes if self._extractor.labelled else None
        weights = inception_weights()
        self._inception = Inception(weights, device) if weights else None
        self._inception_moments = Moments.of(self._inception.look(chosen)) if self._inception else None
        self.best = self.verdict(others) if len(others) >= min(count, 100) else None

    @property
    def extractor(self) -> Extractor:
        """The network whose features are compared."""
        return self._extractor

    @property
    def images(self) -> int:
        """How many real images stand for the data set."""
        return len(self._features)

    @one_thread()
    def verdict(self, drawn: NDArray[np.uint8]) -> Verdict:
        """Measure generated images (n >= 2, 3, 32, 32)."""
        features, classes = self._extractor.look(drawn)
        shares = None
        if self._classes is not None:
            shares = ClassShares.of(classes, self._classes, self._extractor.classes)
        return Verdict(
            len(drawn),
            frechet(self._moments, Moments.of(features)),
            Neighbourhood.of(self._manifold, Manifold.of(_first(features))),
            shares,
            self._fid(drawn),
        )

    def _fid(self, drawn: NDArray[np.uint8]) -> float | None:
        if self._inception is None or self._inception_moments is None:
            return None
        return frechet(self._inception_moments, Moments.of(self._inception.look(drawn)))

    def to_json(self) -> dict[str, Any]:
        """What the figures rest on."""
        extractor = self._extractor
        found: dict[str, Any] = {
            "features": extractor.name,
            "accuracy_of_the_feature_network": round(extractor.accuracy, 4),
            "real_images": self.images,
        }
        if self._classes is not None:
            shares = np.bincount(self._classes, minlength=extractor.classes) / len(self._classes)
            found["class_shares_of_the_data"] = [round(share, 4) for share in shares.tolist()]
        if self.best is not None:
            found["real_against_real"] = self.best.to_json()
        return found


def _first(features: Features) -> Features:
    return features[:_MOST_FOR_NEIGHBOURS]
