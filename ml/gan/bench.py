"""What the engine costs a training: images/s of its workers beside plain torchrun, in one run.

    python -m ml.gan.bench [--workers N] [--width W] [--batch-size B] [--rounds R] [--turns T]

Both train the same model on the same shares with the same number of threads, by turns, so that whatever else
the machine does meets both alike; the ratio is the median over the turns. torchrun runs the steps and nothing
else; the engine's workers also report every round to the driver, as in a real run. One process with all
threads is measured besides: what a machine gives without being shared out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml.gan.config import TrainConfig
from ml.gan.machine import usable_cores
from ml.gan.options import positive

_IMAGES = 2_048
_WARM_UP_ROUNDS = 1
_SAID = "rates "
_PATIENCE_S = 600.0


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table; returns 0."""
    options = _parser().parse_args(argv)
    config = _config(options)
    if options.plain:
        return _plain(config, options.rounds)
    ways: dict[str, Callable[[], float]] = {
        "torchrun": lambda: _torchrun(options, options.workers, 1),
        "miniray": lambda: _engine(config, options.rounds),
        "one process": lambda: _torchrun(options, 1, options.workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns):
        for name, measure in ways.items():
            rates[name].append(measure())
            print(f"turn {turn + 1}: {name:<12} {rates[name][-1]:>9,.0f} images/s", flush=True)
    _show(options, rates)
    return 0


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m ml.gan.bench", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    for name, default, text in (
        ("workers", usable_cores(), "training processes, one thread each"),
        ("width", 32, "of the model"),
        ("batch-size", 64, "images a step, of each worker"),
        ("rounds", 8, "of five steps, in each turn"),
        ("turns", 3, "of each way"),
    ):
        found.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=text)
    found.add_argument("--parallel", choices=("ddp", "sync"), default="ddp", help="see ml.gan.train")
    found.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    return found


def _config(options: argparse.Namespace) -> TrainConfig:
    rounds = options.rounds + _WARM_UP_ROUNDS
    per_epoch = max(1, _IMAGES // (options.batch_size * options.workers))
    return TrainConfig(
        mode="distributed", workers=options.workers, parallel=options.parallel, width=options.width,
        batch_size=options.batch_size, epochs=5 * rounds // per_epoch + 1, dataset=f"synthetic:{_IMAGES}",
        ema_decay=0.0,
    )  # fmt: skip


def _plain(config: TrainConfig, rounds: int) -> int:
    """In each process of torchrun: the steps and nothing else; rank 0 prints images/s of all, per round."""
    import torch
    import torch.distributed as dist

    from miniray.train import TrainContext
    from ml.gan.data import load
    from ml.gan.replica import Replica
    from ml.gan.schedule import Schedule
    from ml.gan.state import Blueprint
    from ml.gan.ways import make_way

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    images = load(config.dataset).images
    schedule = Schedule(len(images), config.batch_size, config.workers, config.seed, size)
    blueprint, replica = Blueprint(config), Replica(config, rank, images, schedule)
    context = TrainContext(world_size=size, world_rank=rank)
    way = make_way(config, context, replica, blueprint.layout, blueprint.fresh())
    rates = []
    for number, round_ in enumerate(schedule.rounds(0, config.epochs, config.sync_interval)):
        if number == rounds + _WARM_UP_ROUNDS:
            break
        started = time.perf_counter()
        report = way.train(round_)
        rates.append(size * report.images / (time.perf_counter() - started))
    if rank == 0:
        print(_SAID + json.dumps(rates), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _torchrun(options: argparse.Namespace, processes: int, threads: int) -> float:
    """Images/s of `processes` plain processes of so many threads each."""
    batch = options.batch_size * options.workers // processes
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(processes), "-m", "ml.gan.bench", "--plain", "--workers", str(processes),
        "--batch-size", str(batch), "--width", str(options.width), "--rounds", str(options.rounds),
        "--parallel", options.parallel,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=_PATIENCE_S
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith(_SAID)]
    return _rate(json.loads(line.removeprefix(_SAID)))


def _engine(config: TrainConfig, rounds: int) -> float:
    """Images/s of the engine's workers, on a cluster of this machine for this turn."""
    from miniray.train import DataConfig, RunConfig, ScalingConfig, TorchTrainer
    from ml.gan.cluster import connected
    from ml.gan.data import load
    from ml.gan.loop import STOP, Plan, train_loop

    images = load(config.dataset).images
    with tempfile.TemporaryDirectory() as folder, connected("", config.workers):
        stop = Path(folder) / "bench" / STOP

        class Stopper(_callback()):  # type: ignore[misc]
            heard = 0

            def after_report(self, run_config: Any, metrics: Any, checkpoint: Any) -> None:
                self.heard += 1
                if self.heard == rounds + _WARM_UP_ROUNDS:
                    stop.touch()

        result = TorchTrainer(
            train_loop, train_loop_config={"config": config, "plan": Plan()},
            scaling_config=ScalingConfig(config.workers), datasets={"images": images},
            dataset_config=DataConfig([]),
            run_config=RunConfig("bench", folder, callbacks=[Stopper()], verbose=0),
        ).fit()  # fmt: skip
        return _rate([row["images_per_s"] for row in result.history][: rounds + _WARM_UP_ROUNDS])


def _callback() -> type:
    from miniray.train import UserCallback

    return UserCallback


def _rate(rates: list[float]) -> float:
    return statistics.median(rates[_WARM_UP_ROUNDS:])


def _show(options: argparse.Namespace, rates: dict[str, list[float]]) -> None:
    """The table, and what it means."""
    n = options.workers
    print(
        f"width {options.width}, batch {n} x {options.batch_size}, {options.parallel}, "
        f"median of {options.turns} turns"
    )
    names = {
        "torchrun": f"torchrun, {n} processes of 1 thread",
        "miniray": f"miniray, {n} workers of 1 thread",
        "one process": f"one process of {n} threads",
    }
    for name, values in rates.items():
        print(f"  {names[name]:<36} {statistics.median(values):>9,.0f} images/s")

    def ratio(other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates["miniray"], rates[other]))

    print(f"  share of the engine in a step        {1 - ratio('torchrun'):>9.1%}")
    print(f"  workers against one process          {ratio('one process'):>9.2f}x")


if __name__ == "__main__":
    sys.exit(main())
