"""Tasks: alone, in batches, on one another, with many arguments and results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .measuring import Case, Settings

BATCH = 1_000


def cases(ray: Any, settings: Settings) -> Iterator[Case]:
    """All about tasks. `ray` is connected."""
    nop = ray.remote(_nop)
    yield from _many(ray, nop, settings)
    yield from _dependent(ray, nop, settings)
    yield from _wide(ray, nop, settings)


def _nop(*_arguments: object) -> bytes:
    return b"ok"


def _many(ray: Any, nop: Any, settings: Settings) -> Iterator[Case]:
    def batch(count: int = BATCH) -> None:
        ray.get([nop.remote() for _ in range(count)])

    def wait() -> None:
        pending = [nop.remote() for _ in range(settings.sized(BATCH))]
        while pending:
            _, pending = ray.wait(pending)

    queued = settings.sized(100_000)
    yield Case("tasks, one at a time", "/s", 1, lambda: ray.get(nop.remote()), "latency")
    yield Case("tasks, batches of 1,000", "/s", BATCH, batch)
    yield Case("100,000 tasks queued and done", "s", 1, lambda: batch(queued), "time")
    yield Case("wait over 1,000 tasks", "/s", 1, wait)


def _dependent(ray: Any, nop: Any, settings: Settings) -> Iterator[Case]:
    @ray.remote
    def add(left: int, right: int) -> int:
        return left + right

    @ray.remote
    def nest(count: int) -> int:
        return len(ray.get([nop.remote() for _ in range(count)]))

    def chain(length: int = 100) -> None:
        ref = nop.remote()
        for _ in range(length - 1):
            ref = nop.remote(ref)
        ray.get(ref)

    def tree(leaves: int = 256) -> None:
        level = [add.remote(1, 1) for _ in range(leaves)]
        while len(level) > 1:
            level = [add.remote(*level[i : i + 2]) for i in range(0, len(level), 2)]
        assert ray.get(level[0]) == 2 * leaves

    outer, inner = 10, settings.sized(100)
    yield Case("tasks, chain of 100", "/s", 100, chain)
    yield Case("tasks, tree of 511", "/s", 511, tree)
    yield Case("nested tasks", "/s", outer * (1 + inner),
               lambda: ray.get([nest.remote(inner) for _ in range(outer)]))


def _wide(ray: Any, nop: Any, settings: Settings) -> Iterator[Case]:
    returns, streamed = settings.sized(3_000), settings.sized(5_000)

    @ray.remote(num_returns=returns)
    def many_returns() -> Any:
        return range(returns)

    @ray.remote(num_returns="streaming")
    def stream(count: int) -> Any:
        # Ray sends into what it runs, which `yield from` hands on to the range.
        for number in range(count):  # noqa: UP028
            yield number

    def consume() -> None:
        for ref in stream.remote(streamed):
            ray.get(ref)

    arguments: list[Any] = []

    def put_arguments() -> None:
        arguments[:] = arguments or [ray.put(i) for i in range(settings.sized(10_000))]

    yield Case("task with 10,000 arguments", "s", 1, lambda: ray.get(nop.remote(*arguments)), "time",
               put_arguments)
    yield Case("task with 3,000 returns", "s", 1, lambda: ray.get(many_returns.remote()), "time")
    yield Case("streamed values", "/s", streamed, consume)
