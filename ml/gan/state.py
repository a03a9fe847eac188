"""What a run goes on from: the state of a model in training, new or from a checkpoint's directory.

    state.pth             merged weights, moving average, velocity, and how far the run is
    moments-<rank>.pth    the optimisers of one worker; all workers write into one directory

Both are dictionaries of tensors and plain values, and load without miniray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miniray.train.sync.rules import Vector
from ml.gan import model
from ml.gan.config import TrainConfig
from ml.gan.vector import Layout

STATE = "state.pth"
_MOMENTS = "moments-{}.pth"


@dataclass(frozen=True, slots=True)
class State:
    """A model after `steps` steps, of `steps_per_epoch` each."""

    merged: Vector
    ema: Vector
    velocity: Vector
    steps: int = 0
    steps_per_epoch: int = 1
    moments: tuple[Vector, ...] = ()

    def moments_for(self, rank: int, workers: int) -> Vector | None:
        """The optimisers of one worker; with another number of workers than were saved, the mean."""
        if not self.moments:
            return None
        if len(self.moments) in (1, workers):
            return self.moments[rank % len(self.moments)]
        return np.mean(self.moments, axis=0, dtype=np.float32)


@dataclass(slots=True)
class Blueprint:
    """A copy of the model that gives the layout and the initial weights, and trains nothing."""

    config: TrainConfig
    layout: Layout = field(init=False)
    _modules: dict[str, torch.nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        pair = model.build(self.config.latent_dim, self.config.width, self.config.seed)
        self._modules = dict(zip(("generator", "discriminator"), pair))
        self.layout = Layout(self._modules)

    def fresh(self) -> State:
        """The start from the initial weights that the seed gives."""
        vector = self.layout.pack(self._modules)
        return State(vector, vector, np.zeros(self.layout.parts.weights, dtype=np.float32))


def save_state(folder: Path, state: State, config: Mapping[str, Any]) -> None:
    """Write state.pth: all but the moments."""
    tensors = {name: _tensor(getattr(state, name)) for name in ("merged", "ema", "velocity")}
    numbers = {"steps": state.steps, "steps_per_epoch": state.steps_per_epoch, "config": dict(config)}
    torch.save(tensors | numbers, folder / STATE)


def save_moments(folder: Path, rank: int, moments: Vector) -> None:
    """Write one worker's optimisers."""
    torch.save({"moments": _tensor(moments)}, folder / _MOMENTS.format(rank))


def load_state(folder: Path) -> tuple[State, dict[str, Any]]:
    """What a checkpoint's directory holds, and the settings it was trained with."""
    content = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    moments = []
    while (path := folder / _MOMENTS.format(len(moments))).exists():
        moments.append(torch.load(path, map_location="cpu", weights_only=True)["moments"].numpy())
    vectors = (content[name].numpy() for name in ("merged", "ema", "velocity"))
    sizes = int(content["steps"]), int(content["steps_per_epoch"])
    return State(*vectors, *sizes, tuple(moments)), content["config"]


def _tensor(vector: Vector) -> torch.Tensor:
    # A copy: torch knows no read-only tensors, and the vector may be a view of shared memory.
    return torch.from_numpy(np.array(vector, dtype=np.float32))
