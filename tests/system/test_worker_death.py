"""Workers that die: what is tried again, how often, and what the caller is told."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pytest

from miniray import exceptions
from tests.system.support import Effects, alive, eventually, kill

# ---- tasks


@pytest.mark.parametrize("end", ["SIGKILL", "SIGSEGV", "os._exit"])
def test_a_task_whose_worker_dies_runs_again(ray: Any, effects: Effects, end: str) -> None:
    @ray.remote
    def fragile() -> int:
        if effects.happened(end) < 3:
            if end == "os._exit":
                os._exit(7)
            os.kill(os.getpid(), getattr(signal, end))
        return os.getpid()

    pid = ray.get(fragile.remote())
    assert effects.count(end) == 3 and pid != os.getpid()


DEATHS = {
    "signal SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "signal SIGABRT": os.abort,
    "exit status 7": lambda: os._exit(7),
    "exit status 3": lambda: sys.exit(3),
}


@pytest.mark.parametrize("how", DEATHS)
def test_without_retries_it_runs_once_and_the_error_says_how_it_ended(
    ray: Any, effects: Effects, how: str
) -> None:
    die = DEATHS[how]

    @ray.remote(max_retries=0)
    def doomed() -> None:
        effects.happened(str(os.getpid()))
        effects.happened()
        die()

    with pytest.raises(exceptions.WorkerCrashedError) as caught:
        ray.get(doomed.remote())
    text = str(caught.value)
    assert effects.count() == 1
    (pid,) = [line for line in effects.lines() if line.isdigit()]
    assert how in text and pid in text, text


def test_retries_are_used_up(ray: Any, effects: Effects) -> None:
    @ray.remote(max_retries=2)
    def doomed() -> None:
        effects.happened()
        os._exit(1)

    with pytest.raises(exceptions.WorkerCrashedError, match="exit status 1"):
        ray.get(doomed.remote())
    assert effects.count() == 3


def test_at_most_once_also_for_those_that_waited_behind_it(ray: Any, effects: Effects) -> None:
    """Many tasks are in flight to one worker: only the one that ran when it died is lost."""

    @ray.remote(max_retries=0)
    def maybe(n: int) -> int:
        effects.happened(str(n))
        if n == 50:
            os._exit(1)
        return n

    done, failed = [], []
    for n, ref in enumerate([maybe.remote(n) for n in range(200)]):
        try:
            done.append(ray.get(ref))
        except exceptions.WorkerCrashedError:
            failed.append(n)
    assert [effects.count(str(n)) for n in range(200)] == [1] * 200
    assert failed == [50] and len(done) == 199


def test_results_that_were_sent_before_a_crash_arrive(ray: Any) -> None:
    @ray.remote(max_retries=0)
    def first(n: int) -> int:
        return n

    @ray.remote(max_retries=0)
    def last() -> None:
        os._exit(1)

    for _ in range(5):
        refs = [first.remote(n) for n in range(100)]
        crash = last.remote()
        assert ray.get(refs) == list(range(100))
        with pytest.raises(exceptions.WorkerCrashedError):
            ray.get(crash)


def test_a_task_that_raises_runs_once_unless_asked(ray: Any, effects: Effects) -> None:
    @ray.remote
    def raises(kind: str) -> str:
        if effects.happened(kind) < 3:
            raise KeyError(kind)
        return kind

    with pytest.raises(KeyError):
        ray.get(raises.remote("as usual"))
    assert effects.count("as usual") == 1
    assert ray.get(raises.options(retry_exceptions=True).remote("any")) == "any"
    assert ray.get(raises.options(retry_exceptions=[KeyError]).remote("these")) == "these"
    with pytest.raises(KeyError):
        ray.get(raises.options(retry_exceptions=[ValueError]).remote("others"))
    assert effects.count("others") == 1


def test_the_children_of_a_dead_task_are_lost_with_it_and_their_processes_live(ray: Any) -> None:
    """A worker owns what it submits: with the owner go its tasks, not the workers that ran them."""

    @ray.remote
    def child(path: str) -> None:
        time.sleep(0.05)

    @ray.remote(max_retries=0, num_cpus=0)
    def parent() -> None:
        for _ in range(10):
            child.remote("")
        time.sleep(0.05)
        os._exit(1)

    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(parent.remote())
    assert ray.get(child.remote("")) is None


# ---- actors


def actor(ray: Any, **options: Any) -> Any:
    """An actor class that counts its lives."""

    class Counter:
        def __init__(self, effects: Effects) -> None:
            self.effects = effects
            self.value = 0
            effects.happened("born")

        def count(self) -> int:
            self.effects.happened("counted")
            self.value += 1
            return self.value

        def pid(self) -> int:
            return os.getpid()

        def die(self) -> None:
            self.effects.happened("died")
            os._exit(9)

    return ray.remote(**options)(Counter) if options else ray.remote(Counter)


def test_a_dead_actor_stays_dead_and_its_death_has_a_cause(ray: Any, effects: Effects) -> None:
    counter = actor(ray).remote(effects)
    pid = ray.get(counter.pid.remote())
    in_flight = counter.die.remote()
    for ref in (in_flight, counter.count.remote()):
        with pytest.raises(exceptions.ActorDiedError) as caught:
            ray.get(ref)
        assert "exit status 9" in str(caught.value) and str(pid) in str(caught.value)
    assert effects.count("born") == effects.count("died") == 1 and effects.count("counted") == 0
    assert not alive(pid)


def test_a_killed_actor_process_is_reported_by_its_signal(ray: Any, effects: Effects) -> None:
    counter = actor(ray).remote(effects)
    kill(ray.get(counter.pid.remote()))
    with pytest.raises(exceptions.ActorDiedError, match="signal SIGKILL"):
        ray.get(counter.count.remote())


def test_kill_ends_the_process_and_says_so(ray: Any, effects: Effects) -> None:
    counter = actor(ray).remote(effects)
    pid = ray.get(counter.pid.remote())
    ray.kill(counter)
    eventually(lambda: not alive(pid), "the actor's process ends")
    with pytest.raises(exceptions.ActorDiedError, match=r"(?i)kill"):
        ray.get(counter.count.remote())


def test_an_actor_restarts_as_often_as_allowed_without_its_state(ray: Any, effects: Effects) -> None:
    counter = actor(ray, max_restarts=2).remote(effects)
    for life in (1, 2, 3):
        assert eventually(lambda: _answer(ray, counter)) == 1, "the state is gone"
        assert effects.count("born") == life
        with pytest.raises(exceptions.RayActorError):
            ray.get(counter.die.remote())
    with pytest.raises(exceptions.ActorDiedError, match="exit status 9"):
        ray.get(counter.count.remote())
    assert effects.count("born") == 3


def _answer(ray: Any, counter: Any) -> int:
    try:
        return int(ray.get(counter.count.remote()))
    except exceptions.ActorUnavailableError:
        return 0


def test_calls_in_flight_fail_at_most_once_without_task_retries(ray: Any, effects: Effects) -> None:
    counter = actor(ray, max_restarts=1).remote(effects)
    ray.get(counter.count.remote())
    refs = [counter.count.remote() for _ in range(5)] + [counter.die.remote()]
    refs += [counter.count.remote() for _ in range(5)]
    outcomes = [_outcome(ray, ref) for ref in refs]
    assert outcomes[:5] == [2, 3, 4, 5, 6] and outcomes[5] == "error"
    ran = sum(outcome != "error" for outcome in outcomes[6:])
    assert effects.count("counted") == 6 + ran and effects.count("died") == 1


def _outcome(ray: Any, ref: Any) -> Any:
    try:
        return ray.get(ref)
    except exceptions.RayActorError:
        return "error"


def test_with_task_retries_calls_run_again_in_the_next_life_in_order(ray: Any, effects: Effects) -> None:
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, n: int) -> list[int]:
            if n == 3 and effects.happened("three") == 1:
                os._exit(1)
            self.seen.append(n)
            return list(self.seen)

    log = ray.remote(max_restarts=1, max_task_retries=2)(Log).remote()
    answers = ray.get([log.note.remote(n) for n in range(1, 7)])
    assert effects.count("three") == 2
    assert answers[-1][-4:] == [3, 4, 5, 6], "in submission order"
    assert answers[0] == [1] and answers[1] == [1, 2]


def test_the_constructors_error_is_the_death_cause(ray: Any) -> None:
    @ray.remote
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no good")

        def method(self) -> None:
            """Never runs."""

    with pytest.raises(exceptions.ActorDiedError) as caught:
        ray.get(Broken.remote().method.remote())
    assert "no good" in str(caught.value) and "ValueError" in str(caught.value)


def test_exit_actor_is_no_crash(ray: Any, effects: Effects) -> None:
    @ray.remote(max_restarts=5)
    class Leaver:
        def __init__(self) -> None:
            effects.happened("born")

        def leave(self) -> None:
            ray.actor.exit_actor()

        def stay(self) -> None:
            """Never runs after `leave`."""

    leaver = Leaver.remote()
    with pytest.raises(exceptions.RayActorError):
        ray.get(leaver.leave.remote())
    with pytest.raises(exceptions.RayActorError):
        ray.get(leaver.stay.remote())
    assert effects.count("born") == 1, "it left on purpose: no restart"


def test_max_calls_gives_each_task_a_fresh_process(ray: Any) -> None:
    @ray.remote(max_calls=1)
    def pid() -> int:
        return os.getpid()

    pids = [ray.get(pid.remote()) for _ in range(5)]
    assert len(set(pids)) == 5
    eventually(lambda: not any(alive(p) for p in pids), "they have ended")
