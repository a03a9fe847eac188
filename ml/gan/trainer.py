"""The driver's side of a run: starts the loop on its workers, follows it, and leaves the results.

The loop (loop.py) runs under `miniray.train`, in this process or in workers on a cluster, and reports after
each round; this is what hears it. Checkpoints are the loop's, in the folder RUN of the results, and a run
whose workers, nodes or driver died goes on from the last one.

Runs in the driver's main thread. `stop` may be called from a signal handler.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from miniray.train import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TorchTrainer,
    UserCallback,
)
from ml.gan import artifacts, plots, report
from ml.gan.cluster import give_word
from ml.gan.config import TrainConfig
from ml.gan.data import ImageSet
from ml.gan.draw import calibrate, draw_images
from ml.gan.loop import STOP, Plan, train_loop
from ml.gan.model import Generator, generator_from
from ml.gan.progress import Progress
from ml.gan.schedule import Schedule
from ml.gan.scores import Budget, Scores
from ml.gan.state import State, load_state
from ml.gan.vector import Layout

RUN = "run"
"""The folder, among the results, of checkpoints and reports: what --resume goes on from."""
_GRID_IMAGES = 64


class TrainingFault(Exception):
    """The run contradicts itself: workers that differ after a merge, or losses that are no numbers."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What to write and how often; 0 switches a periodic one off."""

    folder: Path
    checkpoint_every: int  # epochs
    preview_every: int  # epochs
    quality_every: int  # epochs
    quality_images: int  # drawn for each verdict
    time_limit_s: float  # of training; 0: none
    max_failures: int = 0  # restarts from the last checkpoint; -1: any number
    min_workers: int = 0  # with how few a run goes on; 0: only with all
    resources_per_worker: dict[str, float] | None = None
    quality_share: float = 1.0  # of the time that verdicts before the last may take


@dataclass(slots=True)
class Result:
    """How a run ended."""

    steps: int
    images: int  # trained on in this part of the run
    seconds: float  # of training in this part of the run
    digest: str  # common to all workers
    paths: list[Path]
    finished: bool  # False: stopped by signal or time limit
    quality: dict[str, Any] | None  # the last verdict, where quality was measured


@dataclass(frozen=True, slots=True)
class Member:
    """One worker, as run.json names it."""

    rank: int
    host: str
    pid: int
    threads: int
    device: str


