"""Rows of two runs side by side: ratios, their geometric mean, and the gate of `make bench`.

A ratio says how many times better the first run is, whichever way is better for the unit. Against
another engine of the same minute it needs no correction. Against a recorded baseline each figure
is first divided by what the machine did in the same second (the row's "calibration"), so that the
gate means the same on a faster, slower or busier machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

LOWER_IS_BETTER = ("s", "us", "MB")
NOT_THE_CPUS = ("MB", "GB/s")
"""Units of figures that a slower CPU leaves as they are."""
WORST_ROW = 0.5
WORST_MEAN = 0.85


def ratio(mine: Row, other: Row) -> float:
    """How many times better `mine` is."""
    if mine["unit"] in LOWER_IS_BETTER:
        return float(other["value"] / mine["value"])
    return float(mine["value"] / other["value"])


def calibrated_ratio(mine: Row, other: Row) -> float:
    """The same, of figures from different machines or minutes."""
    if mine["unit"] in NOT_THE_CPUS:
        return ratio(mine, other)
    return ratio(mine, other) * float(other["calibration"] / mine["calibration"])


def paired(mine: Iterable[Row], other: Iterable[Row]) -> list[tuple[Row, Row]]:
    """The rows that both have, in the order of `mine`."""
    by_name = {row["name"]: row for row in other}
    return [(row, by_name[row["name"]]) for row in mine if row["name"] in by_name]


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean of ratios; 1 for none."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def regressions(mine: Iterable[Row], baseline: Iterable[Row]) -> list[str]:
    """What has become slower than the gate allows, in words; [] when all is well."""
    pairs = paired(mine, baseline)
    ratios = [calibrated_ratio(row, before) for row, before in pairs]
    found = [
        f"{row['name']}: {share:.2f} of the baseline (at least {WORST_ROW} is asked for)"
        for (row, _), share in zip(pairs, ratios)
        if share < WORST_ROW
    ]
    mean = geometric_mean(ratios)
    if mean < WORST_MEAN:
        found.append(f"geometric mean: {mean:.2f} of the baseline (at least {WORST_MEAN} is asked for)")
    return found


def figure(row: Row) -> str:
    """A figure with its unit, and the percentiles of single calls."""
    value, unit = row["value"], row["unit"]
    text = f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    if "p50_us" in row:
        text += f"  (p50 {row['p50_us']:.0f}, p99 {row['p99_us']:.0f} us)"
    return text
