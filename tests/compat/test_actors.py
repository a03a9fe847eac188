"""Actors"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import pytest


def test_state_and_order(session):
    """An actor keeps state; calls of one caller start in the order in which they were made."""

    @session.remote
    class Log:
        def __init__(self):
            self.seen = []

        def add(self, x):
            self.seen.append(x)
            return list(self.seen)

    log = Log.remote()
    assert session.get([log.add.remote(i) for i in range(20)])[-1] == list(range(20))


def test_names_and_namespaces(session):
    """Named actors are found by `get_actor`, names are taken once, `get_if_exists` shares one."""

    @session.remote
    class Named:
        def pid(self):
            return os.getpid()

    first = Named.options(name="compat-one").remote()
    assert session.get(session.get_actor("compat-one").pid.remote()) == session.get(first.pid.remote())
    with pytest.raises(ValueError):
        Named.options(name="compat-one").remote()
    same = Named.options(name="compat-one", get_if_exists=True).remote()
    assert session.get(same.pid.remote()) == session.get(first.pid.remote())
    with pytest.raises(ValueError):
        session.get_actor("compat-one", namespace="another")


def test_end_with_the_last_handle(session):
    """An actor ends when its last handle goes out of scope."""

    @session.remote
    class Held:
        def pid(self):
            return os.getpid()

    held = Held.remote()
    pid = session.get(held.pid.remote())
    del held
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.1)
    raise AssertionError("the actor lives on")


def test_kill(session):
    """After `kill` calls raise ActorDiedError, which is a RayActorError."""

    @session.remote
    class Victim:
        def ping(self):
            return "pong"

    victim = Victim.remote()
    assert session.get(victim.ping.remote()) == "pong"
    session.kill(victim)
    with pytest.raises(session.exceptions.RayActorError):
        session.get(victim.ping.remote(), timeout=60)
    assert issubclass(session.exceptions.ActorDiedError, session.exceptions.RayActorError)


def test_restarts(session, tmp_path):
    """With `max_restarts` an actor that dies starts anew, its state is gone, and calls may be retried."""

    @session.remote(max_restarts=1, max_task_retries=-1)
    class Fragile:
        def __init__(self):
            self.calls = 0

        def call(self):
            self.calls += 1
            return self.calls, session.get_runtime_context().was_current_actor_reconstructed

        def die(self, path):
            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(1)
            return "alive again"

    fragile = Fragile.remote()
    assert session.get(fragile.call.remote()) == (1, False)
    assert session.get(fragile.die.remote(str(tmp_path / "died")), timeout=60) == "alive again"
    assert session.get(fragile.call.remote()) == (1, True)


def test_constructor_errors(session):
    """An exception in the constructor is ActorDiedError at the first call, with the exception's text."""

    @session.remote
    class Broken:
        def __init__(self):
            raise RuntimeError("no start")

        def ping(self):
            return "pong"

    with pytest.raises(session.exceptions.ActorDiedError, match="no start"):
        session.get(Broken.remote().ping.remote(), timeout=60)


def test_asyncio_actors(session):
    """An actor with async methods runs calls at the same time on one event loop."""

    @session.remote
    class Meeting:
        def __init__(self):
            self.event = asyncio.Event()

        async def wait(self):
            await self.event.wait()
            return "met"

        async def meet(self):
            self.event.set()

    meeting = Meeting.remote()
    waiting = [meeting.wait.remote() for _ in range(3)]
    session.get(meeting.meet.remote())
    assert session.get(waiting) == ["met"] * 3


def test_threaded_actors(session):
    """`max_concurrency` gives an actor threads, concurrency groups give methods pools of their own."""

    @session.remote(max_concurrency=2)
    class Threads:
        def __init__(self):
            import threading

            self.barrier = threading.Barrier(2)

        def meet(self):
            return self.barrier.wait(30) in (0, 1)

    threads = Threads.remote()
    assert session.get([threads.meet.remote(), threads.meet.remote()]) == [True, True]

    @session.remote(concurrency_groups={"io": 1})
    class Grouped:
        @session.method(concurrency_group="io")
        def thread(self):
            import threading

            return threading.current_thread().name

        def other(self):
            import threading

            return threading.current_thread().name

    grouped = Grouped.remote()
    assert session.get(grouped.thread.remote()) != session.get(grouped.other.remote())


def test_method_options(session):
    """`ray.method(num_returns=…)` and `.options(…)` on methods work as on tasks."""

    @session.remote
    class Pair:
        @session.method(num_returns=2)
        def both(self):
            return 1, 2

    pair = Pair.remote()
    assert session.get(list(pair.both.remote())) == [1, 2]
    assert session.get(pair.both.options(num_returns=1).remote()) == (1, 2)


def test_exit_actor(session):
    """`exit_actor()` ends the actor on purpose; later calls raise RayActorError."""

    @session.remote
    class Leaver:
        def leave(self):
            session.actor.exit_actor()

        def ping(self):
            return "pong"

    leaver = Leaver.remote()
    assert session.get(leaver.ping.remote()) == "pong"
    with pytest.raises(session.exceptions.RayActorError):
        session.get(leaver.leave.remote(), timeout=60)
    with pytest.raises(session.exceptions.RayActorError):
        session.get(leaver.ping.remote(), timeout=60)


def test_handles_travel(session):
    """Handles are passed to tasks and actors, which call the same actor."""

    @session.remote
    class Counter:
        def __init__(self):
            self.value = 0

        def add(self):
            self.value += 1
            return self.value

    @session.remote
    def add(counter):
        return session.get(counter.add.remote())

    counter = Counter.remote()
    assert sorted(session.get([add.remote(counter) for _ in range(3)])) == [1, 2, 3]


def test_pending_call_limit(session):
    """`max_pending_calls` bounds the queue: one more call raises PendingCallsLimitExceeded."""

    @session.remote(max_pending_calls=2)
    class Slow:
        def wait(self):
            time.sleep(2)

    slow = Slow.remote()
    with pytest.raises(session.exceptions.PendingCallsLimitExceeded):
        for _ in range(10):
            slow.wait.remote()


def test_resources_while_waiting(session):
    """An actor keeps its CPUs while a method waits; only tasks lend theirs."""

    @session.remote(num_cpus=4)
    def wide():
        return 1

    @session.remote(num_cpus=1)
    class Holder:
        def wait(self):
            return session.get(wide.remote())

    holder = Holder.remote()
    ready, _ = session.wait([holder.wait.remote()], timeout=2)
    assert not ready
    session.kill(holder)


def test_generators_of_actors(session):
    """Methods may be generators, async ones too."""

    @session.remote
    class Streams:
        async def count(self, n):
            for i in range(n):
                yield i

    assert [session.get(ref) for ref in Streams.remote().count.remote(3)] == [0, 1, 2]


def test_a_method_hides_an_attribute(session):
    """A method is called even when the instance has an attribute of its name."""

    @session.remote
    class Shadow:
        def __init__(self):
            self.value = 7

        def value(self):
            return self.value

    assert session.get(Shadow.remote().value.remote()) == 7


def test_sys_exit(session):
    """`sys.exit` in a method ends the actor."""

    @session.remote(num_cpus=0)
    class Leaver:
        def leave(self):
            sys.exit(1)

    with pytest.raises(session.exceptions.RayActorError):
        session.get(Leaver.remote().leave.remote(), timeout=60)
