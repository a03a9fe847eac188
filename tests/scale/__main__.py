"""Prints the tables of docs/scale.md: what an entity costs, and how that grows with each dimension by itself.

One cluster of an eighth of the size stays; beside it come, one after the other, clusters in which one
dimension is the whole size and the others an eighth, and at last the whole. Both go through the same probes
in turns. Time is the head's alone, on its thread's clock, the cheapest of the rounds; beside its growth is
that of the functions called, which neither a busy machine nor a cache changes. The collector is off, for it
would go through two thousand raylets as well; its pause in a head of that size is a row of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from miniray.runtime.sqlite_storage import SqliteStorage

from . import memory
from .cluster import HollowCluster, Size, nodes_that_beat_when_asked
from .probes import PROBES, Cost, Probe, taken

TIMES = 8
ALL = "all"


@dataclass(frozen=True)
class Pair:
    """A probe in the small cluster and in a larger one: the cheapest rounds, and calls of functions."""

    small: Cost
    large: Cost
    small_calls: Cost
    large_calls: Cost

    @property
    def growth(self) -> float:
        """Of the time of one entity."""
        return self.large.own / self.small.own

    @property
    def calls_growth(self) -> float:
        """Of the functions called for one entity."""
        return self.large_calls.own / self.small_calls.own

    def cell(self) -> str:
        """Growth of the time, and of the calls."""
        return f"{self.growth:.2f} ({self.calls_growth:.2f})"


Column = dict[str, Pair]
"""A probe's pair by its name."""


def compared(small: HollowCluster, large: HollowCluster, rounds: int) -> Column:
    """All probes on both, in turns."""
    return {probe.name: _pair(probe, small, large, rounds) for probe in PROBES}


def _pair(probe: Probe, small: HollowCluster, large: HollowCluster, rounds: int) -> Pair:
    costs = [(taken(probe, small), taken(probe, large)) for _ in range(rounds)]
    return Pair(
        _cheapest([pair[0] for pair in costs]), _cheapest([pair[1] for pair in costs]),
        taken(probe, small, counting=True), taken(probe, large, counting=True),
    )  # fmt: skip


def _cheapest(costs: list[Cost]) -> Cost:
    """Field by field: what the machine did to one round is in no other."""
    columns = zip(*(astuple(cost)[:-1] for cost in costs), strict=True)
    longest_call = min(costs, key=lambda cost: cost.longest_s).longest_call
    return Cost(*(min(column) for column in columns), longest_call)


def run(whole: Size, rounds: int, directory: str) -> dict[str, Column]:
    """Columns by dimension; the databases of the smallest and the largest stay in the directory."""
    base = whole.times(1 / TIMES)
    sizes = {field.name: replace(base, **{field.name: getattr(whole, field.name)}) for field in fields(Size)}
    gc.disable()
    small = _cluster(base, directory, "small")
    columns = {}
    for name, size in {**sizes, ALL: whole}.items():
        large = _cluster(size, directory, name)
        columns[name] = compared(small, large, rounds)
        for probe, pair in columns[name].items():
            print(f"  {probe}: {pair.cell()}", file=sys.stderr, flush=True)
        large.head.head.check()
        large.head.storage.close()
        del large
        gc.collect()
    small.head.storage.close()
    gc.enable()
    return columns


def _cluster(size: Size, directory: str, name: str) -> HollowCluster:
    print(f"{name}: {size}", file=sys.stderr, flush=True)
    return HollowCluster(size, SqliteStorage(os.path.join(directory, name)))


def _asked(setting: dict[str, str], *paths: str) -> Any:
    """Figures of `tests.scale.memory`."""
    command = [sys.executable, "-m", "tests.scale.memory", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **setting})
    return json.loads(done.stdout)


def growth_table(whole: Size, columns: dict[str, Column]) -> list[str]:
    """What an entity costs, and its growth by dimension, as Markdown."""
    heads = [f"{name} × {TIMES}" for name in columns]
    nodes = f"{whole.nodes // TIMES:,} nodes | {whole.nodes:,} nodes"
    lines = [f"| head's processor time for each | {nodes} | {' | '.join(heads)} | exponent | longest stall |"]
    lines.append("|---|" + "---:|" * (len(heads) + 4))
    for probe in PROBES:
        last = columns[ALL][probe.name]
        each = f"{last.small.own * 1e6:,.1f} us | {last.large.own * 1e6:,.1f} us"
        cells = " | ".join(column[probe.name].cell() for column in columns.values())
        exponent = 1 + math.log(last.growth) / math.log(TIMES)
        stall = f"{last.large.longest_s * 1e3:.1f} ms"
        lines.append(f"| {probe.name} | {each} | {cells} | {exponent:.2f} | {stall} |")
    return lines


def news_table(whole: Size, last: Column) -> list[str]:
    """What telling everybody takes of the head while each probe lasts."""
    sizes = f"{whole.nodes // TIMES:,} nodes | {whole.nodes:,} nodes"
    lines = [f"| of a core, for telling every node | {sizes} |"]
    lines.append("|---|---:|---:|")
    for name in ("node joins", "heartbeat with news", "actor dies", "placement group of 4 made"):
        pair = last[name]
        lines.append(f"| {name} | {pair.small.news_share:.1%} | {pair.large.news_share:.1%} |")
    return lines


def memory_table(whole: Size, directory: str) -> list[str]:
    """Bytes of an entity; a restart and a collection."""
    paths = [os.path.join(directory, name) for name in ("small", ALL)]
    sizes = [_asked(memory.SETTING, path) for path in paths]
    lines = [f"| memory, restart | {whole.nodes // TIMES:,} nodes | {whole.nodes:,} nodes | last / first |"]
    lines.append("|---|---:|---:|---:|")
    for key, name in (("node", "node"), ("actor", "actor"), ("group", "placement group"),
                      ("view", "another node, in a raylet")):  # fmt: skip
        first, last = (figures[key] for figures in sizes)
        lines.append(f"| {name} | {first:,.0f} B | {last:,.0f} B | {last / first:.2f} |")
    restarts = [memory.Restart(**figures) for figures in _asked({}, *paths)]
    for key, name in (("restart_s", "restart, for each row read"),
                      ("collection_s", "a full collection, for each row")):  # fmt: skip
        first, last = (getattr(restart, key) / restart.rows * 1e6 for restart in restarts)
        lines.append(f"| {name} | {first:.1f} us | {last:.1f} us | {last / first:.2f} |")
    pause = restarts[-1]
    lines.append(f"| a restart, and a full collection, of {pause.rows:,} rows | | "
                 f"{pause.restart_s * 1e3:,.0f} ms, {pause.collection_s * 1e3:,.0f} ms | |")  # fmt: skip
    return lines


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1: 2,000 nodes, 20,000 actors, …")
    parser.add_argument("--rounds", type=int, default=4, help="of which the cheapest counts")
    options = parser.parse_args()
    whole = Size().times(options.scale)
    with tempfile.TemporaryDirectory() as directory, nodes_that_beat_when_asked():
        columns = run(whole, options.rounds, directory)
        tables = (
            growth_table(whole, columns), news_table(whole, columns[ALL]), memory_table(whole, directory))
        print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
