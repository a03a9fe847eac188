"""Programs that lean on the engine: deep nesting, many waiting tasks, cancelling, threads, deadlines."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

from miniray import exceptions
from tests.system.support import Effects, alive, cpu_seconds, eventually, run

# ---- nesting


@pytest.mark.parametrize("cpus", [1, 2])
def test_nesting_far_deeper_than_the_cpus_does_not_deadlock(cpus: int) -> None:
    ended = run(f"""
        ray.init(num_cpus={cpus}, object_store_memory=100 << 20, configure_logging=False)

        @ray.remote
        def down(n):
            return n if n == 0 else 1 + ray.get(down.remote(n - 1)) - 1 + 1

        @ray.remote
        def fib(n):
            return n if n < 2 else sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))

        assert ray.get(down.remote(50)) == 50
        assert ray.get(fib.remote(8)) == 21
        deadline = time.monotonic() + 10
        while ray.available_resources().get("CPU") != {cpus}:
            assert time.monotonic() < deadline, ray.available_resources()
            time.sleep(0.01)
    """)
    assert ended.returncode == 0, ended.stderr


def test_actors_that_call_one_another_in_a_ring(ray: Any) -> None:
    @ray.remote(num_cpus=0)
    class Member:
        def __init__(self) -> None:
            self.next: Any = None

        def join(self, other: Any) -> None:
            self.next = other

        def around(self, hops: int) -> int:
            return 0 if hops == 0 else 1 + ray.get(self.next.around.remote(hops - 1))

    members = [Member.remote() for _ in range(6)]
    ray.get([a.join.remote(b) for a, b in zip(members, members[1:])])
    assert ray.get(members[0].around.remote(5)) == 5


def test_a_task_that_waits_gives_its_cpu_and_its_queue_away(ray: Any) -> None:
    """Both CPUs wait for tasks that were pushed behind them."""

    @ray.remote
    def leaf(n: int) -> int:
        return n

    @ray.remote
    def waits(n: int) -> int:
        return sum(ray.get([leaf.remote(i) for i in range(n)]))

    assert ray.get([waits.remote(20) for _ in range(20)]) == [190] * 20


def test_a_tree_of_dependent_tasks_needs_no_get(ray: Any) -> None:
    @ray.remote
    def add(a: int, b: int) -> int:
        return a + b

    level = [add.remote(n, 0) for n in range(256)]
    while len(level) > 1:
        level = [add.remote(a, b) for a, b in zip(level[::2], level[1::2])]
    assert ray.get(level[0]) == sum(range(256))


# ---- many


def test_a_thousand_tasks_that_do_nothing(ray: Any) -> None:
    nothing = ray.remote(time.sleep)
    assert ray.get([nothing.remote(0) for _ in range(1000)]) == [None] * 1000


def test_many_actors_at_once(ray: Any) -> None:
    @ray.remote(num_cpus=0)
    class Cell:
        def pid(self) -> int:
            return os.getpid()

    cells = [Cell.remote() for _ in range(30)]
    pids = ray.get([cell.pid.remote() for cell in cells])
    assert len(set(pids)) == 30
    del cells
    eventually(lambda: not any(alive(pid) for pid in pids), "actors without handles end")


def test_an_idle_session_uses_next_to_no_cpu(ray: Any) -> None:
    ray.get([ray.remote(time.sleep).remote(0) for _ in range(10)])
    from miniray.runtime import agent

    daemon = _daemon()
    pids = [daemon, os.getpid(), *agent.descendants_of(daemon)]
    time.sleep(1.2)     # idle workers beyond the CPUs leave, buffers drain
    before = {pid: cpu_seconds(pid) for pid in pids if alive(pid)}
    time.sleep(2.0)
    spent = sum(cpu_seconds(pid) - start for pid, start in before.items() if alive(pid))
    assert spent <= 0.06, f"{spent} s of CPU in two idle seconds of {len(before)} processes"


def _daemon() -> int:
    from miniray import session

    assert session._daemon is not None
    return session._daemon.pid


# ---- wait and deadlines


def test_wait_returns_what_is_ready_first_and_keeps_the_rest(ray: Any, effects: Effects) -> None:
    @ray.remote(num_cpus=0)
    def held(name: str) -> str:
        while not effects.count(name):
            time.sleep(0.005)
        return name

    refs = {name: held.remote(name) for name in "abc"}
    assert ray.wait(list(refs.values()), timeout=0.05) == ([], list(refs.values()))
    effects.happened("b")
    ready, rest = ray.wait(list(refs.values()))
    assert ready == [refs["b"]] and rest == [refs["a"], refs["c"]]
    effects.happened("a"), effects.happened("c")
    ready, rest = ray.wait(list(refs.values()), num_returns=3, timeout=20)
    assert ray.get(ready) == ["a", "b", "c"] and rest == []


def test_backpressure_by_wait_keeps_the_number_of_tasks_in_flight(ray: Any) -> None:
    work = ray.remote(lambda n: n)
    pending: list[Any] = []
    total = done = 0
    for n in range(300):
        if len(pending) >= 10:
            ready, pending = ray.wait(pending)
            total += sum(ray.get(ready))
            done += len(ready)
        pending.append(work.remote(n))
    assert total + sum(ray.get(pending)) == sum(range(300)) and len(pending) <= 10


def test_a_get_that_times_out_names_the_missing_resource_and_the_chain(ray: Any) -> None:
    @ray.remote(resources={"unobtainium": 1})
    def impossible() -> None:
        """Never runs."""

    @ray.remote
    def after(value: Any) -> None:
        """Never runs."""

    began = time.monotonic()
    with pytest.raises(exceptions.GetTimeoutError) as caught:
        ray.get(after.remote(after.remote(impossible.remote())), timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 30
    text = str(caught.value)
    assert "unobtainium" in text and "impossible" in text and "after" in text, text


def test_a_task_that_waits_for_a_busy_cpu_says_so(ray: Any, effects: Effects) -> None:
    @ray.remote
    def busy() -> None:
        effects.happened("started")
        while not effects.count("enough"):
            time.sleep(0.005)

    running = [busy.remote() for _ in range(2)]
    eventually(lambda: effects.count("started") == 2)
    waiting = ray.remote(num_cpus=2)(lambda: 1).remote()
    with pytest.raises(exceptions.GetTimeoutError, match="CPU"):
        ray.get(waiting, timeout=0.5)
    effects.happened("enough")
    ray.get(running)
    assert ray.get(waiting) == 1


# ---- cancelling


def test_cancelling_a_queued_task_means_that_it_never_runs(ray: Any, effects: Effects) -> None:
    @ray.remote
    def blocker() -> None:
        effects.happened("started")
        while not effects.count("enough"):
            time.sleep(0.005)

    @ray.remote
    def queued() -> None:
        effects.happened("ran")

    running = [blocker.remote() for _ in range(2)]
    eventually(lambda: effects.count("started") == 2)
    victims = [queued.remote() for _ in range(5)]
    for victim in victims:
        ray.cancel(victim)
    for victim in victims:
        with pytest.raises(exceptions.TaskCancelledError):
            ray.get(victim, timeout=10)
    effects.happened("enough")
    ray.get(running)
    assert ray.get(queued.remote()) is None and effects.count("ran") == 1


def test_cancelling_a_running_task_interrupts_it_and_its_worker_lives(ray: Any, effects: Effects) -> None:
    @ray.remote(max_retries=3)
    def spin() -> None:
        effects.happened(f"pid {os.getpid()}")
        effects.happened("started")
        try:
            time.sleep(1000)
        finally:
            effects.happened("unwound")

    ref = spin.remote()
    eventually(lambda: effects.count("started") == 1)
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=10)
    assert effects.count("unwound") == 1 and effects.count("started") == 1, "no retry"
    (pid,) = [int(line.split()[1]) for line in effects.lines() if line.startswith("pid")]
    assert alive(pid)


def test_cancelling_by_force_ends_the_worker_of_a_deaf_task(ray: Any, effects: Effects) -> None:
    @ray.remote(max_retries=3)
    def deaf() -> None:
        effects.happened("started")
        while True:
            try:
                time.sleep(1000)
            except BaseException:
                effects.happened("ignored")

    ref = deaf.remote()
    eventually(lambda: effects.count("started") == 1)
    ray.cancel(ref, force=True)
    with pytest.raises((exceptions.TaskCancelledError, exceptions.WorkerCrashedError)):
        ray.get(ref, timeout=10)
    assert effects.count("started") == 1, "no retry"


def test_cancelling_at_any_moment_harms_nobody_else(ray: Any) -> None:
    """Just before the start, in the middle, at the very end: the task ends one way, its worker lives."""

    @ray.remote(max_retries=0)
    def short(n: int) -> int:
        time.sleep(0.5 if n % 20 == 0 else 0.0005 * (n % 4))
        return n

    pids = set(ray.get([ray.remote(os.getpid).remote() for _ in range(8)]))
    outcomes = {"done": 0, "cancelled": 0}
    for n in range(400):
        ref = short.remote(n)
        time.sleep(0.0003 * (n % 7))
        ray.cancel(ref)
        try:
            assert ray.get(ref, timeout=20) == n
            outcomes["done"] += 1
        except exceptions.TaskCancelledError:
            outcomes["cancelled"] += 1
    assert outcomes["done"] and outcomes["cancelled"], outcomes
    assert any(alive(pid) for pid in pids)


def test_what_depends_on_a_cancelled_task_fails_too(ray: Any, effects: Effects) -> None:
    @ray.remote
    def never(value: Any = None) -> None:
        effects.happened("started")
        time.sleep(1000)

    first = never.remote()
    second = never.remote(first)
    eventually(lambda: effects.count("started") == 1)
    ray.cancel(first)
    with pytest.raises(exceptions.RayError, match=r"(?i)cancel"):
        ray.get(second, timeout=10)
    assert effects.count("started") == 1


def test_cancelling_a_coroutine_of_an_actor(ray: Any) -> None:
    @ray.remote
    class Sleeper:
        def __init__(self) -> None:
            self.cancelled = 0

        async def sleep(self) -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        async def count(self) -> int:
            return self.cancelled

    sleeper = Sleeper.remote()
    refs = [sleeper.sleep.remote() for _ in range(3)]
    ray.get(sleeper.count.remote())
    ray.cancel(refs[1])
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(refs[1], timeout=10)
    assert ray.get(sleeper.count.remote()) == 1
    assert ray.wait(refs, num_returns=3, timeout=0.05)[0] == [refs[1]]
    ray.kill(sleeper)


# ---- threads


def test_threads_use_the_api_at_the_same_time(ray: Any) -> None:
    @ray.remote
    def square(n: int) -> int:
        return n * n

    @ray.remote(num_cpus=0)
    class Adder:
        def __init__(self) -> None:
            self.total = 0

        def add(self, n: int) -> int:
            self.total += n
            return self.total

    adder = Adder.remote()
    wrong: list[Any] = []

    def use(thread: int) -> None:
        try:
            for i in range(40):
                refs = [square.remote(thread * 1000 + i), adder.add.remote(1), ray.put(i)]
                ready, rest = ray.wait(refs, num_returns=3, timeout=20)
                got = ray.get(refs)
                if got[0] != (thread * 1000 + i) ** 2 or got[2] != i or rest or len(ready) != 3:
                    wrong.append((thread, i, got))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and ray.get(adder.add.remote(0)) == 8 * 40


def test_asyncio_in_the_driver_awaits_references(ray: Any) -> None:
    square = ray.remote(lambda n: n * n)

    async def main() -> list[int]:
        return list(await asyncio.gather(*(square.remote(n) for n in range(50))))

    assert asyncio.run(main()) == [n * n for n in range(50)]


def test_async_actors_interleave_and_threaded_ones_run_side_by_side(ray: Any) -> None:
    @ray.remote(num_cpus=0)
    class Meeting:
        def __init__(self) -> None:
            self.here = 0
            self.all = asyncio.Event()

        async def come(self, expected: int) -> int:
            self.here += 1
            if self.here == expected:
                self.all.set()
            await self.all.wait()
            return self.here

    @ray.remote(num_cpus=0, max_concurrency=4)
    class Barrier:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(4)

        def come(self) -> int:
            self.barrier.wait(20)
            return threading.get_ident()

    meeting, barrier = Meeting.remote(), Barrier.remote()
    assert ray.get([meeting.come.remote(100) for _ in range(100)]) == [100] * 100
    assert len(set(ray.get([barrier.come.remote() for _ in range(4)]))) == 4


def test_user_threads_in_a_task_may_use_the_api(ray: Any) -> None:
    @ray.remote
    def leaf(n: int) -> int:
        return n + 1

    @ray.remote
    def branch() -> int:
        found: list[int] = []

        def use(n: int) -> None:
            found.append(ray.get(leaf.remote(n)))

        threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(found)

    assert ray.get(branch.remote(), timeout=30) == 36
