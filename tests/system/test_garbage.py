"""References that only the garbage collector can find."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

import miniray as ray
from miniray import api
from tests.system.support import eventually

MB = 1 << 20


def used() -> int:
    """Bytes of this node's store that are taken."""
    return int(api.connected_worker().store.stats()["used"])


def test_references_in_cycles_of_garbage_are_found_when_the_store_fills() -> None:
    with ray.init(num_cpus=1, object_store_memory=100 * MB, address="local"):
        before = used()

        @ray.remote(num_cpus=0)
        class Knot:
            def __init__(self) -> None:
                gc.disable()  # as in a process that makes too little garbage for the collector to run

            def tie(self) -> None:
                loop: list[Any] = [ray.put(np.zeros(10 * MB, np.uint8))]
                loop.append(loop)

        knot = Knot.remote()
        for _ in range(6):
            ray.get(knot.tie.remote())
        assert used() >= before + 60 * MB, "nothing else frees them"
        for _ in range(2):
            ray.get(knot.tie.remote())
        # What is tied while the collector runs may wait until the store fills again.
        eventually(lambda: used() <= before + 21 * MB, "the collector has found the cycles", 30)
