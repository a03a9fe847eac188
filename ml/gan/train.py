"""`python -m ml.gan.train`: train a DCGAN in this process, or in N workers on a cluster.

Exit codes: 0 done; 1 the run failed; 2 the command line, the data set or the cluster do not allow the run
(said before any worker starts); 130 stopped by Ctrl-C, with everything saved for --resume.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.gan import data
from ml.gan.config import BATCHNORMS, FIXED_ON_RESUME, STRATEGIES, WAYS, TrainConfig
from ml.gan.options import (
    ADDRESS_HELP,
    DEVICES,
    above_zero,
    command,
    count,
    epochs_or_auto,
    fraction,
    positive,
    seconds,
    seed,
    unusable,
)

if TYPE_CHECKING:
    from ml.gan.scores import Scores
    from ml.gan.state import State
    from ml.gan.trainer import Outputs, Result, Trainer

_DEFAULTS = TrainConfig()
_AUTO_QUALITY_SHARE = 0.1
_EXAMPLES = """\
examples:
  python -m ml.gan.train                                  digits, in this process
  python -m ml.gan.train --mode distributed --workers 2   the same on this machine's cores
  python -m ml.gan.train --mode distributed --workers 8 --epochs 100 --sync-interval 5 --address auto
  python -m ml.gan.train --mode distributed --parallel ddp --workers 4
  python -m ml.gan.train --resume --epochs 200            go on where ./models/gan stands
