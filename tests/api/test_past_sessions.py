"""References of a session that has ended: every use is refused, and none hangs."""

from __future__ import annotations

import time

import numpy as np
import pytest

import miniray as ray


@pytest.fixture(autouse=True)
def ended():
    yield
    ray.shutdown()


def use_everywhere(ref, task):
    """The ways in which a program uses a reference."""
    return {
        "get": lambda: ray.get(ref, timeout=30),
        "get of several": lambda: ray.get([ray.put(1), ref], timeout=30),
        "wait": lambda: ray.wait([ref], timeout=30),
        "argument": lambda: task.remote(ref),
        "list argument": lambda: task.remote([ref]),
        "put": lambda: ray.put([ref]),
        "future": lambda: ref.future(),
    }


def test_references_of_an_ended_session_are_refused():
    ray.init(num_cpus=1)

    @ray.remote
    def give(value):
        return value

    @ray.remote
    def never():
        time.sleep(1000)

    @ray.remote(num_returns="streaming")
    def endless():
        yield 1
        time.sleep(1000)

    old = {"small": ray.put("x"), "large": ray.put(np.zeros(10**6)), "result": give.remote(1)}
    ray.get(old["result"])
    old["pending"] = never.remote()
    stream = endless.remote()
    ray.shutdown()
    ray.init(num_cpus=1)
    for ref in old.values():
        for use in use_everywhere(ref, give).values():
            with pytest.raises(ValueError, match=f"owner is unknown.*{ref.hex()}.*has ended"):
                use()
    with pytest.raises(ValueError, match="generator"):
        next(stream)
    del ref, use, stream
    old.clear()     # the new session is not disturbed by the end of the old one's references
    assert ray.get(give.remote(ray.put([2]))) == [2]
