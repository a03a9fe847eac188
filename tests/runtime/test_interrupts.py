"""Ctrl-C in a driver, `cancel` in a worker: put off where something would stay half-done, else at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import miniray as ray
from miniray.runtime import worker as library
from miniray.runtime.interrupts import CallInterrupts


@pytest.fixture
def core() -> Iterator[library.CoreWorker]:
    ray.init(address="local", num_cpus=1)
    yield library.current()
    ray.shutdown()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Interrupting:
    """A lock; SIGINT comes right after it has been taken, before the caller has noted that."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.armed = True

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        taken: bool = self.lock.acquire(*args, **kwargs)
        if taken and self.armed:
            self.armed = False
            signal.raise_signal(signal.SIGINT)
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)


@ray.remote
def square(n: int) -> int:
    return n * n


@ray.remote
def sleep() -> None:
    time.sleep(1000)


def test_the_right_to_drain_is_not_lost(core: library.CoreWorker) -> None:
    assert ray.get(square.remote(2)) == 4
    core.pump._right = Interrupting(core.pump._right)
    with pytest.raises(KeyboardInterrupt):
        ray.get(sleep.remote())
    assert not core.pump._right.armed
    ready, _ = ray.wait([ray.put(1)])
    assert ray.get(ready) == [1]
    assert ray.get(square.options(num_cpus=0).remote(3), timeout=60) == 9


def test_a_step_of_the_owner_is_not_cut(core: library.CoreWorker) -> None:
    with pytest.raises(KeyboardInterrupt):      # noqa: PT012  it comes where it can
        with core.lock:
            signal.raise_signal(signal.SIGINT)
            whole = True
        for _ in range(1000):
            time.sleep(0.01)
    assert whole


def test_it_comes_at_once_in_user_code(core: library.CoreWorker) -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt):      # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert not reached


def test_a_handler_of_the_user_stays() -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        ray.init(address="local", num_cpus=1)
        signal.raise_signal(signal.SIGINT)
        ray.shutdown()
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT] * 2
    finally:
        signal.signal(signal.SIGINT, before)


class Calls:
    """The calls of a worker's main thread, and their interrupts."""

    def __init__(self, worker: library.CoreWorker) -> None:
        self.running: object = None
        self.interrupts = CallInterrupts(worker, lambda: self.running)


@pytest.fixture
def calls(core: library.CoreWorker) -> Iterator[Calls]:
    before = signal.getsignal(signal.SIGINT)
    yield Calls(core)
    signal.signal(signal.SIGINT, before)


def test_a_call_is_interrupted_once_no_step_is_cut(core: library.CoreWorker, calls: Calls) -> None:
    calls.running = call = object()
    with pytest.raises(KeyboardInterrupt):      # noqa: PT012
        with core.lock:
            calls.interrupts.send(call)
            calls.interrupts.send(call)
            whole = True
        for _ in range(1000):
            time.sleep(0.01)
    assert whole
    time.sleep(0.05)    # one interrupt for both


def test_an_interrupt_that_was_put_off_does_not_hit_the_next_call(
    core: library.CoreWorker, calls: Calls
) -> None:
    calls.running = first = object()
    with core.lock:
        calls.interrupts.send(first)
        calls.running = second = object()
    time.sleep(0.05)
    with pytest.raises(KeyboardInterrupt):      # noqa: PT012
        calls.interrupts.send(second)
        for _ in range(1000):
            time.sleep(0.01)
