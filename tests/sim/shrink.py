"""Make a failing seed smaller: fewer nodes, drivers, faults and seconds, as long as it still fails.

Everything in a run draws from one generator, so a smaller scenario is another world, not a part
of the first: a reduction counts when the *same kind* of promise breaks there. Greedy, one figure
at a time, until no figure can be reduced any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from .run import Failure, Scenario, Simulation, figures_of, scenario_of

LEAST = {"nodes": 2.0, "cpus": 1.0, "drivers": 1.0, "seconds": 1.0, "until": 1.0}
"""Below these a scenario is none; every other figure can be 0."""

KEPT = ("store_bytes", "lineage_bytes")
"""Figures that are no smaller for being less."""


def kind_of(failure: Failure) -> str:
    """Which promise was broken: "liveness", or the words of the first line without names and figures."""
    line = str(failure).partition("\n")[0]
    if "after the last fault" in line or "there is left" in line:
        return "liveness"
    return " ".join(word for word in line.split()[2:] if not re.search(r"[\d\[\]']", word))[:60]


def smaller(name: str, value: float) -> Iterator[float]:
    """Values to try in place of `value`, the smallest first."""
    least = LEAST.get(name, 0.0)
    half = (value + least) / 2 if name in ("seconds", "until", "loss", "duplicates", "late") else value // 2
    yield from dict.fromkeys(one for one in (least, half, value - 1) if least <= one < value)


def shrink(seed: int, changes: dict[str, float], failure: Failure,
           tell: Callable[[str], None], drawn: Callable[..., Scenario] = scenario_of,
           ) -> tuple[dict[str, float], Failure]:
    """The changes to the scenario `drawn` for a seed under which it is smallest, and how it fails then."""
    kind = kind_of(failure)
    progress = True
    while progress:
        progress = False
        for name, value in figures_of(drawn(seed, changes)).items():
            for less in smaller(name, value) if name not in KEPT else ():
                attempt = {**changes, name: less}
                broken = _failure_of(seed, drawn(seed, attempt))
                if broken is not None and kind_of(broken) == kind:
                    tell(f"seed {seed} still fails with {name}={less:g} (was {value:g})")
                    changes, failure, progress = attempt, broken, True
                    break
    return changes, failure


def _failure_of(seed: int, scenario: Scenario) -> Failure | None:
    try:
        Simulation(seed, scenario).run()
    except Failure as failure:
        return failure
    return None