"""


class UsageError(Exception):
    """The run cannot start as it was asked for; the message says what to change."""


def parser() -> argparse.ArgumentParser:
    """The command line; every default is shown by --help."""
    found = command(
        "train", "Train a DCGAN on 32x32 images: in this process, or in N workers on a cluster.",
        _EXAMPLES,
    )
    _add_where(found.add_argument_group("where"))
    _add_data(found.add_argument_group("data and results"))
    _add_training(found.add_argument_group("training"))
    _add_together(found.add_argument_group("training together (mode distributed)"))
    return found


def _add_where(add: Any) -> None:
    add.add_argument("--mode", choices=("single", "distributed"), default="single", help="here, or in actors")
    add.add_argument("--workers", type=positive, default=2, metavar="N", help="training actors, one CPU each")
    add.add_argument(
        "--min-workers", type=count, default=0, metavar="N", help="go on with so few; 0: only with all"
    )
    add.add_argument(
        "--max-failures", type=int, default=3, metavar="N", help="restarts after deaths; -1: any number"
    )
    add.add_argument("--device", choices=DEVICES, default="auto", help="of all workers")
    add.add_argument("--address", default="", help=ADDRESS_HELP)
    add.add_argument(
        "--job-id", default="", metavar="NAME", help="of the run in run.json; a new one if empty"
    )


def _add_data(add: Any) -> None:
    add.add_argument("--dataset", default=_DEFAULTS.dataset, metavar="NAME", help=" | ".join(data.names()))
    add.add_argument("--data-dir", metavar="DIR", help="where the data set's files lie; searched first")
    add.add_argument("--download", action="store_true", help="allow fetching the data set")
    add.add_argument("--save-dir", default="./models/gan", metavar="DIR", help="folder of the results")
    add.add_argument("--resume", action="store_true", help="continue from the checkpoint in --save-dir")
    for name, default, what in (
        ("checkpoint", 5, "0: at the end only"),
        ("preview", 0, "pictures; 0: none"),
    ):
        add.add_argument(f"--{name}-every", type=count, default=default, metavar="EPOCHS", help=what)
    add.add_argument(
        "--quality-every", type=epochs_or_auto, default="auto", metavar="EPOCHS",
        help="measure generated images; 0: at the end only; auto: as often as a tenth of the time allows",
    )  # fmt: skip
    add.add_argument(
        "--quality-images", type=count, default=1_000, metavar="N", help="images to measure; 0: none"
    )


def _add_training(add: Any) -> None:
    for name, kind, metavar, text in (
        ("epochs", positive, "N", "passes over the data"),
        ("batch-size", positive, "N", "images a step, of each worker"),
        ("lr", above_zero, "X", "Adam's learning rate, of both networks"),
        ("width", positive, "N", "channels at 16x16; twice and four times as many below"),
        ("latent-dim", positive, "N", "length of the generator's input"),
        ("label-smoothing", fraction, "X", "real images are taught as 1 - X"),
        ("ema-decay", fraction, "X", "moving average, per step, that is saved; 0: the weights themselves"),
        ("seed", seed, "N", "decides every random number of the run"),
    ):
        default = getattr(_DEFAULTS, name.replace("-", "_"))
        add.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)
    add.add_argument("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add.add_argument(
        "--compile", action="store_true", help="both networks by torch.compile; needs a compiler"
    )
    add.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory layout"
    )
    add.add_argument(
        "--time-limit", type=seconds, default=0.0, metavar="SECONDS", help="then end and save; 0: none"
    )


def _add_together(add: Any) -> None:
    interval, strategy = _DEFAULTS.sync_interval, _DEFAULTS.sync_strategy
    add.add_argument(
        "--parallel", choices=WAYS, default=_DEFAULTS.parallel,
        help="sync: merge parameters every few steps; ddp: gradients of every step; ps: a parameter server",
    )  # fmt: skip
    add.add_argument(
        "--batchnorm", choices=BATCHNORMS, default=_DEFAULTS.batchnorm,
        help="of ddp: over the images of all workers, or of each alone, which is faster and depends on N",
    )  # fmt: skip
    add.add_argument(
        "--sync-interval", type=positive, default=interval, metavar="STEPS", help="between two merges"
    )
    add.add_argument("--sync-strategy", choices=STRATEGIES, default=strategy, help="how to merge")
    add.add_argument(
        "--sync-momentum", type=fraction, metavar="X", help="of that strategy; 1 - 1/N if not given"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        images = data.load(
            options.dataset, data_dir=options.data_dir, download=options.download, seed=options.seed
        )
        for note in images.notes:
            print(f"note: {note}")
        return _train(options, images)
    except (data.DataError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the training began, or for the second time", file=sys.stderr)
        return 130


def _train(options: argparse.Namespace, images: data.ImageSet) -> int:
    if fault := "" if options.resume else unusable(Path(options.save_dir)):
        raise UsageError(f"--save-dir: {fault}")
    if options.quality_images == 1:
        raise UsageError("--quality-images 1: two or more, or 0 for none")
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"torch does not import ({error}); pip install 'miniray[ml]'") from error

    with _engine(options) as gpus:
        has_gpu = gpus > 0
        wants = options.device
        device = ("cuda" if has_gpu else "cpu") if wants == "auto" else wants
        if device == "cuda" and not has_gpu:
            where = "the cluster has no GPU" if options.mode == "distributed" else "torch sees no GPU here"
            raise UsageError(f"--device cuda, but {where} (torch {torch.__version__})")
        config = _config(options, device)
        _check_size(config, len(images))
        resumed = _resume(options, config)
        return _run(options, config, images, resumed, gpus)


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[int]:
    """Connect to the cluster where the mode needs one; yields how many GPUs there are to train on."""
    if options.mode == "single":
        import torch

        yield torch.cuda.device_count() if torch.cuda.is_available() else 0
        return
    from ml.gan.cluster import NoCluster, connected

    try:
        with connected(options.address, options.workers) as resources:
            yield int(resources.get("GPU", 0.0))
    except NoCluster as error:
        raise UsageError(str(error)) from error


def _config(options: argparse.Namespace, device: str) -> TrainConfig:
    names = {field.name for field in dataclasses.fields(TrainConfig)} - {"workers", "device", "job_id"}
    return TrainConfig(
        **{name: getattr(options, name) for name in names},
        workers=options.workers if options.mode == "distributed" else 1,
        device=device,
        job_id=options.job_id or f"gan-{uuid.uuid4().hex[:8]}",
    )


def _check_size(config: TrainConfig, images: int) -> None:
    if images < 2 * config.workers:
        raise UsageError(f"{images} images for {config.workers} workers: each needs at least 2 (BatchNorm)")
    if config.compile and config.device == "cpu" and not _compiler():
        raise UsageError("--compile needs a C++ compiler on the CPU, and there is no g++ or clang++ here")
    if config.batch_size < 2:
        raise UsageError("--batch-size 1: BatchNorm needs at least 2 images")


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [*([named] if named else []), "g++", "clang++"])), None)


def _resume(options: argparse.Namespace, config: TrainConfig) -> State | None:
    """What the run goes on from. Without --resume it begins anew, and what was there is removed."""
    from miniray.train import Result as Run
    from miniray.train import StorageError
    from ml.gan.state import load_state
    from ml.gan.trainer import RUN

    folder = Path(options.save_dir)
    if not options.resume:
        shutil.rmtree(folder / RUN, ignore_errors=True)
        return None
    try:
        checkpoint = Run.from_path(folder / RUN).checkpoint
    except StorageError as error:
        raise UsageError(f"nothing to resume: {error}") from error
    if checkpoint is None:
        raise UsageError(f"nothing to resume: {folder / RUN} has no checkpoint yet")
    found, settings = load_state(Path(checkpoint.path))
    for name in FIXED_ON_RESUME:
        was, now = settings.get(name), getattr(config, name)
        if was != now:
            raise UsageError(f"the checkpoint was trained with --{name.replace('_', '-')} {was}, not {now}")
    if found.steps >= config.epochs * found.steps_per_epoch and (folder / "run.json").exists():
        done = found.steps / found.steps_per_epoch
        raise UsageError(
            f"the checkpoint stands at epoch {done:g} of --epochs {config.epochs}: name a larger number"
        )
    return found


def _run(
    options: argparse.Namespace, config: TrainConfig, images: data.ImageSet, resumed: State | None, gpus: int
) -> int:
    from miniray.train import StorageError, TrainingFailedError
    from ml.gan.state import Blueprint
    from ml.gan.trainer import Trainer, TrainingFault

    outputs = _outputs(options, config, gpus)
    folder = outputs.folder
    try:
        scores = _scores(options, images, resumed)
        trainer = Trainer(config, images, Blueprint(config).layout, outputs, sys.stdout, scores)
        with _stop_on_signal(trainer):
            print(_headline(config, images, resumed))
            if scores:
                print(f"quality is measured on {scores.basis['features']}")
            sys.stdout.flush()
            result = trainer.run()
    except (TrainingFault, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except TrainingFailedError as error:
        print(f"error: the run failed: {error}\n{_hint(folder)}", file=sys.stderr)
        return 1
    except _engine_errors(config) as error:
        print(f"error: the cluster could not finish the run: {error}\n{_hint(folder)}", file=sys.stderr)
        return 1
    _report(result, config, folder)
    return 0 if result.finished or not trainer.stopped else 130


def _scores(options: argparse.Namespace, images: data.ImageSet, resumed: State | None) -> Scores | None:
    """What will measure the run's images; None where that is switched off."""
    if options.quality_images == 0:
        return None
    from ml.gan.judge import Judge
    from ml.gan.scores import Scores

    judge = Judge(images.images, images.labels, options.quality_images)
    return Scores(Path(options.save_dir), judge, resumed.steps if resumed else 0)


