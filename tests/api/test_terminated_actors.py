"""SIGTERM of an actor: calls that run side by side are finished; one call at a time is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import pytest

import miniray as ray


@pytest.fixture(autouse=True, scope="module")
def session():
    ray.init(num_cpus=4)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Gate:
    """Closed until opened."""

    def __init__(self):
        self.is_open = asyncio.Event()

    async def open(self):
        self.is_open.set()

    async def opened(self):
        await self.is_open.wait()


class Waits:
    """Says when it has begun, and waits for the gate."""

    def __init__(self):
        self.begun = 0

    def terminate(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return self.begun

    def count(self):
        return self.begun

    def pid(self):
        return os.getpid()

    def wait(self, gate, value):
        self.begun += 1
        ray.get(gate.opened.remote())
        return ray.get(value[0])


class WaitsOnLoop(Waits):
    """The same as a coroutine."""

    async def count(self):
        return self.begun

    async def wait(self, gate, value):
        self.begun += 1
        await gate.opened.remote()
        return await value[0]


@pytest.mark.parametrize("actor", [
    ray.remote(max_concurrency=4, num_cpus=0)(Waits),
    ray.remote(num_cpus=0)(WaitsOnLoop),
], ids=["threads", "loop"])  # fmt: skip
def test_calls_that_run_are_finished_after_sigterm(actor):
    gate, one = Gate.remote(), actor.remote()
    waiting = [one.wait.remote(gate, [ray.put(f"value {i}")]) for i in range(3)]
    while ray.get(one.count.remote(), timeout=30) < len(waiting):
        time.sleep(0.01)
    assert ray.get(one.terminate.remote(), timeout=30) == len(waiting)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(waiting, timeout=0.5)
    ray.get(gate.open.remote())
    assert ray.get(waiting, timeout=30) == ["value 0", "value 1", "value 2"]
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(one.count.remote(), timeout=30)


def test_a_second_sigterm_ends_the_actor_at_once():
    gate, one = Gate.remote(), ray.remote(max_concurrency=4, num_cpus=0)(Waits).remote()
    waiting = one.wait.remote(gate, [ray.put(1)])
    while not ray.get(one.count.remote(), timeout=30):
        time.sleep(0.01)
    pid = ray.get(one.pid.remote(), timeout=30)
    with contextlib.suppress(ProcessLookupError):
        while not ray.wait([waiting], timeout=0.2)[0]:      # two that come at once are one
            os.kill(pid, signal.SIGTERM)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(waiting, timeout=30)
