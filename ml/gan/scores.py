"""The verdicts of a run in order, kept in quality.json beside the models, so that a resumed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ml.gan import artifacts

FILE = "quality.json"


class _Verdict(Protocol):
    def to_json(self) -> dict[str, Any]: ...


class Judges(Protocol):
    """What makes verdicts: `judge.Judge`."""

    def verdict(self, drawn: NDArray[np.uint8], /) -> _Verdict: ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass
class Budget:
    """How much of a run's time may go into verdicts, which take cores that train."""

    share: float = 1.0  # 1: all that is asked for
    spent_s: float = 0.0
    _last_s: float = 0.0

    def allows(self, elapsed_s: float) -> bool:
        """Would one more like the last stay within the share of what the run has taken so far?"""
        return self.share >= 1 or self.spent_s + self._last_s <= self.share * elapsed_s

    def spend(self, seconds: float) -> None:
        """A verdict has taken so long."""
        self.spent_s += seconds
        self._last_s = seconds


class Scores:
    """Verdicts of one run. Each one is on disk before `add` returns."""

    def __init__(
        self, folder: Path, judge: Judges, resumed_step: int = 0, say: Callable[[str], None] | None = None
    ) -> None:
        """Go on after the verdicts up to `resumed_step` that `folder` holds; `say` shows each new one."""
        self._folder, self._judge, self._say = folder, judge, say
        self.basis = judge.to_json()
        self.history: list[dict[str, Any]] = []
        if resumed_step:
            self.history = [entry for entry in _read(folder / FILE) if entry["step"] <= resumed_step]

    @property
    def last_step(self) -> int:
        """The step of the last verdict; -1 before the first."""
        return int(self.history[-1]["step"]) if self.history else -1

    def to_json(self) -> dict[str, Any]:
        """quality.json."""
        return {"basis": self.basis, "history": self.history}

    def add(self, epoch: float, step: int, drawn: NDArray[np.uint8]) -> dict[str, Any]:
        """Judge the images drawn after `step` steps and write the verdict; returns it."""
        entry = {"epoch": round(epoch, 4), "step": step} | self._judge.verdict(drawn).to_json()
        self.history.append(entry)
        artifacts.save_json(self._folder / FILE, self.to_json())
        if self._say is not None:
            self._say(f"quality after epoch {entry['epoch']:g}: {sentence(entry)}")
        return entry


def sentence(entry: dict[str, Any]) -> str:
    """A verdict in one line."""
    classes = f", {entry['classes_covered']} of {entry['classes']} classes" if "classes" in entry else ""
    fid = f", FID {entry['fid']:.1f}" if "fid" in entry else ""
    return (
        f"Fréchet distance {entry['frechet']:.1f}{fid}, "
        f"precision {entry['precision']:.2f}, recall {entry['recall']:.2f}{classes}"
    )


def _read(path: Path) -> list[dict[str, Any]]:
    """The verdicts in a file of ours; none where it is missing or damaged: they can be measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [entry for entry in content["history"] if isinstance(entry.get("step"), int)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
