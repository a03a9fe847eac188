"""The workloads of `miniray microbenchmark`, on any engine with Ray's API.

Also a script that needs nothing but that engine and numpy, so that another interpreter (one that
has Ray) can run it: ``python workloads.py ENGINE NUM_CPUS SECONDS ONLY`` prints the rows as JSON.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

BATCH = 1_000
ROUNDS = 5

Row = tuple[str, str, float]
"""What is measured, its unit, the figure."""


def measure(implementation: str, num_cpus: int, seconds: float, only: str) -> Iterator[Row]:
    """Start a local session, measure, end it."""
    started = time.perf_counter()
    ray = importlib.import_module(implementation)
    ray.init(address="local", num_cpus=num_cpus, log_to_driver=False)
    try:
        nop = ray.remote(_nop)
        ray.get(nop.remote())
        if only in "first result":
            yield "first result, import included", "s", time.perf_counter() - started
        for name, unit, scale, once in [*_tasks(ray), *_actors(ray, num_cpus), *_objects(ray)]:
            if only in name:
                yield name, unit, _rate(once, seconds) * scale
        started = time.perf_counter()
    finally:
        ray.shutdown()
    if only in "shutdown":
        yield "shutdown", "s", time.perf_counter() - started


Case = tuple[str, str, float, Callable[[], Any]]
"""Name, unit, what one call counts for, and the call."""


def _nop(*_arguments: object) -> bytes:
    return b"ok"


def _rate(once: Callable[[], Any], seconds: float) -> float:
    """Calls per second: the median of the rounds."""
    once()
    figures = []
    for _ in range(ROUNDS):
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / ROUNDS:
            once()
            calls += 1
        figures.append(calls / elapsed)
    return statistics.median(figures)


def _tasks(ray: Any) -> list[Case]:
    nop = ray.remote(_nop)

    def chain(length: int = 100) -> None:
        ref = nop.remote()
        for _ in range(length - 1):
            ref = nop.remote(ref)
        ray.get(ref)

    def waiting() -> None:
        pending = [nop.remote() for _ in range(BATCH)]
        while pending:
            _, pending = ray.wait(pending)

    return [
        ("tasks, one at a time", "/s", 1, lambda: ray.get(nop.remote())),
        ("tasks, batches of 1,000", "/s", BATCH, lambda: ray.get([nop.remote() for _ in range(BATCH)])),
        ("tasks, chain of 100", "/s", 100, chain),
        ("wait over 1,000 tasks", "/s", 1, waiting),
    ]


def _actors(ray: Any, count: int) -> list[Case]:
    class Echo:
        def call(self, *_arguments: object) -> bytes:
            return b"ok"

    class AsyncEcho:
        async def call(self, *_arguments: object) -> bytes:
            return b"ok"

    remote_echo = ray.remote(num_cpus=0)(Echo)
    one, many = remote_echo.remote(), [remote_echo.remote() for _ in range(count)]
    loop = ray.remote(num_cpus=0)(AsyncEcho).remote()
    ray.get([actor.call.remote() for actor in [one, loop, *many]])

    def made(number: int = 10) -> None:
        ray.get([actor.call.remote() for actor in [remote_echo.remote() for _ in range(number)]])

    def batch(*actors: Any) -> Callable[[], Any]:
        return lambda: ray.get([actors[i % len(actors)].call.remote() for i in range(BATCH)])

    return [
        ("actor calls, one at a time", "/s", 1, lambda: ray.get(one.call.remote())),
        ("actor calls, batches of 1,000", "/s", BATCH, batch(one)),
        ("asyncio actor, batches of 1,000", "/s", BATCH, batch(loop)),
        (f"1:{count} actor calls, batches", "/s", BATCH, batch(*many)),
        ("actors made and answering", "/s", 10, made),
    ]


def _objects(ray: Any) -> list[Case]:
    import numpy as np

    small, array, large = b"x" * 1_000, np.zeros(25_000), np.ones(100_000_000, np.uint8)
    kept = ray.put(array)
    return [
        ("put 1 KB", "/s", 1, lambda: ray.put(small)),
        ("put 200 KB array", "/s", 1, lambda: ray.put(array)),
        ("get 200 KB array", "/s", 1, lambda: ray.get(kept)),
        ("put 100 MB", "GB/s", 0.1, lambda: ray.put(large)),
    ]


if __name__ == "__main__":
    engine, cpus, time_s, rows_wanted = sys.argv[1:]
    print(json.dumps(list(measure(engine, int(cpus), float(time_s), rows_wanted))))
