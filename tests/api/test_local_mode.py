"""init(local_mode=True): the same programs in one process, at the call."""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np
import pytest

import miniray as ray
from miniray import exceptions


@pytest.fixture(scope="module", autouse=True)
def here():
    ray.init(address="local", num_cpus=1)
    handle_of_an_earlier_session = Counter.remote()
    ray.get(handle_of_an_earlier_session.add.remote())
    ray.shutdown()
    ray.init(num_cpus=2, local_mode=True)
    del handle_of_an_earlier_session
    yield
    ray.shutdown()


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.count = start

    def add(self, amount=1):
        self.count += amount
        return self.count

    def where(self):
        return os.getpid(), threading.get_ident()

    def fail(self):
        raise KeyError("no")

    def leave(self):
        ray.actor.exit_actor()


# ---- tasks


def test_a_task_runs_at_the_call_on_the_callers_thread():
    ran = []

    def note():
        ran.append((os.getpid(), threading.get_ident()))

    notes = ray.remote(lambda: note())
    ref = notes.remote()
    assert ran == [(os.getpid(), threading.get_ident())]
    assert ray.get(ref) is None and ray.wait([ref]) == ([ref], [])


def test_references_become_values_and_chains_work():
    @ray.remote
    def add(a, b=1):
        return a + b

    first = add.remote(ray.put(1), b=2)
    assert ray.get(add.remote(first, b=add.remote(10))) == 14


def test_what_is_passed_is_a_copy():
    numbers = [1, 2]

    @ray.remote
    def change(items, array):
        items.append(3)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        return items

    assert ray.get(change.remote(numbers, ray.put(np.zeros(100_000)))) == [1, 2, 3]
    assert numbers == [1, 2]


def test_errors_are_kept_for_get():
    @ray.remote
    def fail():
        raise ValueError("on purpose")

    @ray.remote
    def after(value):
        return value

    ref = fail.remote()
    with pytest.raises(ValueError, match="on purpose") as error:
        ray.get(ref)
    assert isinstance(error.value, exceptions.RayTaskError)
    with pytest.raises(ValueError, match="input arguments"):
        ray.get(after.remote(ref))


def test_retries():
    tries = []

    def count():
        tries.append(1)
        if len(tries) < 3:
            raise OSError

    counted = ray.remote(lambda: count())
    ray.get(counted.options(retry_exceptions=[OSError], max_retries=5).remote())
    assert len(tries) == 3


def test_numbers_of_returns():
    @ray.remote
    def several(n):
        return list(range(n))

    assert several.options(num_returns=0).remote(1) is None
    assert ray.get(several.options(num_returns=2).remote(2)) == [0, 1]
    with pytest.raises(ValueError, match="num_returns=2"):
        ray.get(several.options(num_returns=2).remote(3)[1])


def test_what_cannot_be_pickled_is_refused():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        ray.remote(lambda: lock).remote()
    with pytest.raises(TypeError, match="lock"):
        ray.remote(lambda value: value).remote(lock)


def test_generators_are_resumed_item_by_item():
    resumed = []

    def note(i):
        resumed.append(i)

    @ray.remote(num_returns="streaming")
    def items(n):
        for i in range(n):
            note(i)
            yield i
        raise ValueError("at the end")

    stream = items.remote(2)
    assert resumed == [] and ray.get(next(stream)) == 0 and resumed == [0]
    assert ray.get(next(stream)) == 1
    with pytest.raises(ValueError, match="at the end"):
        ray.get(next(stream))
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(ValueError, match="at the end"):
        ray.get(stream.completed())
    dynamic = items.options(num_returns=2)
    assert ray.get(dynamic.remote(2)[0]) == 0


def test_a_task_knows_itself():
    @ray.remote(num_cpus=0.5, name="known")
    def about():
        context = ray.get_runtime_context()
        return context.get_task_name(), context.get_assigned_resources(), context.get_actor_id()

    assert ray.get(about.remote()) == ("known", {"CPU": 0.5}, None)