def _outputs(options: argparse.Namespace, config: TrainConfig, gpus: int) -> Outputs:
    from ml.gan.trainer import Outputs

    if options.min_workers > config.workers:
        raise UsageError(f"--min-workers {options.min_workers} of --workers {config.workers}")
    if options.max_failures < -1:
        raise UsageError(f"--max-failures {options.max_failures}: zero or more, or -1 for any number")
    resources = {"CPU": 1.0}
    if config.device == "cuda":
        resources["GPU"] = share_of_gpu(config.workers, gpus)
    is_auto = options.quality_every is None
    return Outputs(
        Path(options.save_dir), options.checkpoint_every, options.preview_every,
        1 if is_auto else options.quality_every, options.quality_images, options.time_limit,
        options.max_failures, options.min_workers, resources, _AUTO_QUALITY_SHARE if is_auto else 1.0,
    )  # fmt: skip


def share_of_gpu(workers: int, gpus: int) -> float:
    """What each worker reserves: a whole GPU where they suffice, else equal parts that pack onto them.

    Rounded down to what resources are counted in, so that all parts of a GPU fit.
    """
    return math.floor(1e4 / math.ceil(workers / gpus)) / 1e4


def _headline(config: TrainConfig, images: data.ImageSet, resumed: State | None) -> str:
    where = "in this process"
    if config.mode == "distributed":
        where = f"{_count_of(config.workers, 'worker')}, {config.parallel}"
    return (
        f"training on {images.name} ({len(images):,} images): {where}, {config.device}, width {config.width}"
        + (f", from step {resumed.steps}" if resumed else "")
    )


def _count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _engine_errors(config: TrainConfig) -> tuple[type[Exception], ...]:
    if config.mode == "single":
        return ()
    from miniray.exceptions import RayError

    return (RayError,)


def _hint(folder: Path) -> str:
    from miniray.train import Result as Run
    from ml.gan.trainer import RUN

    if Run.from_path(folder / RUN).checkpoint is not None:
        return f"the last checkpoint is in {folder / RUN}: run again with --resume"
    return "no checkpoint was written yet (--checkpoint-every)"


@contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run with everything saved; a second one ends it at once."""

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, _frame: object) -> None:
        trainer.stop()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _report(result: Result, config: TrainConfig, folder: Path) -> None:
    from ml.gan.scores import sentence

    rate = result.images / max(result.seconds, 1e-9)
    print(f"{result.images:,} images in {result.seconds:.1f} s: {rate:,.0f} images/s")
    if result.quality:
        print(f"quality: {sentence(result.quality)}")
    if config.workers > 1:
        print(f"all {config.workers} workers hold the same weights (digest {result.digest})")
    for path in result.paths:
        print(f"  {path}")
    if not result.finished:
        print("stopped before the last epoch; run again with --resume to go on")
    print(f"next: python -m ml.gan.generate --model {folder / 'generator.pth'} --num-images 100")


if __name__ == "__main__":
    sys.exit(main())
