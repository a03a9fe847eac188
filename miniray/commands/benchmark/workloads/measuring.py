"""How one workload becomes a row of figures.

A row is a dict: "name", "unit", "value" and, where single calls were timed, "p50_us", "p99_us" and
"p999_us". Units that are a time are better when lower, all others when higher. "calibration" says
how fast this machine was in the same second (`machine_speed`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

ROUNDS = 5
LONG_S = 5.0
_CALIBRATION_S = 0.02

Row = dict[str, Any]


@dataclass
class Settings:
    """What the user chose."""

    seconds: float
    """Time per row."""
    scale: float = 1.0
    """Of the fixed sizes: less than 1 to see that everything works."""
    only: str = ""
    """Rows whose name contains this."""
    cpus: int = 2

    def sized(self, count: int) -> int:
        """A fixed size, scaled."""
        return max(2, int(count * self.scale))


@dataclass
class Case:
    """A workload. `once` runs it one time; that counts for `amount` of `unit`."""

    name: str
    unit: str
    amount: float
    once: Callable[[], Any]
    kind: str = "rate"
    """"rate": amount per second; "latency": the same, one call at a time, each timed; "time": seconds
    of one run; "tail": microseconds of the slowest in a thousand calls."""
    prepare: Callable[[], Any] = lambda: None
    """Runs before the clock does."""


def rows_of(cases: Iterator[Case], settings: Settings) -> Iterator[Row]:
    """Measure the cases that are wanted, one after the other."""
    for case in cases:
        if settings.only in case.name:
            before = machine_speed()
            row = _MEASURE[case.kind](case, settings)
            row["calibration"] = statistics.mean((before, machine_speed()))
            yield row


def machine_speed() -> float:
    """Turns of a small Python loop per second, now, beside whatever else runs."""
    turns, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _CALIBRATION_S:
        sum(range(1000))
        turns += 1
    return turns / elapsed


def _rate(case: Case, settings: Settings) -> Row:
    """The median of the rounds."""
    case.prepare()
    case.once()
    figures = []
    for _ in range(ROUNDS):
        runs, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < settings.seconds / ROUNDS:
            case.once()
            runs += 1
        figures.append(runs / elapsed)
    return {"name": case.name, "unit": case.unit, "value": statistics.median(figures) * case.amount}


def _timed_calls(case: Case, settings: Settings) -> list[float]:
    """Seconds of each call, sorted."""
    case.prepare()
    for _ in range(settings.sized(100)):
        case.once()
    times: list[float] = []
    end = time.perf_counter() + settings.seconds
    now = time.perf_counter()
    while now < end or len(times) < ROUNDS:
        case.once()
        later = time.perf_counter()
        times.append(later - now)
        now = later
    return sorted(times)


def _latency(case: Case, settings: Settings) -> Row:
    times = _timed_calls(case, settings)
    row = {"name": case.name, "unit": case.unit, "value": case.amount * len(times) / sum(times)}
    return row | _percentiles(times)


def _tail(case: Case, settings: Settings) -> Row:
    found = _percentiles(_timed_calls(case, settings))
    return {"name": case.name, "unit": "us", "value": found["p999_us"]} | found


def _percentiles(times: list[float]) -> dict[str, float]:
    at = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
    return {name: times[int(share * (len(times) - 1))] * 1e6 for name, share in at.items()}


def _time(case: Case, settings: Settings) -> Row:
    """The best of as many runs as fit, of two at least unless they are long."""
    best, runs, end = float("inf"), 0, time.perf_counter() + settings.seconds
    while runs == 0 or time.perf_counter() < end or (runs == 1 and best < LONG_S):
        case.prepare()
        started = time.perf_counter()
        case.once()
        best = min(best, time.perf_counter() - started)
        runs += 1
    return {"name": case.name, "unit": "s", "value": best}


_MEASURE: dict[str, Callable[[Case, Settings], Row]] = {
    "rate": _rate, "latency": _latency, "time": _time, "tail": _tail,
}  # fmt: skip
