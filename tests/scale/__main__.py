"""Prints the table of docs/scale.md: three sizes of one cluster, and what an entity costs in each.

The head's processor time is counted on its thread's clock, callback by callback, so what else runs on
the machine changes little. Where a phase takes time in the cluster, what the heartbeats of that time
cost is taken off. The collector is off while the cluster runs, for it would go through two thousand
raylets as well; its pause in a head of that size is a row of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from miniray.runtime.sqlite_storage import SqliteStorage

from . import memory
from .phases import HollowCluster, Phase, Size

FRACTIONS = (0.25, 0.5, 1.0)


def run(size: Size) -> tuple[list[Phase], dict[str, Any]]:
    """All phases of one size, and its memory."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "head.db")
        storage = SqliteStorage(path)
        gc.disable()
        cluster = HollowCluster(size, storage)
        phases = cluster.phases()
        cluster.head.head.check()
        storage.close()
        gc.enable()
        command = [sys.executable, "-m", "tests.scale.memory", path]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **memory.SETTING})
        return phases, json.loads(done.stdout)


def table(sizes: list[Size], results: list[tuple[list[Phase], dict[str, Any]]]) -> list[str]:
    """The rows, as Markdown."""
    counts = [f"{size.nodes:,} nodes" for size in sizes]
    lines = ["| head's processor time for each | " + " | ".join(counts) + " | last / first | longest stall |"]
    lines.append("|---|" + "---:|" * (len(sizes) + 2))
    for index, phase in enumerate(results[-1][0]):
        each = [phases[index].each_us for phases, _ in results]
        cells = [f"{us:,.1f} us" for us in each]
        ratio = f"{each[-1] / each[0]:.2f}"
        lines.append(f"| {phase.name} | {' | '.join(cells)} | {ratio} | {phase.stall_s * 1e3:.1f} ms |")
    lines += ["", "| memory | " + " | ".join(counts) + " | last / first |"]
    lines.append("|---|" + "---:|" * (len(sizes) + 1))
    for key, name in (("node", "node"), ("actor", "actor"), ("group", "placement group"),
                      ("view", "another node, in a raylet")):  # fmt: skip
        sums = [figures[key] for _, figures in results]
        lines.append(f"| {name} | {' | '.join(f'{n:,.0f} B' for n in sums)} | {sums[-1] / sums[0]:.2f} |")
    for key, name in (("restart_s", "restart: all rows read"), ("collection_s", "a full garbage collection")):
        sums = [figures[key] * 1e3 for _, figures in results]
        lines.append(f"| {name} | {' | '.join(f'{n:,.0f} ms' for n in sums)} | {sums[-1] / sums[0]:.2f} |")
    return lines


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1: 2,000 nodes, 20,000 actors, …")
    options = parser.parse_args()
    sizes = [Size().times(options.scale * fraction) for fraction in FRACTIONS]
    results = []
    for size in sizes:
        print(f"{size}", file=sys.stderr, flush=True)
        results.append(run(size))
    print("\n".join(table(sizes, results)))


if __name__ == "__main__":
    main()
