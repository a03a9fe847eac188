"""Latency under load: one caller's calls while somebody else keeps the same workers busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .measuring import Case, Settings

BATCH = 1_000
LONGEST_S = 600.0


def cases(ray: Any, settings: Settings) -> Iterator[Case]:
    """The tails. `ray` is connected. Each flood ends when the next case is asked for."""

    @ray.remote
    def nop() -> bytes:
        return b"ok"

    class Echo:
        def call(self) -> bytes:
            return b"ok"

    class Flood:
        """Calls in batches, from a process of its own, until told to stop."""

        def __init__(self) -> None:
            self.batches = 0
            self.stopped = False

        def run(self, actor: Any) -> None:
            call = nop if actor is None else actor.call
            end = time.monotonic() + LONGEST_S
            while not self.stopped and time.monotonic() < end:
                ray.get([call.remote() for _ in range(BATCH)])
                self.batches += 1

        def count(self) -> int:
            return self.batches

        def stop(self) -> None:
            self.stopped = True

    def under_flood(name: str, target: Any, once: Any) -> Iterator[Case]:
        if settings.only not in name:
            return
        flood = ray.remote(num_cpus=0, max_concurrency=2)(Flood).remote()
        done = flood.run.remote(target)
        while not ray.get(flood.count.remote()):
            time.sleep(0.01)
        yield Case(name, "us", 1, once, "tail")
        ray.get(flood.stop.remote())
        ray.get(done)
        ray.kill(flood)

    echo = ray.remote(num_cpus=0)(Echo).remote()
    yield from under_flood("actor call beside a flooding caller, p99.9", echo,
                           lambda: ray.get(echo.call.remote()))
    yield from under_flood("task beside a flood of tasks, p99.9", None, lambda: ray.get(nop.remote()))
