"""The group that trains: one interface, whether its replicas live in this process or on a cluster.

    submit(round) ─▶ handle      every replica loads the last merged weights, makes the round's steps,
                                 and the Merger makes the next merged weights of theirs
    collect(handle) ─▶ reports   what the replicas measured in that round
    checkpoint(...) ─▶ handle    the state after all rounds submitted so far; take(handle) ─▶ State

A submit may return before the work is done, and rounds may be submitted ahead: they run in order.
This file holds the interface and the group of one in this process; actors.py holds the group on a cluster.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from miniray.train.sync.rules import Merger, Vector
from ml.gan import model
from ml.gan.config import TrainConfig
from ml.gan.replica import Replica, Report
from ml.gan.schedule import Round
from ml.gan.vector import Layout


@dataclass(frozen=True, slots=True)
class State:
    """Everything that a run continues from. `moments` holds one vector per worker, or none."""

    merged: Vector
    ema: Vector
    velocity: Vector
    moments: tuple[Vector, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """Where a group begins: a fresh model, or a saved state after `steps` steps."""

    state: State
    steps: int = 0

    def moments_for(self, rank: int, workers: int) -> Vector | None:
        """The optimiser's state for one worker; with another number of workers than was saved, the mean."""
        saved = self.state.moments
        if not saved:
            return None
        return saved[rank] if len(saved) == workers else np.mean(saved, axis=0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Member:
    """One worker, as run.json names it."""

    rank: int
    host: str
    pid: int
    threads: int
    device: str


@dataclass(slots=True)
class Blueprint:
    """The driver's own copy of the model: it gives the layout and the initial weights, and trains nothing."""

    config: TrainConfig
    layout: Layout = field(init=False)
    _modules: dict[str, torch.nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        pair = model.build(self.config.latent_dim, self.config.width, self.config.seed)
        self._modules = dict(zip(("generator", "discriminator"), pair))
        self.layout = Layout(self._modules)

    def fresh(self) -> Start:
        """A start from the initial weights that the seed gives."""
        vector = self.layout.pack(self._modules)
        return Start(State(vector, vector, np.zeros(self.layout.parts.weights, dtype=np.float32)))


class Group(Protocol):
    """See the head of this file. Handles are opaque to the caller."""

    @property
    def members(self) -> Sequence[Member]: ...

    def submit(self, round_: Round) -> Any: ...

    def collect(self, handle: Any) -> list[Report]: ...

    def checkpoint(self, *, moments: bool) -> Any: ...

    def take(self, handle: Any) -> State: ...

    def digests(self) -> list[str]:
        """Each replica's fingerprint after it has loaded the last merged weights: all equal, or a fault."""

    def close(self) -> None: ...


def new_merger(config: TrainConfig, layout: Layout, start: Start) -> dict[str, Any]:
    """The arguments of the run's Merger; the same for a local object and for an actor."""
    return {
        "parts": layout.parts,
        "strategy": config.sync_strategy,
        "momentum": config.momentum if config.sync_strategy == "momentum" else 0.0,
        "ema_decay": config.ema_decay,
        "initial": start.state.merged,
        "ema": start.state.ema,
        "velocity": start.state.velocity,
    }


class LocalGroup:
    """One replica in this process: mode `single`. Work is done inside submit."""

    def __init__(
        self, config: TrainConfig, images: NDArray[np.uint8], layout: Layout, start: Start, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._replica = Replica(config, 0, images)
        self._merger = Merger(**new_merger(config, layout, start))
        self._merged = start.state.merged
        moments = start.moments_for(0, 1)
        if moments is not None:
            self._replica.load_moments(moments, start.steps)
        self.members = [Member(0, socket.gethostname(), os.getpid(), threads, config.device)]

    def submit(self, round_: Round) -> list[Report]:
        self._replica.load(self._merged)
        report = self._replica.train(round_.first_step, round_.steps)
        self._merged = self._merger.merge(round_.steps, [report.images], self._replica.vector())
        return [report]

    def collect(self, handle: list[Report]) -> list[Report]:
        return handle

    def checkpoint(self, *, moments: bool) -> State:
        merged, ema, velocity = (part.copy() for part in self._merger.state())
        return State(merged, ema, velocity, (self._replica.moments(),) if moments else ())

    def take(self, handle: State) -> State:
        return handle

    def digests(self) -> list[str]:
        self._replica.load(self._merged)
        return [self._replica.digest()]

    def close(self) -> None:
        pass
