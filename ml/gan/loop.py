"""The training loop of one worker: rounds, reports, checkpoints. Runs under `miniray.train`.

Every worker goes through the same rounds and makes one report a round. At the end of an epoch that is
due, and at the end of the run, all write into one checkpoint: worker 0 the model, and every worker its
optimisers. A file named STOP in the run's folder ends the run soon, with a checkpoint: all workers agree
on the round that is the last; who does not see the folder is told by cluster.py. Losses are means
over all workers, but in `ps`, where nobody waits for that.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from miniray import train
from miniray.train import Checkpoint, TrainContext
from ml.gan.cluster import word_is_out
from ml.gan.config import TrainConfig
from ml.gan.machine import usable_cores
from ml.gan.replica import Replica, Report
from ml.gan.schedule import Round, Schedule
from ml.gan.state import Blueprint, State, load_state, save_moments, save_state
from ml.gan.ways import Way, make_way

STOP = "stop"


@dataclass(frozen=True, slots=True)
class Plan:
    """When the loop makes checkpoints: at epochs that one of these divides; zeros do not count."""

    every_epochs: tuple[int, ...] = ()

    def due(self, round_: Round, epochs: int) -> bool:
        """Is there a checkpoint after this round?"""
        done = round_.epoch + 1
        ends = round_.ends_epoch and done == epochs
        return ends or (round_.ends_epoch and any(every and done % every == 0 for every in self.every_epochs))


def train_loop(settings: dict[str, Any]) -> None:
    """`train_loop_per_worker`; `settings` has `config`, a TrainConfig, and `plan`, a Plan."""
    _Worker(settings["config"], settings["plan"]).run()


class _Worker:
    def __init__(self, config: TrainConfig, plan: Plan) -> None:
        self._config, self._plan = config, plan
        self._context = train.get_context()
        self._rank, self._size = self._context.get_world_rank(), self._context.get_world_size()
        self._threads = _share_of_cores(self._context)
        torch.set_num_threads(self._threads)
        images = train.get_dataset_shard("images").data
        self._schedule = Schedule(len(images), config.batch_size, config.workers, config.seed, self._size)
        blueprint = Blueprint(config)
        start = _start(blueprint)
        self._first = round(start.steps * self._schedule.steps_per_epoch / start.steps_per_epoch)
        self._replica = Replica(config, self._rank, images, self._schedule)
        moments = start.moments_for(self._rank, self._size)
        if moments is not None:
            self._replica.load_moments(moments, start.steps)
        self._last: int | None = None
        self._way: Way = make_way(config, self._context, self._replica, blueprint.layout, start)

    def run(self) -> None:
        rounds = self._schedule.rounds(self._first, self._config.epochs, self._config.sync_interval)
        total = self._config.epochs * self._schedule.steps_per_epoch
        now = time.perf_counter()
        for number, round_ in enumerate(rounds):
            step = round_.first_step + round_.steps
            measured = self._ended(number, step >= total, self._way.train(round_))
            ends = number == self._last
            if ends:
                self._way.agree()
            now, before = time.perf_counter(), now
            metrics = asdict(measured) | {
                "step": step, "epoch": step / self._schedule.steps_per_epoch,
                "images_per_s": self._size * measured.images / max(now - before, 1e-9),
            }  # fmt: skip
            if number == 0:
                metrics["member"] = self._member()
            if ends:
                metrics["digest"] = self._replica.digest()
            self._report(metrics, ends or self._plan.due(round_, self._config.epochs))
            if ends:
                return

    def _ended(self, number: int, over: bool, report: Report) -> Report:
        """After a round: agree on the last one, and on what all have measured.

        `over`: no more rounds are planned.
        """
        seen = self._is_told_to_stop()
        if self._size == 1:
            self._last = number if seen or over else None
        elif self._way.lockstep:
            stops, report = self._among_all(seen, report)
            self._last = number if stops or over else None
        elif self._last is None and (seen or over):
            # Once in a run: workers are in different rounds, and all go on to the furthest one.
            furthest = torch.tensor(float(number), device=self._replica.device)
            dist.all_reduce(furthest, dist.ReduceOp.MAX)
            self._last = int(furthest.item())
        return report

    def _is_told_to_stop(self) -> bool:
        folder = Path(self._context.get_storage())
        return (folder / STOP).exists() if folder.is_dir() else word_is_out(folder)

    def _among_all(self, seen: bool, report: Report) -> tuple[bool, Report]:
        """Has any worker seen the file; and this worker's report with the means over all workers' images."""
        means = (report.d_loss, report.g_loss, report.d_real, report.d_fake)
        row = [float(seen), float(report.images), *(report.images * value for value in means)]
        total = torch.tensor(row, device=self._replica.device)
        dist.all_reduce(total)
        stops, images, *sums = total.tolist()
        return stops > 0, Report(report.images, report.seconds, *(value / images for value in sums))

    def _report(self, metrics: dict[str, Any], due: bool) -> None:
        if not due:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="gan-checkpoint-") as name:
            folder = Path(name)
            if self._rank == 0:
                state = State(*self._way.state(), int(metrics["step"]), self._schedule.steps_per_epoch)
                save_state(folder, state, self._config.to_json())
            if self._rank == 0 or self._config.parallel != "ddp":
                save_moments(folder, self._rank, self._replica.moments())
            train.report(metrics, Checkpoint(folder))

    def _member(self) -> dict[str, Any]:
        return {
            "rank": self._rank, "host": socket.gethostname(), "pid": os.getpid(),
            "threads": self._threads, "device": str(self._replica.device),
        }  # fmt: skip


def _start(blueprint: Blueprint) -> State:
    checkpoint = train.get_checkpoint()
    return blueprint.fresh() if checkpoint is None else load_state(Path(checkpoint.path))[0]


def _share_of_cores(context: TrainContext) -> int:
    """This machine's cores divided by the workers on it, whatever number of nodes it plays.

    A user who sets OMP_NUM_THREADS for a run in his own process means it.
    """
    if not context.get_node_id():
        return int(os.environ.get("OMP_NUM_THREADS") or usable_cores())
    if context.get_world_size() == 1:
        return usable_cores()
    hosts: list[Any] = [None] * context.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return max(1, usable_cores() // Counter(hosts)[socket.gethostname()])
