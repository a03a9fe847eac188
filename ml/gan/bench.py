"""What the engine costs a training: images/s of its workers beside plain torchrun, in one run.

    python -m ml.gan.bench [--workers N] [--width W] [--batch-size B] [--rounds R] [--turns T]

All train the same model on the same shares with the same number of threads, by turns, so that whatever else
the machine does meets all alike; ratios are medians over the turns.

    plain        processes of torchrun, in plain PyTorch: DistributedDataParallel (plain.py)
    steps        processes of torchrun that make the job's own steps, and nothing else
    miniray      the engine's workers: the same steps, and a report of every round to the driver
    one process  plain PyTorch with all threads: what a machine gives without being shared out

The share of the engine is what `miniray` needs beyond `steps`: in time, and in time of all CPUs, with that of
its daemons and its driver; the second tells more where the machine is busy with other things.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml.gan.config import BATCHNORMS, TrainConfig
from ml.gan.machine import usable_cores
from ml.gan.options import positive

_IMAGES = 2_048
_WARM_UP_ROUNDS = 1
_SAID = "rates "
_PATIENCE_S = 600.0
_PLAIN, _STEPS = "plain", "steps"


class Cost(NamedTuple):
    """What one turn measured: images/s of all, and CPU seconds of all processes per 1,000 images."""

    rate: float
    cpu_s: float


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table; returns 0."""
    options = _parser().parse_args(argv)
    config = _config(options)
    if options.inside:
        return _inside(config, options)
    ways: dict[str, Callable[[], Cost]] = {
        "plain": lambda: _torchrun(options, _PLAIN, options.workers, 1),
        "miniray": lambda: _engine(config, options.rounds),
        "steps": lambda: _torchrun(options, _STEPS, options.workers, 1),
        "one process": lambda: _torchrun(options, _PLAIN, 1, options.workers),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for turn in range(options.turns):
        for name in list(ways) if turn % 2 == 0 else list(reversed(ways)):
            costs[name].append(ways[name]())
            cost = costs[name][-1]
            said = f"{cost.rate:>9,.0f} images/s, {cost.cpu_s:.2f} CPU s per 1,000"
            print(f"turn {turn + 1}: {name:<12} {said}", flush=True)
    _show(options, costs)
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
    found.add_argument(
        "--batchnorm", choices=BATCHNORMS, default="local", help="of ddp; local as torchrun's processes"
    )
    found.add_argument("--inside", choices=(_PLAIN, _STEPS), help=argparse.SUPPRESS)
    return found


def _config(options: argparse.Namespace) -> TrainConfig:
    rounds = options.rounds + _WARM_UP_ROUNDS
    per_epoch = max(1, _IMAGES // (options.batch_size * options.workers))
    return TrainConfig(
        mode="distributed", workers=options.workers, parallel=options.parallel, width=options.width,
        batch_size=options.batch_size, epochs=5 * rounds // per_epoch + 1, dataset=f"synthetic:{_IMAGES}",
        ema_decay=0.0, batchnorm=options.batchnorm,
    )  # fmt: skip


def _inside(config: TrainConfig, options: argparse.Namespace) -> int:
    """In each process of torchrun: the steps and nothing else; rank 0 prints what they cost."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    images = (_plain if options.inside == _PLAIN else _steps)(config, rank, size)
    rates, used_s, counted, started = [], 0.0, 0, 0.0
    for number in range(options.rounds + _WARM_UP_ROUNDS):
        if number == _WARM_UP_ROUNDS:
            used_s = time.process_time()
        started = time.perf_counter()
        made = next(images)
        rates.append(size * made / (time.perf_counter() - started))
        counted += size * made if number >= _WARM_UP_ROUNDS else 0
    total = torch.tensor(time.process_time() - used_s)
    dist.all_reduce(total)
    if rank == 0:
        print(_SAID + json.dumps(Cost(_rate(rates), 1e3 * total.item() / counted)), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _plain(config: TrainConfig, rank: int, size: int) -> Iterator[int]:
    """Rounds in plain PyTorch; yields each one's images."""
    from ml.gan.data import load
    from ml.gan.plain import PlainTraining, rounds

    return rounds(config, PlainTraining(config, load(config.dataset).images, rank, size))


def _steps(config: TrainConfig, rank: int, size: int) -> Iterator[int]:
    """Rounds of the job's own steps; yields each one's images."""
    from miniray.train import TrainContext
    from ml.gan.data import load
    from ml.gan.replica import Replica
    from ml.gan.schedule import Schedule
    from ml.gan.state import Blueprint
    from ml.gan.ways import make_way

    images = load(config.dataset).images
    schedule = Schedule(len(images), config.batch_size, config.workers, config.seed, size)
    blueprint, replica = Blueprint(config), Replica(config, rank, images, schedule)
    context = TrainContext(world_size=size, world_rank=rank)
    way = make_way(config, context, replica, blueprint.layout, blueprint.fresh())
    return (way.train(one).images for one in schedule.rounds(0, config.epochs, config.sync_interval))


def _torchrun(options: argparse.Namespace, inside: str, processes: int, threads: int) -> Cost:
    """What `processes` processes of so many threads each cost."""
    batch = options.batch_size * options.workers // processes
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(processes), "-m", "ml.gan.bench", "--inside", inside,
        "--workers", str(processes), "--batch-size", str(batch), "--width", str(options.width),
        "--rounds", str(options.rounds), "--parallel", options.parallel, "--batchnorm", options.batchnorm,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=_PATIENCE_S
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith(_SAID)]
    return Cost(*json.loads(line.removeprefix(_SAID)))


def _engine(config: TrainConfig, rounds: int) -> Cost:
    """What the engine's workers cost, on a cluster of this machine for this turn."""
    from miniray.train import DataConfig, RunConfig, ScalingConfig, TorchTrainer, UserCallback
    from ml.gan.cluster import connected
    from ml.gan.data import load
    from ml.gan.loop import STOP, Plan, train_loop

    images = load(config.dataset).images
    with tempfile.TemporaryDirectory() as folder, connected("", config.workers):
        stop = Path(folder) / "bench" / STOP
        pids: list[int] = []
        used: list[tuple[float, int]] = []  # (CPU seconds, images) after each report

        class Stopper(UserCallback):
            def after_report(self, run_config: Any, metrics: Any, checkpoint: Any) -> None:
                pids.extend(row["member"]["pid"] for row in metrics if "member" in row)
                used.append((_cpu_s(pids[0]), sum(row["images"] for row in metrics)))
                if len(used) == rounds + _WARM_UP_ROUNDS:
                    stop.touch()

        result = TorchTrainer(
            train_loop, train_loop_config={"config": config, "plan": Plan()},
            scaling_config=ScalingConfig(config.workers), datasets={"images": images},
            dataset_config=DataConfig([]),
            run_config=RunConfig("bench", folder, callbacks=[Stopper()], verbose=0),
        ).fit()  # fmt: skip
        counted = used[_WARM_UP_ROUNDS : rounds + _WARM_UP_ROUNDS]
        spent_s = counted[-1][0] - used[_WARM_UP_ROUNDS - 1][0]
        rates = [row["images_per_s"] for row in result.history][: rounds + _WARM_UP_ROUNDS]
        return Cost(_rate(rates), 1e3 * spent_s / sum(images for _, images in counted))


def _cpu_s(worker: int) -> float:
    """CPU seconds of this process, of the daemon that this worker runs under, and of all below it."""
    import psutil

    _zygote, _guardian, daemon = psutil.Process(worker).parents()[:3]
    total = 0.0
    for process in (psutil.Process(), daemon, *daemon.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _rate(rates: list[float]) -> float:
    return statistics.median(rates[_WARM_UP_ROUNDS:])


def _show(options: argparse.Namespace, costs: dict[str, list[Cost]]) -> None:
    """The table, and what it means."""
    n = options.workers
    print(
        f"width {options.width}, batch {n} x {options.batch_size}, {options.parallel}, "
        f"median of {options.turns} turns"
    )
    print(f"  {'':<40} {'images/s':>9} {'CPU s per 1,000':>16}")
    names = {
        "plain": f"torchrun, {n} x 1 thread: plain PyTorch",
        "steps": f"torchrun, {n} x 1 thread: the job's steps",
        "miniray": f"miniray, {n} workers of 1 thread",
        "one process": f"one process of {n} threads: plain PyTorch",
    }
    for name, text in names.items():
        rate, cpu_s = (statistics.median(values) for values in zip(*costs[name]))
        print(f"  {text:<40} {rate:>9,.0f} {cpu_s:>16.2f}")

    def ratio(of: str, to: str, at: int) -> float:
        return statistics.median(a[at] / b[at] for a, b in zip(costs[of], costs[to]))

    print(f"  {'share of the engine in a step, of time':<40} {1 - ratio('miniray', 'steps', 0):>9.1%}")
    print(f"  {'share of the engine in a step, of CPU':<40} {1 - ratio('steps', 'miniray', 1):>9.1%}")
    print(f"  {'miniray against torchrun':<40} {ratio('miniray', 'plain', 0):>8.2f}x")
    print(f"  {'miniray against one process':<40} {ratio('miniray', 'one process', 0):>8.2f}x")


if __name__ == "__main__":
    sys.exit(main())
