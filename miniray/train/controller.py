"""The driver's side of a run: start the workers, gather reports, keep checkpoints, start again.

    reserve ─▶ start ─▶ gather reports ─▶ all loops returned: the Result
       ▲                    │
       └── from the last ◀──┤ a worker or node died, or a loop raised: at most `max_failures` times
           checkpoint  ◀────┘ an elastic run may have more workers: at its next checkpoint

A report counts when every rank has made it. What was reported after the last checkpoint is forgotten
when the group starts again, so a run with failures leaves the history that one without would leave.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import miniray as ray
from miniray.train import group, session
from miniray.train.backend import BackendConfig
from miniray.train.checkpoint import Checkpoint
from miniray.train.config import DataConfig, RunConfig, ScalingConfig
from miniray.train.datasets import Shard
from miniray.train.exceptions import TrainingFailedError, WorkerGroupError
from miniray.train.group import WorkerGroup
from miniray.train.progress import ProgressLine
from miniray.train.result import Result
from miniray.train.session import Report, TrainContext, staging_key
from miniray.train.storage import ITERATION, RunFolder
from miniray.train.worker import Assignment, Done, call_loop

POLL_S = 1.0


@dataclass
class Job:
    """What is to be trained, and how."""

    loop: Callable[..., Any]
    config: dict[str, Any] | None
    backend: BackendConfig
    scaling: ScalingConfig
    run: RunConfig
    datasets: dict[str, Any] = field(default_factory=dict)
    data_config: DataConfig = field(default_factory=DataConfig)
    resume_from: Checkpoint | None = None


class Resize(Exception):
    """More workers would fit, and a checkpoint was just made."""


class Gathering:
    """The reports of one attempt, until every rank has made them. Pure."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: dict[int, dict[int, Report]] = {}

    def add(self, rank: int, report: Report) -> list[Report] | None:
        """One more report; all ranks' reports of its number, once they are complete."""
        seen = self._waiting.setdefault(report.number, {})
        seen[rank] = report
        if len(seen) < self._size:
            return None
        del self._waiting[report.number]
        return [seen[one] for one in range(self._size)]

    def incomplete(self) -> dict[int, list[int]]:
        """Number of each report that not all ranks have made → the ranks that have."""
        return {number: sorted(seen) for number, seen in self._waiting.items()}


