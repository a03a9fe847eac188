"""The training loop: rounds, progress, checkpoints and results, for any `Group`.

Two rounds are kept submitted, so the workers of a cluster always have the next one at hand. A checkpoint is
submitted between two rounds like a round of its own: the group does its work in order, so what it returns
is the state at exactly that step, and nobody waits for it.

Runs in the driver's main thread. `stop` may be called from a signal handler.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from ml.gan import artifacts, plots, report
from ml.gan.artifacts import Checkpoint
from ml.gan.config import TrainConfig
from ml.gan.data import ImageSet
from ml.gan.draw import calibrate, draw_images
from ml.gan.group import Group, State
from ml.gan.model import Generator, generator_from
from ml.gan.progress import Progress
from ml.gan.schedule import Round, Schedule
from ml.gan.scores import Scores
from ml.gan.vector import Layout

_ROUNDS_AHEAD = 2
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


@dataclass(slots=True)
class Trainer:
    """Trains one run to its end. Use once: `run()`."""

    config: TrainConfig
    data: ImageSet
    layout: Layout
    group: Group
    outputs: Outputs
    out: TextIO
    resumed: Checkpoint | None = None
    scores: Scores | None = None  # None: quality is not measured
    clock: Callable[[], float] = time.perf_counter
    _curve: list[tuple[float, ...]] = field(default_factory=list)
    _stopped: bool = False
    _done_images: int = 0
    _busy_s: float = 0.0  # spent in training steps, summed over workers
    _started: float = 0.0

    def stop(self) -> None:
        """Finish the rounds under way, save everything, and return from `run`."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def run(self) -> Result:
        """Train, save, and say how it ended. Raises TrainingFault; errors of the engine pass through."""
        schedule = Schedule(len(self.data), self.config.batch_size, self.config.workers, self.config.seed)
        start = self._start_step(schedule)
        self._started = self.clock()
        total = self.config.epochs * schedule.steps_per_epoch
        limit_s = self.outputs.time_limit_s
        progress = Progress(self.out, self.config.epochs, total, start, self._started, limit_s)
        if self.resumed:
            self._curve.extend(row for row in self.resumed.curve if row[0] <= self.resumed.steps)
        try:
            step = self._rounds(schedule, start, progress)
        finally:
            progress.close()
        seconds = self.clock() - self._started
        digest = self._common_digest()
        state = self.group.take(self.group.checkpoint(moments=True))
        paths = self._save_all(state, step, schedule, seconds, digest)
        verdict = self.scores.history[-1] if self.scores else None
        return Result(step, self._done_images, seconds, digest, paths, step >= total, verdict)

    def _start_step(self, schedule: Schedule) -> int:
        if self.resumed is None:
            return 0
        return round(self.resumed.steps * schedule.steps_per_epoch / self.resumed.steps_per_epoch)

    def _rounds(self, schedule: Schedule, start: int, progress: Progress) -> int:
        """Submit and collect every round; returns the step after the last one."""
        pending: deque[Callable[[], object]] = deque()
        step = start
        for round_ in schedule.rounds(start, self.config.epochs, self.config.sync_interval):
            if self._stopped or self._out_of_time():
                break
            pending.append(self._collector(round_, self.group.submit(round_), schedule, progress))
            step = round_.first_step + round_.steps
            if round_.ends_epoch:
                pending.extend(self._savers(round_.epoch + 1, step, schedule))
            while len(pending) > _ROUNDS_AHEAD:
                pending.popleft()()
        while pending:
            pending.popleft()()
        return step

    def _out_of_time(self) -> bool:
        limit = self.outputs.time_limit_s
        return limit > 0 and self.clock() - self._started >= limit

    def _collector(
        self, round_: Round, handle: Any, schedule: Schedule, progress: Progress
    ) -> Callable[[], None]:
        def collect() -> None:
            reports = self.group.collect(handle)
            images = sum(report.images for report in reports)
            rows = [(report.d_loss, report.g_loss, report.d_real, report.d_fake) for report in reports]
            means = np.average(rows, axis=0, weights=[report.images for report in reports])
            if not np.isfinite(means).all():
                raise TrainingFault(f"losses are no numbers any more at step {round_.first_step}: lower --lr")
            step = round_.first_step + round_.steps
            epoch = step / schedule.steps_per_epoch
            self._done_images += images
            self._busy_s += sum(report.seconds for report in reports)
            progress.advance(self.clock(), round_.steps, images, round_.epoch, *means[:2].tolist())
            self._curve.append((float(step), epoch, *means.tolist(), progress.rate))

        return collect

    def _savers(self, epoch: int, step: int, schedule: Schedule) -> list[Callable[[], object]]:
        """What is due at the end of epoch `epoch` (counted from 1): the last epoch is saved by `run`."""
        due: list[Callable[[], object]] = []
        if epoch < self.config.epochs and _divides(self.outputs.checkpoint_every, epoch):
            handle = self.group.checkpoint(moments=True)
            due.append(lambda: self._save_checkpoint(self.group.take(handle), step, schedule))
        shows = _divides(self.outputs.preview_every, epoch)
        measures = self.scores is not None and _divides(self.outputs.quality_every, epoch)
        if shows or measures:
            seen = self.group.checkpoint(moments=False)

            def look() -> None:
                generator = self._generator(self.group.take(seen))
                if shows:
                    self._save_preview(generator, epoch)
                if measures:
                    self._measure(generator, epoch, step)

            due.append(look)
        return due

    def _measure(self, generator: Generator, epoch: float, step: int) -> None:
        if self.scores is not None and self.scores.last_step < step:
            images = draw_images(generator, self.config.seed, 0, self.outputs.quality_images)
            self.scores.add(epoch, step, images)

    def _save_checkpoint(self, state: State, step: int, schedule: Schedule) -> Path:
        earlier = self.resumed.seconds if self.resumed else 0.0
        seconds = earlier + self.clock() - self._started
        config = self.config.to_json()
        saved = Checkpoint(state, step, schedule.steps_per_epoch, seconds, config, self._curve)
        return artifacts.save_checkpoint(self.outputs.folder, saved)

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

    def _common_digest(self) -> str:
        """Proof that the merge worked: every worker holds the same bits."""
        digests = self.group.digests()
        if len(set(digests)) != 1:
            raise TrainingFault(f"workers differ after the last merge: {digests}")
        return digests[0]

    def _save_all(
        self, state: State, step: int, schedule: Schedule, seconds: float, digest: str
    ) -> list[Path]:
        folder = self.outputs.folder
        self._save_checkpoint(state, step, schedule)
        generator = self._generator(state)
        self._measure(generator, step / schedule.steps_per_epoch, step)
        discriminator = self.layout.state_dict(state.merged, "discriminator")
        paths = artifacts.save_models(folder, generator.state_dict(), discriminator)[:1]
        paths.append(artifacts.save_picture(folder / "grid.png", plots.grid(self._samples(generator))))
        pictures = [("Generated images", paths[-1]), *self._charts(folder)]
        story = self._story(step, schedule, seconds, digest)
        paths += [path for _, path in pictures[1:]]
        paths.append(artifacts.save_json(folder / "run.json", story))
        paths.append(report.write(folder, story, self.scores.to_json() if self.scores else None, pictures))
        return paths

    def _charts(self, folder: Path) -> list[tuple[str, Path]]:
        charts = [("Losses", "losses.png", self._chart())]
        if self.scores is not None:
            quality = plots.stacked(report.quality_charts(self.scores.history))
            charts.append(("Quality per epoch", "quality.png", quality))
        return [(title, artifacts.save_picture(folder / name, chart)) for title, name, chart in charts]

    def _chart(self) -> Any:
        columns = dict(zip(artifacts.CURVE_COLUMNS, zip(*self._curve)))
        epochs = columns.get("epoch", ())
        series = [(name, epochs, columns.get(key, ())) for name, key in _CHARTED]
        config = self.config
        title = f"{config.dataset}, {config.workers} x batch {config.batch_size}, width {config.width}"
        return plots.chart(title, "epoch", series)

    def _story(self, step: int, schedule: Schedule, seconds: float, digest: str) -> dict[str, Any]:
        """run.json."""
        earlier = self.resumed.seconds if self.resumed else 0.0
        members = [
            {name: getattr(member, name) for name in member.__slots__} for member in self.group.members
        ]
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
            "weights_digest": digest,
            "steps": step,
            "steps_per_epoch": schedule.steps_per_epoch,
            "images_trained": self._done_images,
            "seconds": round(seconds, 3),
            "seconds_with_earlier_parts": round(earlier + seconds, 3),
            "share_of_time_in_steps": round(self._busy_s / max(seconds * self.config.workers, 1e-9), 4),
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


def _divides(every: int, epoch: int) -> bool:
    return every > 0 and epoch % every == 0
