"""Actors whose process is killed from outside: what callers see of the lives before and after."""

from __future__ import annotations

import os
from typing import Any

import pytest

from miniray import exceptions
from tests.system.support import Effects, alive, eventually, kill

LONG_S = 60.0
CALLS = 400


def test_a_stream_of_calls_is_carried_over_kills_in_order_and_without_duplicates(
    ray: Any, effects: Effects
) -> None:
    """A call may run once in each of two lives, never twice in one; none is left out or overtaken."""

    @ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)
    class Log:
        def __init__(self) -> None:
            self.life = effects.happened("born")

        def note(self, number: int) -> int:
            effects.happened(f"{self.life} {number}")
            return number

        def pid(self) -> int:
            return os.getpid()

    log = Log.remote()
    answers = []
    for life in (1, 2, 3):
        pid = ray.get(log.pid.remote(), timeout=LONG_S)
        answers += [log.note.remote(number) for number in range(len(answers), len(answers) + CALLS)]
        eventually(lambda: any(line.startswith(f"{life} ") for line in effects.lines()), "it works")
        kill(pid)
    assert ray.get(answers, timeout=LONG_S) == list(range(3 * CALLS))
    ran = [tuple(map(int, line.split())) for line in effects.lines() if line != "born"]
    lives = sorted({life for life, _ in ran})
    assert len(lives) >= 2, "at least one kill hit it at work"
    following = 0
    for life in lives:
        numbers = [number for of, number in ran if of == life]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), f"life {life} ran {numbers}"
        assert numbers[0] <= following, f"life {life} leaves out {following} to {numbers[0]}"
        following = numbers[-1] + 1
    assert following == 3 * CALLS


def test_a_constructor_that_fails_at_a_restart_ends_its_actor(ray: Any, effects: Effects) -> None:
    @ray.remote(max_restarts=5, max_task_retries=-1, num_cpus=0)
    class Once:
        def __init__(self) -> None:
            if effects.happened("born") > 1:
                raise ValueError("the licence is used up")

        def pid(self) -> int:
            return os.getpid()

    once = Once.options(name="once").remote()
    kill(ray.get(once.pid.remote(), timeout=LONG_S))
    with pytest.raises(exceptions.ActorDiedError, match=r"(?s)ValueError.*the licence is used up"):
        ray.get(once.pid.remote(), timeout=LONG_S)
    with pytest.raises(ValueError):
        ray.get_actor("once")
    assert effects.count("born") == 2, "an error of the user's code is not tried again"


def test_handles_everywhere_learn_of_a_restart_and_of_the_end(ray: Any) -> None:
    @ray.remote(max_restarts=1, num_cpus=0)
    class Phoenix:
        def pid(self) -> int:
            return os.getpid()

    @ray.remote(num_cpus=0)
    class Holder:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def ask(self) -> int:
            try:
                return int(ray.get(self.handle.pid.remote(), timeout=LONG_S))
            except exceptions.ActorUnavailableError:
                return 0
            except exceptions.ActorDiedError:
                return -1

    phoenix = Phoenix.options(name="phoenix").remote()
    holder = Holder.remote(phoenix)
    by_name = ray.get_actor("phoenix")
    first = ray.get(phoenix.pid.remote(), timeout=LONG_S)
    assert ray.get([holder.ask.remote(), by_name.pid.remote()], timeout=LONG_S) == [first, first]
    kill(first)
    eventually(lambda: not alive(first))
    second = eventually(lambda: max(0, ray.get(holder.ask.remote(), timeout=LONG_S)), "it is back")
    assert second != first and ray.get([phoenix.pid.remote(), by_name.pid.remote()]) == [second, second]
    kill(second)
    eventually(lambda: ray.get(holder.ask.remote(), timeout=LONG_S) == -1, "it is gone for good")
    for handle in (phoenix, by_name):
        with pytest.raises(exceptions.ActorDiedError):
            ray.get(handle.pid.remote(), timeout=LONG_S)
