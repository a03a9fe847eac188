"""An actor that waits for a CPU gets one before the tasks of its node. Counted, not timed."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

FLOOD = 2000

pytestmark = pytest.mark.parametrize("ray_start", [{"num_cpus": 1}], indirect=True)


def test_an_actor_is_not_starved_by_the_tasks_that_wait_for_it(ray_start: Any) -> None:
    """Each CPU that a waiting task lends would go to the next task, and each of them needs a process."""
    ray = ray_start

    @ray.remote
    class Counter:
        def ping(self) -> str:
            return "pong"

    @ray.remote
    def work() -> int:
        actor = Counter.options(name="shared", get_if_exists=True, lifetime="detached").remote()
        assert ray.get(actor.ping.remote()) == "pong"
        return os.getpid()

    processes = set(ray.get([work.remote() for _ in range(40)]))
    assert len(processes) < 20, "the actor got a CPU long before every task had begun"


def test_an_actor_is_placed_in_the_middle_of_a_flood_of_tasks(ray_start: Any) -> None:
    ray = ray_start

    @ray.remote
    def work() -> None:
        time.sleep(0.02)

    @ray.remote
    class Actor:
        def ping(self) -> str:
            return "pong"

    references = [work.remote() for _ in range(FLOOD)]
    ray.get(references[0])
    actor = Actor.remote()
    assert ray.get(actor.ping.remote()) == "pong"
    _, left = ray.wait(references, num_returns=FLOOD, timeout=0)
    assert len(left) > FLOOD // 2, "its turn came in between, not after"