@dataclass
class Trainer(UserCallback):
    """Trains one run to its end. Use once: `run()`."""

    config: TrainConfig
    data: ImageSet
    layout: Layout
    outputs: Outputs
    out: TextIO
    scores: Scores | None = None  # None: quality is not measured
    clock: Callable[[], float] = time.perf_counter
    members: list[Member] = field(default_factory=list)
    _progress: Progress | None = None
    _digests: list[str] = field(default_factory=list)
    _began: float = 0.0
    _all_parts_s: float = 0.0
    _curve: list[tuple[float, ...]] = field(default_factory=list)
    _stopped: bool = False
    _word: Any = None  # to stop, for workers that do not see the folder
    _done_images: int = 0
    _busy_s: float = 0.0  # spent in training steps, mean over workers
    _started: float = 0.0

    def stop(self) -> None:
        """Have the workers end soon, with a checkpoint; `run` then saves everything and returns."""
        self._stopped = True
        self._tell_workers()

    def _tell_workers(self) -> None:
        self._run_folder.mkdir(parents=True, exist_ok=True)
        (self._run_folder / STOP).touch()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    @property
    def _run_folder(self) -> Path:
        return self.outputs.folder / RUN

    def run(self) -> Result:
        """Train, save, and say how it ended.

        Raises TrainingFault, and TrainingFailedError when workers failed too often.
        """
        config = self.config
        self._schedule = Schedule(len(self.data), config.batch_size, config.workers, config.seed)
        self._run_folder.mkdir(parents=True, exist_ok=True)
        (self._run_folder / STOP).unlink(missing_ok=True)
        if self._stopped:
            self._tell_workers()
        self._began = self.clock()
        self._budget = Budget(self.outputs.quality_share)
        try:
            found = self._trainer().fit()
        finally:
            self._word = None
            if self._progress is not None:
                self._progress.close()
        assert found.checkpoint is not None, "the loop ends with a checkpoint"
        seconds = self.clock() - self._started
        state, _ = load_state(Path(found.checkpoint.path))
        self._all_parts_s = float(found.metrics["time_total_s"]) if found.metrics else 0.0
        paths = self._save_all(state, seconds)
        digest = self._digests[0] if self._digests else ""
        finished = state.steps >= config.epochs * self._schedule.steps_per_epoch
        verdict = self.scores.history[-1] if self.scores else None
        return Result(state.steps, self._done_images, seconds, digest, paths, finished, verdict)

    def _trainer(self) -> TorchTrainer:
        config, outputs = self.config, self.outputs
        workers: Any = (outputs.min_workers or config.workers, config.workers)
        scaling = ScalingConfig(
            num_workers=0 if config.mode == "single" else workers,
            use_gpu=config.mode != "single" and config.device == "cuda",
            resources_per_worker=outputs.resources_per_worker,
        )
        run = RunConfig(
            RUN, outputs.folder, FailureConfig(outputs.max_failures), CheckpointConfig(num_to_keep=2),
            callbacks=[self], verbose=0,
        )  # fmt: skip
        plan = Plan((outputs.checkpoint_every, *self._looks_every()))
        return TorchTrainer(
            train_loop, train_loop_config={"config": config, "plan": plan}, scaling_config=scaling,
            run_config=run, datasets={"images": self.data.images}, dataset_config=DataConfig([]),
        )  # fmt: skip

    def _looks_every(self) -> tuple[int, ...]:
        """At which epochs the driver wants to see the model."""
        return self.outputs.preview_every, self.outputs.quality_every if self.scores is not None else 0

    def after_start(self, run_config: Any, world_size: int, history: list[dict[str, Any]]) -> None:
        """The workers stand: at the beginning, or again after a failure."""
        self._curve[:] = [_curve_row(row) for row in history]
        self.members, self._digests = [], []
        if self._progress is None:
            self._started = self.clock()
            done = int(history[-1]["step"]) if history else 0
            total = self.config.epochs * self._schedule.steps_per_epoch
            limit_s = self.outputs.time_limit_s
            self._progress = Progress(self.out, self.config.epochs, total, done, self._started, limit_s)
        elif history:
            self._progress.say(f"{world_size} workers go on from step {int(history[-1]['step'])}")
        else:
            self._progress.say(f"{world_size} workers begin again")

    def after_exception(self, run_config: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Workers failed; whether the run goes on is the trainer's to say."""
        if self._progress is not None:
            for rank, error in worker_exceptions.items():
                self._progress.say(f"worker {rank} failed: {(str(error) or repr(error)).splitlines()[-1]}")

    def after_report(self, run_config: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Every worker has made a round."""
        first = metrics[0]
        if not all(np.isfinite(first[name]) for name in ("d_loss", "g_loss")):
            raise TrainingFault(f"losses are no numbers any more at step {first['step']}: lower --lr")
        images, now = sum(row["images"] for row in metrics), self.clock()
        steps = int(first["step"]) - (int(self._curve[-1][0]) if self._curve else 0)
        self._done_images += images
        self._busy_s += sum(row["seconds"] for row in metrics) / len(metrics)
        self.members += [Member(**row["member"]) for row in metrics if "member" in row]
        self._digests = [row["digest"] for row in metrics if "digest" in row]
        assert self._progress is not None, "reports come after the start"
        epoch = int(np.ceil(first["epoch"] - 1e-9)) - 1
        self._progress.advance(now, steps, images, epoch, first["d_loss"], first["g_loss"])
        self._curve.append(_curve_row(first))
        if checkpoint is not None:
            self._look(checkpoint, first)
        if 0 < self.outputs.time_limit_s <= now - self._started:
            self._tell_workers()
        if self.config.mode != "single" and self._word is None and (self._run_folder / STOP).exists():
            # Not in `stop`, which may interrupt the cluster's library itself.
            self._word = give_word(self._run_folder)

    def _look(self, checkpoint: Any, metrics: dict[str, Any]) -> None:
        """What is due at a checkpoint besides keeping it."""
        epoch = round(metrics["epoch"])
        if metrics["epoch"] != epoch:
            return
        began = self.clock()
        shows = _divides(self.outputs.preview_every, epoch)
        due = self.scores is not None and _divides(self.outputs.quality_every, epoch)
        measures = due and self._budget.allows(began - self._started)
        if shows or measures:
            generator = self._generator(load_state(Path(checkpoint.path))[0])
            if shows:
                self._save_preview(generator, epoch)
            if measures:
                self._measure(generator, epoch, int(metrics["step"]))
                self._budget.spend(self.clock() - began)

    def _measure(self, generator: Generator, epoch: float, step: int) -> None:
        if self.scores is not None and self.scores.last_step < step:
            images = draw_images(generator, self.config.seed, 0, self.outputs.quality_images)
            self.scores.add(epoch, step, images)

    def _save_preview(self, generator: Generator, epoch: int) -> Path:
        path = self.outputs.folder / "previews" / f"epoch_{epoch:04}.png"
        return artifacts.save_picture(path, plots.grid(self._samples(generator)))

    def _generator(self, state: State) -> Generator:
        """The generator that is shown and saved: the moving average, with statistics of its own."""
        generator = generator_from(self.layout.state_dict(state.ema, "generator"))
        calibrate(generator, self.config.seed)
        return generator

    def _samples(self, generator: Generator) -> NDArray[np.uint8]:
        return draw_images(generator, self.config.seed, 0, _GRID_IMAGES)

    def _save_all(self, state: State, seconds: float) -> list[Path]:
        if len(set(self._digests)) > 1:
            raise TrainingFault(f"workers differ after the last round: {self._digests}")
        folder = self.outputs.folder
        generator = self._generator(state)
        self._measure(generator, state.steps / state.steps_per_epoch, state.steps)
        discriminator = self.layout.state_dict(state.merged, "discriminator")
        paths = artifacts.save_models(folder, generator.state_dict(), discriminator)[:1]
        paths.append(artifacts.save_picture(folder / "grid.png", plots.grid(self._samples(generator))))
        pictures = [("Generated images", paths[-1]), *self._charts(folder)]
        story = self._story(state, seconds)
        paths += [path for _, path in pictures[1:]]
        paths.append(artifacts.save_json(folder / "run.json", story))
        paths.append(report.write(folder, story, self.scores.to_json() if self.scores else None, pictures))
        return paths

    def _charts(self, folder: Path) -> list[tuple[str, Path]]:
        charts = [
            ("Losses", "losses.png", self._chart(_CHARTED)),
            ("Images per second", "speed.png", self._chart([("images/s", "images_per_s")])),
        ]
        if self.scores is not None:
            quality = plots.stacked(report.quality_charts(self.scores.basis, self.scores.history))
            charts.append(("Quality per epoch", "quality.png", quality))
        return [(title, artifacts.save_picture(folder / name, chart)) for title, name, chart in charts]

    def _chart(self, lines: Sequence[tuple[str, str]]) -> Any:
        columns = dict(zip(artifacts.CURVE_COLUMNS, zip(*self._curve)))
        epochs = columns.get("epoch", ())
        series = [(name, epochs, columns.get(key, ())) for name, key in lines]
        config = self.config
        title = f"{config.dataset}, {config.workers} x batch {config.batch_size}, width {config.width}"
        return plots.chart(title, "epoch", series)

    def _story(self, state: State, seconds: float) -> dict[str, Any]:
        """run.json."""
        members = [{name: getattr(member, name) for name in member.__slots__} for member in self.members]
        return {
            "config": self.config.to_json(),
            "data": {"name": self.data.name, "images": len(self.data), "source": self.data.source},
            "workers": members,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "saved_generator": "moving average" if self.config.ema_decay else "weights of the last merge",
            "weights_digest": self._digests[0] if self._digests else "",
            "steps": state.steps,
            "steps_per_epoch": state.steps_per_epoch,
            "images_trained": self._done_images,
            "seconds": round(seconds, 3),
            "seconds_with_earlier_parts": self._all_parts_s,
            "seconds_to_start": round(self._started - self._began, 3),
            "seconds_of_quality": round(self._budget.spent_s, 3),
            "share_of_time_in_steps": round(self._busy_s / max(seconds, 1e-9), 4),
            "images_per_s": round(self._done_images / max(seconds, 1e-9), 1),
            "history": self._history(),
        }

    def _history(self) -> list[dict[str, float]]:
        """Means over the rounds of each epoch."""
        epochs: dict[int, list[tuple[float, ...]]] = {}
        for row in self._curve:
            epochs.setdefault(int(np.ceil(row[1] - 1e-9)), []).append(row)
        names = artifacts.CURVE_COLUMNS[2:]
        return [
            {"epoch": epoch, "step": int(rows[-1][0])}
            | {name: round(float(np.mean([row[2 + at] for row in rows])), 5) for at, name in enumerate(names)}
            for epoch, rows in epochs.items()
        ]


_CHARTED = (
    ("discriminator loss", "d_loss"),
    ("generator loss", "g_loss"),
    ("D(real)", "d_real"),
    ("D(generated)", "d_fake"),
)


def _curve_row(row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(float(row.get(name, 0.0)) for name in artifacts.CURVE_COLUMNS)


def _divides(every: int, epoch: int) -> bool:
    return every > 0 and epoch % every == 0
