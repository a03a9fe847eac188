"""`cancel`: waiting, running and finished tasks, children, borrowed references, actor calls."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import miniray as ray

pytestmark = pytest.mark.usefixtures("ray_shared")

CANCELLED = ray.exceptions.TaskCancelledError


def get(refs):
    return ray.get(refs, timeout=30)


@ray.remote(num_cpus=0)
class Bell:
    """Counts rings; `heard` tells how often it was rung."""

    def __init__(self):
        self.rings = 0

    def ring(self):
        self.rings += 1

    def heard(self):
        return self.rings


@ray.remote(num_cpus=0)
def sleeper(bell):
    ray.get(bell.ring.remote())
    while True:
        time.sleep(0.05)


@pytest.fixture
def bell():
    return Bell.remote()


@pytest.fixture
def rung(bell, wait_until):
    """`rung(n)`: wait until the bell was rung so often."""
    return lambda count=1: wait_until(lambda: get(bell.heard.remote()) >= count, timeout_s=30)


def test_a_running_task_sees_a_keyboard_interrupt(bell, rung):
    @ray.remote(num_cpus=0)
    def stubborn(bell):
        try:
            ray.get(bell.ring.remote())
            time.sleep(60)
        except KeyboardInterrupt:
            return ray.get_runtime_context().is_canceled()
        return None

    ref = stubborn.remote(bell)
    rung()
    ray.cancel(ref)
    assert get(ref) is True


def test_a_task_that_goes_on_after_its_interrupt_has_lost_no_answer():
    """The interrupt comes among the answers to its calls, and they all count."""

    @ray.remote(num_cpus=0, max_concurrency=4)
    class Echo:
        def say(self, number):
            time.sleep(0.0002)
            return number

    @ray.remote(num_cpus=0)
    def stubborn(echo, begun):
        refs = [echo.say.remote(number) for number in range(2000)]
        try:
            begun.ring.remote()
            ray.get(refs)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
        return len(ray.wait(refs, num_returns=len(refs), timeout=20)[1])

    echo = Echo.remote()
    assert get(echo.say.remote(1)) == 1
    for _ in range(3):
        begun = Bell.remote()
        ref = stubborn.remote(echo, begun)
        while not get(begun.heard.remote()):
            time.sleep(0.01)
        ray.cancel(ref, recursive=False)
        assert get(ref) == 0


def test_the_error_is_of_the_task_and_of_the_cancellation(bell, rung):
    ref = sleeper.remote(bell)
    rung()
    ray.cancel(ref)
    with pytest.raises(CANCELLED, match="was cancelled") as caught:
        get(ref)
    assert isinstance(caught.value, ray.exceptions.RayTaskError)


def test_those_who_wait_for_a_cancelled_task_fail_with_it(bell, rung):
    @ray.remote(num_cpus=0)
    def pass_on(value):
        return value

    first = sleeper.remote(bell)
    last = pass_on.remote(pass_on.remote(first))
    rung()
    ray.cancel(first)
    with pytest.raises(CANCELLED):
        get(last)


def test_a_cancelled_generator_ends_with_the_error(bell, rung):
    @ray.remote(num_cpus=0)
    def slow(bell):
        yield 1
        ray.get(bell.ring.remote())
        time.sleep(60)
        yield 2

    items = slow.remote(bell)
    assert get(next(items)) == 1
    rung()
    ray.cancel(items)
    with pytest.raises(CANCELLED):
        get(next(items))
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.parametrize("recursive", [True, False])
def test_children_are_given_up_too_unless_told_otherwise(bell, rung, recursive):
    @ray.remote(num_cpus=0)
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def kept(self):
            return self.refs

    @ray.remote(num_cpus=0)
    def parent(bell, keeper):
        ray.get(keeper.keep.remote([sleeper.remote(bell)]))
        time.sleep(60)

    keeper = Keeper.remote()
    ref = parent.remote(bell, keeper)
    rung()
    (child,) = get(keeper.kept.remote())
    ray.cancel(ref, recursive=recursive)
    with pytest.raises(CANCELLED):
        get(ref)
    if not recursive:
        assert ray.wait([child], timeout=0.2)[0] == []
        ray.cancel(child)   # of another owner
    with pytest.raises(CANCELLED):
        get(child)


def test_force_ends_a_task_that_ignores_interrupts(bell, rung):
    @ray.remote(num_cpus=0)
    def deaf(bell):
        ray.get(bell.ring.remote())
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                continue

    ref = deaf.remote(bell)
    rung()
    ray.cancel(ref, force=True)
    with pytest.raises((CANCELLED, ray.exceptions.WorkerCrashedError)):
        get(ref)


def test_force_is_not_for_actor_calls(bell):
    with pytest.raises(ValueError, match="force=True is not supported for actor tasks"):
        ray.cancel(bell.heard.remote(), force=True)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_can_ask_whether_it_was_cancelled(bell, rung, threads):
    @ray.remote(max_concurrency=threads, num_cpus=0)
    class Asking:
        def __init__(self):
            self.noticed = False

        def has_noticed(self):
            return self.noticed

        def work(self, bell):
            ray.get(bell.ring.remote())
            waited = threading.Event()
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if ray.get_runtime_context().is_canceled():
                    self.noticed = True
                    break
                waited.wait(0.01)

    actor = Asking.remote()
    ref = actor.work.remote(bell)
    rung()
    ray.cancel(ref)
    with pytest.raises(CANCELLED):
        get(ref)
    assert get(actor.has_noticed.remote())


def test_what_was_cancelled_is_not_made_again(ray_start_cluster):
    ray.shutdown()
    cluster = ray_start_cluster
    cluster.add_node(num_cpus=0)
    ray.init(address=cluster.address)
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    @ray.remote(num_cpus=1)
    def block():
        return np.zeros(300_000, dtype=np.uint8)

    ref = block.remote()
    ray.wait([ref], timeout=30, fetch_local=False)
    ray.cancel(ref)
    cluster.remove_node(doomed, allow_graceful=False)
    with pytest.raises(ray.exceptions.ObjectReconstructionFailedError, match="cancelled"):
        get(ref)
