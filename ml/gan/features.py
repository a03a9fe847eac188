"""Feature vectors of images, from a small network that is trained here, on the data set that is being drawn.

A Fréchet distance is usually taken on an Inception network's features, whose weights have to be downloaded.
This job trains its own: a classifier of the data set's labels, or, where it has none, of the quarter turns
by which images were rotated (Gidaris et al. 2018). A few seconds on one core; the same data set always gives
the same network, so figures of different runs on one data set can be compared. They cannot be compared with
published FIDs. Where torchvision's Inception weights lie in torch's cache already, `inception` offers them.

Runs in the calling thread, on the CPU or on the device that is named. On the CPU it is best given one
thread (`one_thread`): that leaves the others to training, and any number of cores gives the same network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ml.gan.streams import Stream, permutation

DIMENSIONS = 64
_SEED = 0  # of the network: not the run's, so that all runs are judged alike
_BATCH, _DRAWN_AT_ONCE = 64, 256
_STEPS, _EPOCHS_AT_MOST = 300, 30  # at least one epoch in any case
_MOST_IMAGES = 20_000
_HELD_OUT = 0.1
_LEARNING_RATE = 2e-3
_INCEPTION_FILE = "inception_v3_google-0cc3c7bd.pth"
_INCEPTION_SIDE = 299


class Classifier(nn.Module):
    """Images (n, 3, 32, 32) in [-1, 1] to class logits (n, classes), by way of features (n, DIMENSIONS)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(64 * 16, DIMENSIONS),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(DIMENSIONS, classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images))
        return logits


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works in the calling thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Extractor:
    """A trained network, ready to look at images."""

    name: str  # what the figures are called by: of the classes learnt, or the network
    network: Classifier
    classes: int
    labelled: bool  # False: the classes are quarter turns and say nothing of the data
    accuracy: float  # on a tenth of the images that it was not trained on

    def look(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Features (n, DIMENSIONS) and likeliest class (n) of uint8 images (n, 1 or 3, 32, 32)."""
        features, classes = [], []
        with torch.inference_mode():
            for batch in _batches(images, next(self.network.parameters()).device):
                found = self.network.trunk(batch)
                features.append(found.double().cpu().numpy())
                classes.append(self.network.head(found).argmax(dim=1).cpu().numpy())
        return np.concatenate(features), np.concatenate(classes)


def train_extractor(
    images: NDArray[np.uint8], labels: NDArray[np.int64] | None, device: str = "cpu"
) -> Extractor:
    """Train a network on images (n, 1 or 3, 32, 32) and their labels, or on their quarter turns."""
    order = permutation(_SEED, Stream.FEATURES, 0, len(images))[:_MOST_IMAGES]
    labelled = labels is not None and len(np.unique(labels)) > 1
    if labelled and labels is not None:
        _, targets = np.unique(labels, return_inverse=True)
        images, targets = images[order], targets[order].astype(np.int64)
    else:
        targets = permutation(_SEED, Stream.FEATURES, 1, len(order)) % 4
        images = np.stack([np.rot90(images[at], turn, (1, 2)) for at, turn in zip(order, targets)])
    held_out = max(1, int(len(images) * _HELD_OUT))
    classes = int(targets.max()) + 1
    network = _fit(images[held_out:], targets[held_out:], classes, device)
    name = f"{classes}-class features" if labelled else "quarter-turn features"
    judged = Extractor(name, network, classes, labelled, 0.0)
    right = judged.look(images[:held_out])[1] == targets[:held_out]
    return Extractor(name, network, classes, labelled, float(right.mean()))


def _fit(images: NDArray[np.uint8], targets: NDArray[np.int64], classes: int, device: str) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = Classifier(classes).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    steps_per_epoch = -(-len(images) // _BATCH)
    steps = max(min(_STEPS, _EPOCHS_AT_MOST * steps_per_epoch), steps_per_epoch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    network.train()
    for step in range(steps):
        epoch, at = divmod(step, steps_per_epoch)
        order = permutation(_SEED, Stream.FEATURES, 2 + epoch, len(images))[at * _BATCH : (at + 1) * _BATCH]
        if len(order) < 2:  # BatchNorm needs more than one image
            continue
        loss = functional.cross_entropy(
            network(as_tensor(images[order], device)), torch.from_numpy(targets[order]).to(device)
        )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return network.eval()


def as_tensor(images: NDArray[np.uint8], device: Any) -> Tensor:
    """uint8 (n, 1 or 3, h, w) to float32 (n, 3, h, w) in [-1, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(images)).to(device).float().div(127.5).sub(1.0)
    return values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values


def _batches(images: NDArray[np.uint8], device: Any) -> Iterator[Tensor]:
    for first in range(0, len(images), _DRAWN_AT_ONCE):
        yield as_tensor(images[first : first + _DRAWN_AT_ONCE], device)


def inception_weights() -> Path | None:
    """Where torchvision's Inception v3 weights lie in torch's cache; None where they do not."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
    return path if path.is_file() else None


class Inception:
    """torchvision's Inception v3, pooled features of 2,048 dimensions: the network of published FIDs.

    Its weights differ a little from those of the original implementation, and so do its figures.
    """

    name = "Inception v3 features"

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        from ml.gan.vision import models

        build = models().inception_v3
        network = build(weights=None, init_weights=False, aux_logits=True, transform_input=False)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        network.fc = nn.Identity()
        self._network, self._device = network.eval().to(device), device

    def look(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features (n, 2048) of uint8 images (n, 1 or 3, 32, 32)."""
        found = []
        side = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        with torch.inference_mode():
            for batch in _batches(images, self._device):
                scaled = functional.interpolate(batch, side, mode="bilinear", antialias=True)
                found.append(self._network(scaled).double().cpu().numpy())
        return np.concatenate(found)
