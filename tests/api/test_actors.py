"""Actors through the public API on a real local session."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import sys
import threading
import time

import pytest

import miniray as ray

pytestmark = pytest.mark.usefixtures("ray_shared")


@ray.remote
class Counter:
    """Counts."""

    def __init__(self, start=0):
        self.value = start

    def add(self, amount=1):
        self.value += amount
        return self.value

    def pid(self):
        return os.getpid()

    def fail(self):
        raise KeyError("bad")

    @ray.method(num_returns=2)
    def pair(self):
        return 1, 2

    def die(self):
        os.kill(os.getpid(), 9)

    def leave(self):
        ray.actor.exit_actor()

    def items(self, n):
        yield from range(n)


def get(refs):
    return ray.get(refs, timeout=20)


def test_calls_run_in_order():
    counter = Counter.remote(10)
    assert get([counter.add.remote() for _ in range(20)]) == list(range(11, 31))


def test_state_is_the_actors_own():
    one, two = Counter.remote(), Counter.remote()
    get(one.add.remote(5))
    assert get(two.add.remote()) == 1


def test_errors_leave_the_actor_alive():
    counter = Counter.remote()
    with pytest.raises(KeyError) as error:
        get(counter.fail.remote())
    assert "ray::Counter.fail()" in str(error.value)
    assert get(counter.add.remote()) == 1


def test_method_options():
    counter = Counter.remote()
    assert get(counter.pair.remote()) == [1, 2]
    assert get(counter.pair.options(num_returns=1).remote()) == (1, 2)
    assert [get(ref) for ref in counter.items.remote(3)] == [0, 1, 2]


def test_arguments_are_checked_at_the_call():
    with pytest.raises(TypeError):
        Counter.remote(1, 2)
    counter = Counter.remote()
    with pytest.raises(TypeError):
        counter.add.remote(1, 2)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        counter.nope.remote()
    with pytest.raises(TypeError, match=r"object\.add\.remote"):
        counter.add()


def test_methods_every_actor_has():
    counter = Counter.remote(5)
    assert get(counter.__ray_ready__.remote()) is True
    assert get(counter.__ray_call__.remote(lambda self, x: self.value + x, 10)) == 15


def test_constructor_errors_come_with_the_calls():
    @ray.remote
    class Broken:
        def __init__(self):
            raise RuntimeError("no way")

        def method(self):
            pass

    with pytest.raises(ray.exceptions.ActorDiedError, match="no way") as error:
        get(Broken.remote().method.remote())
    assert error.value.actor_init_failed


def test_handles_may_be_passed():
    @ray.remote
    def use(handle):
        return ray.get(handle.add.remote(3))

    @ray.remote
    class Owner:
        def __init__(self, handle):
            self.handle = handle

        def use(self):
            return ray.get(self.handle.add.remote(4))

    counter = Counter.remote()
    assert get(use.remote(counter)) == 3
    assert get(Owner.remote(counter).use.remote()) == 7


def test_named_actors():
    counter = Counter.options(name="anna").remote(1)
    assert get(ray.get_actor("anna").add.remote()) == 2
    assert "anna" in ray.util.list_named_actors()
    with pytest.raises(ValueError, match="already taken"):
        Counter.options(name="anna").remote()
    again = Counter.options(name="anna", get_if_exists=True).remote()
    assert get(again.add.remote()) == 3
    assert again == counter
    with pytest.raises(ValueError, match="Failed to look up actor with name 'nobody'"):
        ray.get_actor("nobody")
    with pytest.raises(ValueError):
        ray.get_actor("")


def test_namespaces_keep_names_apart():
    one = Counter.options(name="same", namespace="a").remote(1)
    two = Counter.options(name="same", namespace="b").remote(2)
    assert get(ray.get_actor("same", namespace="a").add.remote(0)) == 1
    assert get(ray.get_actor("same", namespace="b").add.remote(0)) == 2
    with pytest.raises(ValueError):
        ray.get_actor("same")
    assert {"name": "same", "namespace": "b"} in ray.util.list_named_actors(all_namespaces=True)
    del one, two


def test_kill():
    counter = Counter.remote()
    get(counter.add.remote())
    ray.kill(counter)
    with pytest.raises(ray.exceptions.ActorDiedError) as error:
        get(counter.add.remote())
    assert error.value.actor_id == counter._actor_id.hex()
    with pytest.raises(ValueError, match="only supported for actors"):
        ray.kill("me")


def test_dead_process_is_reported_with_its_signal():
    counter = Counter.remote()
    with pytest.raises(ray.exceptions.ActorDiedError, match="SIGKILL"):
        get(counter.die.remote())


def test_exit_actor():
    counter = Counter.remote()
    with pytest.raises(ray.exceptions.RayActorError):
        get(counter.leave.remote())
    with pytest.raises(TypeError, match="non-actor worker"):
        ray.actor.exit_actor()


def test_actor_ends_with_its_last_handle(wait_until):
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    del counter
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_handle_pickled_by_hand_does_not_keep_its_actor(wait_until):
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    pickled = pickle.dumps([counter])
    assert get(pickle.loads(pickled)[0].pid.remote()) == pid
    copied = copy.deepcopy(counter)
    del counter
    assert get(copied.pid.remote()) == pid
    del copied
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    with pytest.raises(ray.exceptions.RayActorError):
        get(pickle.loads(pickled)[0].pid.remote())


def test_a_handle_pickled_by_hand_works_elsewhere_while_the_actor_lives():
    @ray.remote
    def ask(pickled):
        return ray.get(pickle.loads(pickled).pid.remote())

    counter = Counter.remote()
    assert get(ask.remote(pickle.dumps(counter))) == get(counter.pid.remote())


def test_restart(wait_until):
    counter = Counter.options(max_restarts=1, max_task_retries=1).remote(100)
    first = get(counter.pid.remote())
    os.kill(first, 9)
    wait_until(lambda: not os.path.exists(f"/proc/{first}"))
    assert get(counter.add.remote()) == 101
    assert get(counter.pid.remote()) != first


def test_asyncio_actor_runs_calls_at_once():
    @ray.remote
    class Gate:
        def __init__(self):
            self.event = asyncio.Event()

        async def wait(self):
            await self.event.wait()
            return "through"

        async def open(self):
            self.event.set()

        async def items(self):
            for i in range(3):
                await asyncio.sleep(0)
                yield i

    gate = Gate.remote()
    waiting = [gate.wait.remote() for _ in range(5)]
    get(gate.open.remote())
    assert get(waiting) == ["through"] * 5
    assert [get(ref) for ref in gate.items.remote()] == [0, 1, 2]


def test_threaded_actor_runs_calls_at_once():
    @ray.remote(max_concurrency=3)
    class Barrier:
        def __init__(self):
            self.barrier = threading.Barrier(3)

        def meet(self):
            return self.barrier.wait(timeout=10)

    barrier = Barrier.remote()
    assert sorted(get([barrier.meet.remote() for _ in range(3)])) == [0, 1, 2]


def test_concurrency_groups():
    @ray.remote(concurrency_groups={"io": 1})
    class Two:
        def __init__(self):
            self.event = threading.Event()

        def block(self):
            return self.event.wait(10)

        @ray.method(concurrency_group="io")
        def release(self):
            self.event.set()

    two = Two.remote()
    blocked = two.block.remote()
    get(two.release.remote())
    assert get(blocked)
    with pytest.raises(AssertionError, match="concurrency group"):

        @ray.remote
        class Wrong:
            @ray.method(concurrency_group="none")
            def method(self):
                pass

        Wrong.remote()


def test_pending_calls_limit():
    @ray.remote(max_pending_calls=3)
    class Slow:
        def sleep(self, seconds):
            time.sleep(seconds)

    slow = Slow.remote()
    with pytest.raises(ray.exceptions.PendingCallsLimitExceeded):
        for _ in range(10):
            slow.sleep.remote(1)
    ray.kill(slow)


def test_order_and_concurrency_exclude_each_other():
    with pytest.raises(ValueError, match="can't execute actor tasks in order"):
        Counter.options(max_concurrency=2, allow_out_of_order_execution=False).remote()


def test_inherited_static_and_class_methods():
    class Base:
        def hello(self):
            return f"hello {self.name}"

        @staticmethod
        def twice(x):
            return 2 * x

        @classmethod
        def kind(cls):
            return cls.__name__

    @ray.remote
    class Child(Base):
        def __init__(self, name):
            self.name = name

    child = Child.remote("you")
    assert get([child.hello.remote(), child.twice.remote(4), child.kind.remote()]) == [
        "hello you",
        8,
        "Child",
    ]
    assert "hello" in dir(child)
    assert repr(child).startswith("Actor(Child, ")


def test_actors_start_actors():
    @ray.remote
    class Parent:
        def __init__(self):
            self.child = Counter.remote(7)

        def ask(self):
            return ray.get(self.child.add.remote())

    assert get(Parent.remote().ask.remote()) == 8


def test_a_class_may_make_actors_of_its_own_kind():
    @ray.remote(num_cpus=0)
    class Parent:
        def child(self):
            self.kept = Parent.remote()
            return self.kept

        def name(self):
            return "child of its own kind"

    parent = Parent.remote()
    child = ray.get(parent.child.remote(), timeout=30)
    assert ray.get(child.name.remote(), timeout=30) == "child of its own kind"


def test_a_named_actor_whose_arguments_are_not_there_yet_has_its_name_at_once() -> None:
    @ray.remote
    class Gate:
        def __init__(self) -> None:
            self.opened = asyncio.Event()

        async def wait(self) -> None:
            await self.opened.wait()

        async def open(self) -> None:
            self.opened.set()

    gate = Gate.remote()

    @ray.remote
    def late(gate):
        ray.get(gate.wait.remote())
        return 7

    @ray.remote
    class Model:
        def __init__(self, weights: int) -> None:
            self.weights = weights

        def get(self) -> int:
            return self.weights

    weights = late.remote(gate)
    model = Model.options(name="late-model").remote(weights)
    with pytest.raises(ValueError, match="late-model"):
        Model.options(name="late-model").remote(weights)
    same = Model.options(name="late-model", get_if_exists=True).remote(weights)
    assert same._actor_id == model._actor_id
    found = ray.get_actor("late-model").get.remote()
    gate.open.remote()
    assert ray.get([found, model.get.remote(), same.get.remote()], timeout=60) == [7, 7, 7]


@pytest.mark.parametrize("kind", ["plain", "threaded", "asynchronous"])
def test_sys_exit_in_a_method_ends_the_actor_whatever_runs_its_calls(kind):
    counter = Counter.remote()

    class Leaver:
        def leave(self):
            if ray.get(counter.add.remote()) < 3:
                sys.exit(1)
            return "stayed"

    class AsyncLeaver:
        async def leave(self):
            if await counter.add.remote() < 3:
                sys.exit(1)
            return "stayed"

    cls = AsyncLeaver if kind == "asynchronous" else Leaver
    options = {"max_concurrency": 2} if kind == "threaded" else {}
    leaver = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, **options)(cls).remote()
    assert ray.get(leaver.leave.remote()) == "stayed"
    assert ray.get(counter.add.remote(0)) == 3


def test_a_call_that_waits_for_one_that_is_retried_does_not_hold_it_up():
    @ray.remote(num_cpus=0)
    class Flaky:
        def __init__(self):
            self.calls = 0

        @ray.method(max_task_retries=1, retry_exceptions=[LookupError])
        def first(self):
            time.sleep(0.2)
            self.calls += 1
            if self.calls == 1:
                raise LookupError
            return self.calls

        def second(self, calls):
            return calls + 10

    flaky = Flaky.remote()
    assert ray.get(flaky.second.remote(flaky.first.remote()), timeout=30) == 12


def test_a_call_under_way_keeps_an_actor_whose_handles_are_gone():
    @ray.remote(num_cpus=0)
    class Slow:
        async def work(self):
            await asyncio.sleep(0.5)
            return "done"

    @ray.remote(num_cpus=0)
    class Caller:
        async def begin(self, slow):
            self.call = slow.work.remote()

        def begun(self):
            return self.call

    caller = Caller.remote()
    get(caller.begin.remote(Slow.remote()))
    assert get(get(caller.begun.remote())) == "done"    # `begun` returns the reference, not its value