class Controller:
    """Carries one run through. Use once: `run()`, in the thread of `fit`."""

    def __init__(self, job: Job, folder: RunFolder) -> None:
        self._job, self._folder = job, folder
        out = sys.stdout if job.run.verbose else None
        self._line = ProgressLine(out, job.run.name or "", time.monotonic())
        self._data: dict[str, tuple[Any, bool]] = {}
        self._marker = secrets.token_hex(8)
        self._attempt = 0
        self._iteration = 0
        self._earlier_s = 0.0
        self._started = time.monotonic()
        self._looked = time.monotonic()

    def run(self) -> Result:
        """Train to the end. Raises TrainingFailedError, and what callbacks raise."""
        self._folder.mark(self._marker)
        for name, data in self._job.datasets.items():
            self._data[name] = ray.put(data), self._job.data_config.splits(name)
        while True:
            try:
                value = self._one_attempt()
                break
            except Resize:
                self._line.say("there is room for more workers: going on with them from this checkpoint")
            except WorkerGroupError as error:
                self._failed(error)
            self._attempt += 1
        return self._finished(value)

    def _finished(self, value: Any) -> Result:
        self._folder.state.finished = True
        self._folder.save()
        self._line.close()
        return self._folder.result(value=value)

    def _one_attempt(self) -> Any:
        """Start the group and follow it to its end; returns what worker 0 returned."""
        self._iteration = self._folder.go_back()
        history = self._folder.history
        self._earlier_s = float(history[-1]["time_total_s"]) if history else 0.0
        workers = WorkerGroup.started(
            self._job.scaling,
            self._job.run,
            self._assignment(),
            self._job.loop,
            self._job.config,
            self._line.say,
        )
        try:
            self._started = self._looked = time.monotonic()
            if self._attempt or self._iteration:
                self._line.say(f"{len(workers)} workers go on after report {self._iteration}")
            for callback in self._job.run.callbacks:
                callback.after_start(self._job.run, len(workers), list(history))
            return self._follow(workers)
        finally:
            workers.end()

    def _assignment(self) -> Assignment:
        job, latest = self._job, self._folder.latest or self._job.resume_from
        base = TrainContext(
            experiment_name=job.run.name or "", storage_path=str(self._folder.path),
            attempt=self._attempt, incarnation=self._incarnation(),
        )  # fmt: skip
        path = latest.path if latest is not None else None
        return Assignment(base, "", job.backend, self._marker, path, self._data)

    def _incarnation(self) -> str:
        """A name of this start of the workers: what others stage can never be taken for theirs."""
        return f"{self._marker}-{self._attempt}"

    def _follow(self, workers: WorkerGroup) -> Any:
        gathering, left, value = Gathering(len(workers)), len(workers), None
        while left:
            for rank, said in workers.said(POLL_S):
                if isinstance(said, Done):
                    left -= 1
                    value = said.value if rank == 0 else value
                    continue
                complete = gathering.add(rank, said)
                if complete is not None and self._take(complete):
                    self._maybe_grow(workers)
        for number, ranks in gathering.incomplete().items():
            self._line.say(f"report {number} came from workers {ranks} only and does not count")
        return value

    def _take(self, reports: list[Report]) -> bool:
        """A complete report: store it. True if it came with a checkpoint."""
        self._iteration += 1
        row = reports[0].metrics | {
            ITERATION: self._iteration,
            "timestamp": int(time.time()),
            "time_total_s": round(self._earlier_s + time.monotonic() - self._started, 3),
        }
        self._folder.append(row)
        has_checkpoint = any(report.has_checkpoint for report in reports)
        checkpoint = None
        if has_checkpoint:
            key = staging_key(self._incarnation(), reports[0].number)
            for report in reports:
                if report.files is not None:
                    self._folder.stage(key, report.files)
            checkpoint = self._folder.commit(key, row)
        self._line.report(time.monotonic(), self._iteration, len(reports), reports[0].metrics)
        for callback in self._job.run.callbacks:
            callback.after_report(self._job.run, [report.metrics for report in reports], checkpoint)
        return has_checkpoint

    def _maybe_grow(self, workers: WorkerGroup) -> None:
        scaling, now = self._job.scaling, time.monotonic()
        due = now - self._looked >= scaling.elastic_resize_monitor_interval_s
        if scaling.elastic and len(workers) < scaling.max_workers and due:
            self._looked = now
            if group.free_room(scaling.bundle) > 0:
                raise Resize

    def _failed(self, error: WorkerGroupError) -> None:
        """Count a failure; raises it when it was one too many."""
        state, limit = self._folder.state, self._job.run.failure_config.max_failures
        state.failures += 1
        self._folder.save()
        for callback in self._job.run.callbacks:
            callback.after_exception(self._job.run, error.worker_failures)
        if 0 <= limit < state.failures:
            state.error = str(error)
            self._folder.save()
            self._line.close()
            raise error
        [(rank, cause), *_] = error.worker_failures.items()
        allowed = "any number" if limit < 0 else limit
        said = (str(cause).strip() or repr(cause)).splitlines()[-1]
        self._line.say(f"failure {state.failures} (allowed: {allowed}), of worker {rank}: {said}")


class LocalController(Controller):
    """The run of a loop in this process: `num_workers=0`. Needs no cluster, and starts nothing again."""

    _of_callback: Exception | None = None

    def run(self) -> Result:
        """Train to the end. TrainingFailedError, from what the loop raised."""
        self._iteration = self._folder.go_back()
        history = self._folder.history
        self._earlier_s = float(history[-1]["time_total_s"]) if history else 0.0
        assignment = self._assignment()
        checkpoint = Checkpoint(assignment.checkpoint) if assignment.checkpoint else None
        session.enter(_LocalSession(assignment.context, checkpoint, self._shard, take=self._taken))
        for callback in self._job.run.callbacks:
            callback.after_start(self._job.run, 0, list(history))
        try:
            value = call_loop(self._job.loop, self._job.config)
        except Exception as error:
            if error is self._of_callback:
                raise
            self._folder.state.error = repr(error)
            self._folder.save()
            raise TrainingFailedError(f"the training loop raised {error!r}") from error
        finally:
            session.enter(None)
            self._line.close()
        return self._finished(value)

    def _taken(self, reports: list[Report]) -> None:
        try:
            self._take(reports)
        except Exception as error:  # it passes through the loop, and is not the loop's
            self._of_callback = error
            raise

    def _shard(self, name: str) -> Shard:
        return Shard(self._job.datasets[name])


@dataclass
class _LocalSession(session.Session):
    """Hands each report to the controller itself."""

    take: Callable[[list[Report]], None] | None = None

    def queue(self, report: Report) -> None:
        assert self.take is not None
        self.take([report])
