"""The folder of a run: checkpoints, the history of reports, and the state that a run goes on from.

    result.jsonl            one line per report of worker 0
    events.out.tfevents.*   the same numbers for TensorBoard
    checkpoint_000007/      a checkpoint; whole, or not there under this name
    run_state.json          which checkpoints count, and the report that each came with
    .staging/S-R/           what workers have written for report R of start S, until all have

Workers copy their files into staging; when all ranks have reported, the driver moves the directory
to its name and then writes `run_state.json`. Both steps are renames, so a kill at any point leaves the
earlier state or the later one. A directory that the state does not name is removed at the next start.
Renames protect from dying processes; after a power cut the file system's own promises hold.

`RunFolder` is the driver's: one process holds its lock. `persist` is all that workers do here; on a node
that does not see the folder they send their files along with the report, and the driver stages those.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from miniray.train.checkpoint import Checkpoint
from miniray.train.config import CheckpointConfig
from miniray.train.exceptions import StorageError
from miniray.train.result import Result
from miniray.train.tensorboard import EventWriter

STATE = "run_state.json"
HISTORY = "result.jsonl"
_STAGING = ".staging"
_MARKER = ".marker"
ITERATION = "training_iteration"


@dataclass
class Saved:
    """A stored checkpoint: its directory's name, and the report that it came with."""

    name: str
    iteration: int
    metrics: dict[str, Any]


@dataclass
class RunState:
    """What a run goes on from."""

    checkpoints: list[Saved] = field(default_factory=list)
    next_checkpoint: int = 0
    failures: int = 0
    finished: bool = False
    error: str = ""


def persist(source: Checkpoint, run: str, key: str) -> None:
    """In a worker: copy a checkpoint's files into the staging directory of one report."""
    target = Path(run) / _STAGING / key
    target.mkdir(parents=True, exist_ok=True)
    if Path(source.path) != target:
        shutil.copytree(source.path, target, dirs_exist_ok=True)


def sees(run: str, marker: str) -> bool:
    """In a worker: is the driver's folder the one that this node sees under this path?"""
    try:
        return (Path(run) / _MARKER).read_text(encoding="utf-8") == marker
    except OSError:
        return False


Files = dict[str, Any]
"""A directory's files as values: path below the directory → bytes, as an array of uint8."""


