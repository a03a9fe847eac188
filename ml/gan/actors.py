"""The group on a cluster: N actors that train, one that merges, a driver that moves references only.

      driver                 rank 0 … N-1                         merger
        │ train_round(merged) ─▶ load, K steps
        │                        weights ──▶ object store ──▶ merge(weights 0 … N-1)
        │ ◀─ report                          object store ◀── merged
        │ train_round(merged') ─▶ …

The data set is put into the object store once; every worker on a node reads it through the same shared
memory, and copies only its batches. Weights are one array per worker and round, and the merged ones are one
array: the driver passes their references on, so no array passes through it, and because the engine
resolves references before it starts a call, the driver can submit a round before the last one is done and
the workers never wait for it.

The merger reads N arrays a round, so its work grows with N: right for tens of workers of this model (7 MB
at width 64). A worker that dies ends the run with the engine's error; checkpoints are on the driver's disk.
"""

from __future__ import annotations

import math
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import miniray as ray
from miniray.train.sync.rules import Merger, Vector
from ml.gan.config import TrainConfig
from ml.gan.group import Member, Start, State, new_merger
from ml.gan.machine import usable_cores
from ml.gan.replica import Replica, Report
from ml.gan.schedule import Round, Schedule
from ml.gan.vector import Layout

_PATIENCE_S = 10.0  # how long to wait for workers before saying what the run waits for


class TrainingWorker:
    """The actor around one Replica: rank `rank` of the run. Sync actor, one call at a time, in order."""

    def __init__(
        self, config: TrainConfig, rank: int, images: NDArray[np.uint8], moments: Vector | None, steps: int
    ) -> None:
        self._config, self._rank = config, rank
        self._replica = Replica(config, rank, images)
        if moments is not None:
            self._replica.load_moments(moments, steps)

    def host(self) -> tuple[str, int]:
        """Name of the machine and its usable cores."""
        return socket.gethostname(), usable_cores()

    def settle(self, threads: int) -> Member:
        """Use `threads` threads from now on."""
        torch.set_num_threads(threads)
        return Member(self._rank, socket.gethostname(), os.getpid(), threads, self._config.device)

    def train_round(self, merged: Vector, first_step: int, steps: int) -> tuple[Report, Vector]:
        """Load the merged weights, make the steps; two returns, so that the array travels on its own."""
        self._replica.load(merged)
        report = self._replica.train(first_step, steps)
        return report, self._replica.vector()

    def moments(self) -> Vector:
        return self._replica.moments()

    def adopt(self, merged: Vector) -> str:
        """Load the merged weights and return the fingerprint of what this worker holds then."""
        self._replica.load(merged)
        return self._replica.digest()


@dataclass(frozen=True, slots=True)
class _Saved:
    """References to a state that is still being computed."""

    merger: Any
    moments: list[Any]


class ActorGroup:
    """`config.workers` training actors and their merger, on a connected engine; see the head of this file."""

    def __init__(
        self,
        config: TrainConfig,
        images: NDArray[np.uint8],
        layout: Layout,
        start: Start,
        say: Callable[[str], None],
    ) -> None:
        """Returns when all workers stand ready. `say` gets a line when that takes long, and why."""
        self._config = config
        self._schedule = Schedule(len(images), config.batch_size, config.workers, config.seed)
        data = ray.put(images)
        worker = ray.remote(TrainingWorker).options(num_cpus=1, num_gpus=gpu_share(config))
        self._workers = [
            worker.remote(config, rank, data, start.moments_for(rank, config.workers), start.steps)
            for rank in range(config.workers)
        ]
        self._merger = ray.remote(Merger).options(num_cpus=0).remote(**new_merger(config, layout, start))
        self._merged = ray.put(start.state.merged)
        self.members = self._settle(say)

    def _settle(self, say: Callable[[str], None]) -> list[Member]:
        """Wait for all workers, then share each machine's cores among those that landed on it."""
        places = [worker.host.remote() for worker in self._workers]
        _, late = ray.wait(places, num_returns=len(places), timeout=_PATIENCE_S)
        if late:
            free = ray.available_resources().get("CPU", 0.0)
            say(f"waiting for {len(late)} of {len(places)} workers; the cluster has {free:g} CPUs free")
        hosts = ray.get(places)
        crowd = Counter(host for host, _ in hosts)
        threads = [max(1, cores // crowd[host]) for host, cores in hosts]
        calls = [worker.settle.remote(count) for worker, count in zip(self._workers, threads)]
        members: list[Member] = ray.get(calls)
        return members

    def submit(self, round_: Round) -> list[Any]:
        reports, vectors = [], []
        for worker in self._workers:
            call = worker.train_round.options(num_returns=2)
            report, vector = call.remote(self._merged, round_.first_step, round_.steps)
            reports.append(report)
            vectors.append(vector)
        images = [self._schedule.images_in(round_, rank) for rank in range(len(self._workers))]
        self._merged = self._merger.merge.remote(round_.steps, images, *vectors)
        return reports

    def collect(self, handle: list[Any]) -> list[Report]:
        reports: list[Report] = ray.get(handle)
        return reports

    def checkpoint(self, *, moments: bool) -> _Saved:
        wanted = self._workers if moments else []
        return _Saved(self._merger.state.remote(), [worker.moments.remote() for worker in wanted])

    def take(self, handle: _Saved) -> State:
        merged, ema, velocity = ray.get(handle.merger)
        return State(merged, ema, velocity, tuple(ray.get(handle.moments)))

    def digests(self) -> list[str]:
        found: list[str] = ray.get([worker.adopt.remote(self._merged) for worker in self._workers])
        return found

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        ray.kill(self._merger)


def gpu_share(config: TrainConfig) -> float:
    """GPUs for each worker: whole ones where they suffice, else an equal fraction that packs onto them."""
    if config.device != "cuda":
        return 0.0
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return 1.0 / math.ceil(config.workers / max(1, gpus))