# ---- actors


def test_an_actor_keeps_its_state_here():
    counter = Counter.remote(5)
    assert ray.get([counter.add.remote(), counter.add.remote(2)]) == [6, 8]
    assert ray.get(counter.where.remote()) == (os.getpid(), threading.get_ident())
    with pytest.raises(KeyError):
        ray.get(counter.fail.remote())
    assert ray.get(counter.add.remote(0)) == 8


def test_a_constructor_that_fails():
    @ray.remote
    class Broken:
        def __init__(self):
            raise ValueError("never made")

        def call(self):
            """Never runs."""

    with pytest.raises(exceptions.ActorDiedError, match="never made") as error:
        ray.get(Broken.remote().call.remote())
    assert error.value.actor_init_failed


def test_handles_travel_and_are_counted():
    @ray.remote
    def use(handle):
        return ray.get(handle.add.remote())

    boxed = ray.put([Counter.remote(1)])
    assert ray.get(use.remote(ray.get(boxed)[0])) == 2
    name = "one that goes"
    counter = Counter.options(name=name).remote()
    assert ray.get(ray.get_actor(name).add.remote()) == 1
    del counter
    with pytest.raises(ValueError, match=name):
        ray.get_actor(name)


def test_names_are_taken_once():
    counter = Counter.options(name="named", get_if_exists=True).remote(1)
    same = Counter.options(name="named", get_if_exists=True).remote(1)
    assert same == counter and "named" in ray.util.list_named_actors()
    with pytest.raises(ValueError, match="already taken"):
        Counter.options(name="named").remote()


def test_kill_and_exit():
    counter, leaving = Counter.remote(), Counter.options(max_restarts=1).remote(3)
    ray.kill(counter)
    with pytest.raises(exceptions.ActorDiedError, match="ray.kill"):
        ray.get(counter.add.remote())
    ray.get(leaving.add.remote())
    ray.kill(leaving, no_restart=False)
    assert ray.get(leaving.add.remote(0)) == 3, "the constructor has run again"
    for call in (leaving.leave, leaving.add):
        with pytest.raises(exceptions.ActorDiedError, match="exit_actor"):
            ray.get(call.remote())


def test_coroutines_wait_for_one_another_and_are_cancelled():
    @ray.remote
    class Gate:
        def __init__(self):
            self.open = asyncio.Event()

        async def wait(self):
            await self.open.wait()
            return "through"

        async def let(self):
            self.open.set()

        async def stream(self):
            for i in range(3):
                await asyncio.sleep(0)
                yield i

    gate = Gate.remote()
    waiting, given_up = gate.wait.remote(), gate.wait.remote()
    assert ray.wait([waiting], timeout=0.05)[0] == []
    ray.cancel(given_up)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(given_up, timeout=20)
    ray.get(gate.let.remote())
    assert ray.get(waiting, timeout=20) == "through"
    stream = gate.stream.options(num_returns="streaming").remote()
    assert [ray.get(ref) for ref in stream] == [0, 1, 2]


def test_tasks_start_tasks_and_actors():
    @ray.remote
    def outer(n):
        counter = Counter.remote(n)
        return ray.get(counter.add.remote()) + (ray.get(outer.remote(n - 1)) if n else 0)

    assert ray.get(outer.remote(2)) == 3 + 2 + 1


def test_helpers_and_tables_are_those_of_a_session():
    pool = ray.util.ActorPool([Counter.remote(), Counter.remote()])
    assert list(pool.map(lambda actor, value: actor.add.remote(value), [1, 2])) == [1, 2]
    queue = ray.util.queue.Queue(maxsize=1)
    queue.put("item")
    assert queue.full() and queue.get() == "item"
    group = ray.util.placement_group([{"CPU": 1}])
    assert group.wait(20)
    assert ray.cluster_resources()["CPU"] == 2.0 and len(ray.nodes()) == 1
