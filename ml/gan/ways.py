"""Three ways to train one model in several workers.

    ddp    every step on the gradients of all: what one worker would do on the whole batch
    sync   K steps alone, then the parameters of all become one (`--sync-strategy`)
    ps     K steps alone, then a push to a parameter server and its parameters back; nobody waits

Each is an object in every worker that trains the worker's Replica for one round of K steps. Worker 0
also follows the moving average of the weights, by the steps that were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from miniray.train import TrainContext
from miniray.train.sync import Merger, ParameterServer, Vector, group_mean
from miniray.train.sync.shared import SharedSum
from ml.gan.config import TrainConfig
from ml.gan.norm import over_group
from ml.gan.replica import Replica, Report
from ml.gan.schedule import Round
from ml.gan.state import State
from ml.gan.vector import Layout


class Way(Protocol):
    """See the head of this file."""

    lockstep: bool
    """Are all workers in the same round?"""

    def train(self, round_: Round) -> Report:
        """Make a round's steps; the replica then holds what it goes on from."""

    def state(self) -> tuple[Vector, Vector, Vector]:
        """Worker 0: (merged weights, their moving average, velocity), for a checkpoint."""

    def agree(self) -> None:
        """After the last round: have every worker hold the same weights."""


def make_way(
    config: TrainConfig, context: TrainContext, replica: Replica, layout: Layout, start: State
) -> Way:
    """The way that `config` names, and a replica that holds the weights of `start`."""
    replica.load(start.merged)
    leads = context.get_world_rank() == 0
    merger = Merger(
        layout.parts, start.merged, strategy=config.sync_strategy if config.parallel == "sync" else "average",
        momentum=config.momentum if config.sync_strategy == "momentum" else 0.0,
        ema_decay=config.ema_decay if leads else 0.0, ema=start.ema, velocity=start.velocity,
    )  # fmt: skip
    size = context.get_world_size()
    if config.parallel == "ddp":
        return _EveryStep(replica, merger, config, size)
    if config.parallel == "ps" and size > 1:
        return _Server(replica, merger, layout, start, context)
    return _Merged(replica, merger, layout, config, size)


class _EveryStep:
    lockstep = True

    def __init__(self, replica: Replica, merger: Merger, config: TrainConfig, size: int) -> None:
        self._replica, self._merger = replica, merger
        self._statistics_differ = size > 1 and config.batchnorm == "local"
        if size > 1:
            if config.batchnorm == "group":
                for module in replica.modules.values():
                    over_group(module, config.compile)
            replica.share_gradients(_summing(replica))

    def train(self, round_: Round) -> Report:
        report = self._replica.train(round_.first_step, round_.steps)
        self._merger.advance(round_.steps, self._replica.vector())
        return report

    def state(self) -> tuple[Vector, Vector, Vector]:
        return self._merger.state()

    def agree(self) -> None:
        if self._statistics_differ:  # all take those of worker 0, as it is worker 0's that are saved
            held = torch.from_numpy(self._replica.vector()).to(self._replica.device)
            dist.broadcast(held, 0)
            self._replica.load(held.cpu().numpy())


class _Merged:
    lockstep = True

    def __init__(
        self, replica: Replica, merger: Merger, layout: Layout, config: TrainConfig, size: int
    ) -> None:
        self._replica, self._merger, self._parts = replica, merger, layout.parts
        self._weighted, self._size = config.sync_strategy == "weighted", size

    def train(self, round_: Round) -> Report:
        report = self._replica.train(round_.first_step, round_.steps)
        mean = self._replica.vector()
        if self._size > 1:
            share = float(report.images) if self._weighted else 1.0
            mean = group_mean(mean, share, self._parts, self._replica.device)
        self._replica.load(self._merger.advance(round_.steps, mean))
        return report

    def state(self) -> tuple[Vector, Vector, Vector]:
        return self._merger.state()

    def agree(self) -> None:
        pass


class _Server:
    """Worker 0 makes the server, an actor that ends with it."""

    lockstep = False

    def __init__(
        self, replica: Replica, merger: Merger, layout: Layout, start: State, context: TrainContext
    ) -> None:
        import miniray as ray

        self._ray, self._replica, self._merger, self._parts = ray, replica, merger, layout.parts
        name = f"gan-parameters-{context.incarnation}"
        if context.get_world_rank() == 0:
            server = ray.remote(ParameterServer).options(name=name, num_cpus=0)
            part = 1 / context.get_world_size()
            self._server: Any = server.remote(layout.parts, start.merged, part=part)
            ray.get(self._server.pull.remote())
        dist.barrier()
        if context.get_world_rank() != 0:
            self._server = ray.get_actor(name)
        self._take(self._server.pull.remote())

    def train(self, round_: Round) -> Report:
        report = self._replica.train(round_.first_step, round_.steps)
        update = self._replica.vector()
        weights = slice(self._parts.weights)
        update[weights] -= self._held[weights]
        self._take(self._server.push.remote(update, self._version))
        self._merger.advance(round_.steps, self._held.copy())
        return report

    def _take(self, answer: Any) -> None:
        self._held, self._version = self._ray.get(answer)
        self._replica.load(self._held)

    def state(self) -> tuple[Vector, Vector, Vector]:
        return self._merger.state()

    def agree(self) -> None:
        dist.barrier()
        self._take(self._server.pull.remote())
        self._merger.advance(0, self._held.copy())


def _summing(replica: Replica) -> Callable[[Iterable[Tensor]], None]:
    """What replaces every gradient by the sum of all workers': in shared memory where they can share some."""
    values = max(sum(one.numel() for one in module.parameters()) for module in replica.modules.values())
    shared = SharedSum.made(values) if replica.device.type == "cpu" else None
    if shared is None:
        return sum_gradients
    return lambda parameters: shared.add_up(_gradients(parameters))


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by the sum of all workers' gradients, in one reduction."""
    gradients = _gradients(parameters)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view(gradient.shape))