def packed(source: Checkpoint) -> Files:
    """A checkpoint's files, to be sent to where its directory is not seen."""
    top = Path(source.path)
    return {
        str(path.relative_to(top)): np.fromfile(path, dtype=np.uint8)
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def unpack(files: Files, target: Path) -> None:
    """Write packed files into a directory. Raises StorageError if one would lie outside of it."""
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise StorageError(f"a checkpoint's file may not lie outside of its directory: {name!r}")
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(path)


class RunFolder:
    """A run's folder, as its driver sees it."""

    def __init__(self, path: Path, keep: CheckpointConfig | None = None) -> None:
        """Take over the folder, making it if it is new, and go on from what it holds.

        Raises StorageError when another process is at it, or its files are damaged.
        """
        self.path = path
        self._keep = keep or CheckpointConfig()
        self._events: EventWriter | None = None
        self._file: IO[str] | None = None
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StorageError(f"another process trains in {path}: name another run, or end it") from error
        try:
            self.state, self.history = _read_state(path), _read_history(path)
        except StorageError:
            os.close(self._lock)
            raise
        self._sweep()
        if not (path / STATE).exists():
            self.save()     # a run from now on, though killed before its first checkpoint

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Only to look; takes no lock. Raises StorageError if it is no run's folder."""
        if not (path / STATE).exists():
            raise StorageError(f"{path} is not the folder of a run: it has no {STATE}")
        found = cls.__new__(cls)
        found.path, found._keep = path, CheckpointConfig()
        found.state, found.history = _read_state(path), _read_history(path)
        return found

    def mark(self, text: str) -> None:
        """Leave a mark by which workers see that this folder is theirs too."""
        (self.path / _MARKER).write_text(text, encoding="utf-8")

    # ---- an attempt

    @property
    def latest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self._checkpoint(self.state.checkpoints[-1]) if self.state.checkpoints else None

    def go_back(self) -> int:
        """Forget what was reported after the newest checkpoint; returns its iteration, 0 without one."""
        shutil.rmtree(self.path / _STAGING, ignore_errors=True)
        last = self.state.checkpoints[-1].iteration if self.state.checkpoints else 0
        self.history = [row for row in self.history if row[ITERATION] <= last]
        _replace(self.path / HISTORY, "".join(_line(row) for row in self.history))
        self.close_files()
        self._file = (self.path / HISTORY).open("a", encoding="utf-8")
        self._events = EventWriter(self.path, last + 1 if last else 0)
        return last

    def append(self, row: dict[str, Any]) -> None:
        """One more report."""
        assert self._file is not None and self._events is not None, "go_back() opens the files"
        self.history.append(row)
        self._file.write(_line(row))
        self._file.flush()
        self._events.scalars(row[ITERATION], _numbers(row))

    def stage(self, key: str, files: Files) -> None:
        """Put the files that came along with a report where its worker would have put them."""
        unpack(files, self.path / _STAGING / key)

    def commit(self, key: str, row: dict[str, Any]) -> Checkpoint:
        """Make what was staged for a report the newest checkpoint; drop those that are too many."""
        saved = Saved(f"checkpoint_{self.state.next_checkpoint:06}", row[ITERATION], row)
        os.rename(self.path / _STAGING / key, self.path / saved.name)
        self.state.next_checkpoint += 1
        self.state.checkpoints.append(saved)
        surplus = chosen_to_go(self.state.checkpoints, self._keep)
        self.state.checkpoints = [one for one in self.state.checkpoints if one not in surplus]
        self.save()
        for one in surplus:
            shutil.rmtree(self.path / one.name, ignore_errors=True)
        return self._checkpoint(saved)

    def save(self) -> None:
        """Write `run_state.json`."""
        _replace(self.path / STATE, json.dumps(asdict(self.state), indent=1, default=_plain) + "\n")

    # ---- the end

    def result(self, error: Exception | None = None, value: Any = None) -> Result:
        """What the folder holds now, as a Result."""
        if error is None and self.state.error:
            error = RuntimeError(self.state.error)
        ranked = sorted(self.state.checkpoints, key=lambda one: _rank(one, self._keep), reverse=True)
        return Result(
            metrics=self.history[-1] if self.history else None,
            checkpoint=self.latest,
            error=error,
            path=str(self.path),
            best_checkpoints=[(self._checkpoint(one), one.metrics) for one in ranked],
            history=list(self.history),
            return_value=value,
        )

    def close_files(self) -> None:
        """Close the history and the event file."""
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()
        self._file = self._events = None

    def close(self) -> None:
        """Close everything and let others have the folder."""
        self.close_files()
        shutil.rmtree(self.path / _STAGING, ignore_errors=True)
        (self.path / _MARKER).unlink(missing_ok=True)
        os.close(self._lock)

    def _checkpoint(self, saved: Saved) -> Checkpoint:
        return Checkpoint(self.path / saved.name)

    def _sweep(self) -> None:
        """Remove checkpoints that the state does not name: a kill came between two renames."""
        named = {one.name for one in self.state.checkpoints}
        for path in self.path.glob("checkpoint_*"):
            if path.name not in named:
                shutil.rmtree(path, ignore_errors=True)


def chosen_to_go(checkpoints: list[Saved], keep: CheckpointConfig) -> list[Saved]:
    """All but the best `num_to_keep` and the newest."""
    if keep.num_to_keep is None:
        return []
    best = sorted(checkpoints, key=lambda one: _rank(one, keep), reverse=True)[: keep.num_to_keep]
    return [one for one in checkpoints[:-1] if one not in best]


def _rank(saved: Saved, keep: CheckpointConfig) -> tuple[float, int]:
    """Larger is better; equal ones, and those without the metric, go by age."""
    score = saved.metrics.get(keep.checkpoint_score_attribute) if keep.checkpoint_score_attribute else 0.0
    if not isinstance(score, (int, float)) or math.isnan(score):
        return -math.inf, saved.iteration
    return (score if keep.checkpoint_score_order == "max" else -score), saved.iteration


def _read_state(path: Path) -> RunState:
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        content["checkpoints"] = [Saved(**one) for one in content["checkpoints"]]
        return RunState(**content)
    except FileNotFoundError:
        return RunState()
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path / STATE} is damaged ({error}): name another run") from error


def _read_history(path: Path) -> list[dict[str, Any]]:
    """All whole lines: the last one may have been cut by a kill."""
    try:
        text = (path / HISTORY).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers and arrays of NumPy and torch; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _numbers(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The scalars of a report, those of inner dictionaries under "outer/inner"."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not (prefix == "" and name == ITERATION):
            found[prefix + name] = float(value)
    return found
