"""`python -m ml.gan.compare`: is what N workers learn as good as what one plain PyTorch process learns?

Trains the same model twice, on the same images in the same batches with the same noise: by the job, and by
plain PyTorch in this process (plain.py). Then both generators are held against the data by one judge, beside
other real images, which are the best to be had. Exit codes: those of ml.gan.train.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.gan import data
from ml.gan.config import WAYS, TrainConfig
from ml.gan.machine import usable_cores
from ml.gan.options import command, count, positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml.gan.judge import Judge
    from ml.gan.model import Generator

_PROGRESS_EVERY_S = 10.0


def parser() -> argparse.ArgumentParser:
    """The command line; every default is shown by --help."""
    found = command("compare", "Train by workers and by one plain PyTorch process, and measure both.")
    found.add_argument("--dataset", default="mnist5k", metavar="NAME", help=" | ".join(data.names()))
    found.add_argument("--data-dir", metavar="DIR", help="where the data set's files lie; searched first")
    found.add_argument("--parallel", choices=WAYS, default="ddp", help="see ml.gan.train")
    for name, kind, default, text in (
        ("workers", positive, usable_cores(), "training workers"),
        ("epochs", positive, 10, "passes over the data, of both"),
        ("batch-size", positive, 64, "images a step: of the process, and of all workers together"),
        ("width", positive, 32, "of the model"),
        ("num-images", positive, 1_000, "to draw and to measure, of each"),
        ("seed", count, 0, "of both"),
    ):
        found.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=text)
    found.add_argument("--lr", type=float, default=1e-3, metavar="X", help="learning rate of both")
    found.add_argument("--json", action="store_true", help="print the figures as JSON as well")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(argv)
    share, rest = divmod(options.batch_size, options.workers)
    if rest or share < 2:
        fault = (
            f"--batch-size {options.batch_size} for {options.workers} workers: each needs as many, 2 or more"
        )
        print(f"error: {fault}", file=sys.stderr)
        return 2
    try:
        images = data.load(options.dataset, data_dir=options.data_dir, seed=options.seed)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gan-compare-") as name:
        code, seconds = _by_workers(options, share, Path(name))
        if code:
            return code
        averaged, merged = _saved(Path(name), options.seed)
    started = time.perf_counter()
    plain = _plain(options, images.images)
    rows = [("plain PyTorch, one process", time.perf_counter() - started, plain)]
    rows.append((f"{options.workers} workers, {options.parallel}", seconds, merged))
    rows.append(("  the same, moving average", seconds, averaged))
    from ml.gan.judge import Judge

    judge = Judge(images.images, images.labels, options.num_images)
    _show(options, judge, rows, options.epochs * len(images.images))
    return 0


def _by_workers(options: argparse.Namespace, share: int, folder: Path) -> tuple[int, float]:
    """Train as a user would: (exit code, seconds of training)."""
    from ml.gan import train

    command = [
        "--mode", "distributed", "--quality-images", "0", "--checkpoint-every", "0",
        "--save-dir", str(folder), "--batch-size", str(share),
    ]  # fmt: skip
    for name in ("workers", "parallel", "dataset", "epochs", "width", "seed", "lr"):
        command += [f"--{name}", str(getattr(options, name))]
    if options.data_dir:
        command += ["--data-dir", options.data_dir]
    code = train.main(command)
    story = json.loads((folder / "run.json").read_text()) if code == 0 else {"seconds": 0.0}
    return code, float(story["seconds"])


def _saved(folder: Path, seed: int) -> tuple[Generator, Generator]:
    """The generator that a run saves, and the merged weights that it is an average of."""
    from miniray.train import Result
    from ml.gan.artifacts import load_weights
    from ml.gan.draw import calibrate
    from ml.gan.model import generator_from
    from ml.gan.state import Blueprint, load_state
    from ml.gan.trainer import RUN

    checkpoint = Result.from_path(folder / RUN).checkpoint
    assert checkpoint is not None, "a run ends with a checkpoint"
    state, settings = load_state(Path(checkpoint.path))
    blueprint = Blueprint(TrainConfig(**settings))
    merged = generator_from(blueprint.layout.state_dict(state.merged, "generator"))
    calibrate(merged, seed)
    return generator_from(load_weights(folder / "generator.pth")), merged


def _plain(options: argparse.Namespace, images: NDArray[np.uint8]) -> Generator:
    """Train in this process; the generator, its BatchNorm statistics measured as those of the others."""
    import torch

    from ml.gan.draw import calibrate
    from ml.gan.plain import PlainTraining, rounds

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
    config = TrainConfig(
        epochs=options.epochs, batch_size=options.batch_size, width=options.width, seed=options.seed,
        lr=options.lr, dataset=options.dataset,
    )  # fmt: skip
    training = PlainTraining(config, images)
    total, done, shown = options.epochs * len(images), 0, time.perf_counter()
    for made in rounds(config, training):
        done += made
        if time.perf_counter() - shown > _PROGRESS_EVERY_S:
            shown = time.perf_counter()
            print(f"plain PyTorch: {done / total:.0%}", flush=True)
    calibrate(training.generator, options.seed)
    return training.generator


def _show(
    options: argparse.Namespace, judge: Judge, rows: Sequence[tuple[str, float, Generator]], trained: int
) -> None:
    from ml.gan.draw import draw_images

    head = f"{'':<32}{'Fréchet':>9}{'precision':>11}{'recall':>8}{'classes':>9}{'images/s':>10}"
    print(
        f"\n{options.dataset}, {trained:,} images in batches of {options.batch_size}, width {options.width}"
    )
    print(head)
    found: dict[str, Any] = {}
    if judge.best is not None:
        found["other real images"] = judge.best.to_json()
        print(_row("other real images", found["other real images"]))
    for name, seconds, generator in rows:
        verdict = judge.verdict(draw_images(generator, options.seed, 0, options.num_images)).to_json()
        found[name.strip()] = verdict | {"images_per_s": round(trained / seconds, 1)}
        print(_row(name, found[name.strip()]))
    print(f"on {judge.extractor.name}, {options.num_images:,} images against {judge.images:,} real ones")
    if options.json:
        print(json.dumps(found, indent=1))


def _row(name: str, figures: dict[str, Any]) -> str:
    classes = f"{figures['classes_covered']}/{figures['classes']}" if "classes" in figures else ""
    rate = f"{figures['images_per_s']:,.0f}" if "images_per_s" in figures else ""
    return (
        f"{name:<32}{figures['frechet']:>9.2f}{figures['precision']:>11.2f}{figures['recall']:>8.2f}"
        f"{classes:>9}{rate:>10}"
    )


if __name__ == "__main__":
    sys.exit(main())
