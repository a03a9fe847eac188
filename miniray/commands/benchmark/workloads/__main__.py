"""``python -m workloads ENGINE CPUS SECONDS SCALE ONLY``: measures, prints one row of JSON per line.

ENGINE is the module's name: miniray or ray.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import actors, contention, nodes, objects, tasks
from .measuring import Row, Settings, machine_speed, rows_of

TAG = "MINIRAY_BENCHMARK"


def measure(engine: str, settings: Settings) -> Iterator[Row]:
    """All rows: of a local session, then of a cluster."""
    os.environ[TAG] = f"{os.getpid()}-{time.time_ns()}"  # the engine's processes inherit it
    started = time.perf_counter()
    ray = importlib.import_module(engine)
    ray.init(address="local", num_cpus=settings.cpus, log_to_driver=False, include_dashboard=False)
    try:
        ray.get(ray.remote(_nop).remote())
        yield from _wanted(settings, "first result, import included", "s", time.perf_counter() - started)
        yield from _wanted(settings, "memory of all processes (PSS)", "MB", memory_mb(os.environ[TAG]))
        for module in (tasks, actors, objects, contention):
            yield from rows_of(module.cases(ray, settings), settings)
        started = time.perf_counter()
    finally:
        ray.shutdown()
    yield from _wanted(settings, "shutdown", "s", time.perf_counter() - started)
    yield from nodes.measure(engine, settings)


def _wanted(settings: Settings, name: str, unit: str, value: float) -> Iterator[Row]:
    if settings.only in name:
        yield {"name": name, "unit": unit, "value": value, "calibration": machine_speed()}


def _nop() -> bytes:
    return b"ok"


def memory_mb(tag: str) -> float:
    """Memory of this process and those that inherited its tag, shared pages counted once."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name != str(os.getpid()) and tag.encode() not in (process / "environ").read_bytes():
                continue
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
            fields = dict(line.split(":", 1) for line in lines)
            total += int(fields["Pss"].split()[0])
        except (OSError, KeyError):
            continue  # it has ended, or is a kernel thread
    return total / 1024


def main(arguments: list[str]) -> None:
    """See the module head."""
    engine, cpus, seconds, scale, only = arguments
    for row in measure(engine, Settings(float(seconds), float(scale), only, int(cpus))):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
