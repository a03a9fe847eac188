"""Actors: calls alone, in batches, many to many; making them; placement groups."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from .measuring import Case, Settings

BATCH = 1_000
MADE = 10


def cases(ray: Any, settings: Settings) -> Iterator[Case]:
    """All about actors. `ray` is connected."""

    class Echo:
        def call(self, *_arguments: object) -> bytes:
            return b"ok"

        def call_all(self, actors: list[Any], count: int) -> int:
            return len(ray.get([actors[i % len(actors)].call.remote() for i in range(count)]))

    class AsyncEcho:
        async def call(self, *_arguments: object) -> bytes:
            return b"ok"

    echo = ray.remote(num_cpus=0)(Echo)
    count = settings.cpus
    one, loop = echo.remote(), ray.remote(num_cpus=0)(AsyncEcho).remote()
    many, callers = [echo.remote() for _ in range(count)], [echo.remote() for _ in range(count)]
    ray.get([actor.call.remote() for actor in (one, loop, *many, *callers)])

    def batch(*actors: Any) -> Callable[[], Any]:
        return lambda: ray.get([actors[i % len(actors)].call.remote() for i in range(BATCH)])

    def all_to_all() -> None:
        ray.get([caller.call_all.remote(many, BATCH) for caller in callers])

    def made() -> None:
        ray.get([actor.call.remote() for actor in [echo.remote() for _ in range(MADE)]])

    yield Case("actor calls, one at a time", "/s", 1, lambda: ray.get(one.call.remote()), "latency")
    yield Case("actor calls, batches of 1,000", "/s", BATCH, batch(one))
    yield Case("asyncio actor, batches of 1,000", "/s", BATCH, batch(loop))
    yield Case(f"1:{count} actor calls, batches", "/s", BATCH, batch(*many))
    yield Case(f"{count}:{count} actor calls, batches", "/s", BATCH * count, all_to_all)
    yield Case("actors made and answering", "/s", MADE, made)
    yield from _groups(ray)


def _groups(ray: Any) -> Iterator[Case]:
    module = importlib.import_module(f"{ray.__name__}.util.placement_group")

    def made() -> None:
        groups = [module.placement_group([{"CPU": 0.01}]) for _ in range(MADE)]
        ray.get([group.ready() for group in groups])
        for group in groups:
            module.remove_placement_group(group)

    yield Case("placement groups made and removed", "/s", MADE, made)
