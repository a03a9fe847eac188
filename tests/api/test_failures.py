"""What a caller learns of a failure: which actor, which argument, and as early as it is known."""

from __future__ import annotations

import numpy as np
import pytest

import miniray as ray

pytestmark = pytest.mark.usefixtures("ray_shared")


def get(refs):
    return ray.get(refs, timeout=30)


@ray.remote(num_cpus=0)
def broken():
    raise LookupError("nothing there")


@ray.remote(num_cpus=0)
def take(value):
    return value


@ray.remote(num_cpus=0)
class Gate:
    """Calls of `wait` return when `open` was called."""

    def __init__(self):
        import asyncio

        self.opened = asyncio.Event()

    async def wait(self):
        await self.opened.wait()

    async def open(self):
        self.opened.set()


# ---- actors


class Named:
    def __init__(self, fail=False):
        if fail:
            raise LookupError("no such thing")

    def fail(self):
        raise LookupError("nothing there")

    def __repr__(self):
        return "Named(seven)"


def test_the_error_of_a_call_names_its_actor():
    actor = ray.remote(num_cpus=0)(Named).remote()
    with pytest.raises(LookupError) as caught:
        get(actor.fail.remote())
    first_line = str(caught.value).splitlines()[0]
    assert first_line.startswith("ray::Named.fail() (pid=")
    assert first_line.endswith(f"actor_id={actor._actor_id.hex()}, repr=Named(seven))")


def test_the_error_of_a_constructor_names_its_actor():
    actor = ray.remote(num_cpus=0)(Named).remote(fail=True)
    with pytest.raises(ray.exceptions.ActorDiedError, match="no such thing") as caught:
        get(actor.fail.remote())
    assert f"actor_id={actor._actor_id.hex()}" in str(caught.value)


def test_a_concurrency_group_has_room_for_one_call_at_least():
    with pytest.raises(ValueError, match="greater than 0: the concurrency group 'io' has 0"):
        ray.remote(concurrency_groups={"io": 0})(Named).remote()


# ---- arguments


def test_each_task_that_an_error_stopped_is_named():
    with pytest.raises(LookupError, match="nothing there") as caught:
        get(take.options(name="last").remote(take.options(name="middle").remote(broken.remote())))
    assert isinstance(caught.value, ray.exceptions.RayTaskError)
    text = str(caught.value)
    assert text.startswith("ray::last() (pid=")
    order = [text.index(name) for name in ("ray::last()", "ray::middle()", "ray::broken()")]
    assert order == sorted(order)
    assert text.count("At least one of the input arguments for this task could not be computed") == 2


def test_a_long_chain_of_tasks_fails_with_a_short_text():
    ref = broken.remote()
    for _ in range(200):
        ref = take.remote(ref)
    with pytest.raises(LookupError, match="nothing there") as caught:
        get(ref)
    assert 2 < str(caught.value).count("ray::take()") < 50


def test_an_actor_call_and_a_constructor_tell_of_their_argument():
    @ray.remote(num_cpus=0)
    class Holder:
        def __init__(self, value=None):
            self.value = value

        def set(self, value):
            self.value = value

    with pytest.raises(LookupError, match="could not be computed"):
        get(Holder.remote().set.remote(broken.remote()))
    with pytest.raises(ray.exceptions.ActorDiedError, match="nothing there"):
        get(Holder.remote(broken.remote()).set.remote(1))


def test_an_argument_that_cannot_be_pickled_is_named_with_its_task():
    import threading

    with pytest.raises(TypeError, match=r"for a task or actor .*test_failures\.take"):
        take.remote(threading.Lock())


# ---- get


def test_get_raises_the_first_error_without_waiting_for_the_rest():
    gate = Gate.remote()
    waiting = gate.wait.remote()
    with pytest.raises(LookupError):
        get([waiting, broken.remote()])
    done = broken.remote()
    ray.wait([done], timeout=30)
    with pytest.raises(LookupError):
        get([waiting, done])
    get(gate.open.remote())
    get(waiting)


# ---- processes


def test_max_calls_costs_the_next_task_nothing():
    @ray.remote(max_calls=1, max_retries=0)
    def pid():
        import os

        return os.getpid()

    pids = get([pid.remote() for _ in range(12)])
    assert len(set(pids)) == 12


def test_what_a_task_has_put_outlives_an_actor_started_later():
    @ray.remote
    def put_something():
        return [ray.put(np.ones(300_000))]

    @ray.remote
    class Guest:
        def ready(self):
            return True

    (inner,) = get(put_something.remote())
    for _ in range(3):
        guest = Guest.remote()
        assert get(guest.ready.remote())
        ray.kill(guest)
    assert get(inner).sum() == 300_000


@pytest.mark.parametrize("how", ["exit_actor", "__ray_terminate__"])
def test_exit_handlers_run_when_an_actor_ends_on_purpose(tmp_path, wait_until, how):
    @ray.remote(num_cpus=0)
    class Tidy:
        def __init__(self, mark):
            import atexit

            atexit.register(mark.touch)

        def exit_actor(self):
            ray.actor.exit_actor()

    mark = tmp_path / "mark"
    tidy = Tidy.remote(mark)
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(getattr(tidy, how).remote())
    wait_until(mark.exists)


# ---- asyncio actors


def test_groups_of_an_asyncio_actor_do_not_hold_each_other_up(tmp_path):
    import time

    @ray.remote(num_cpus=0, concurrency_groups={"slow": 1})
    class Mixed:
        def __init__(self):
            import asyncio

            self.loop = asyncio.get_event_loop()

        @ray.method(concurrency_group="slow")
        async def block(self, mark):
            while not mark.exists():
                time.sleep(0.01)  # noqa: ASYNC251 - on its loop, on purpose

        async def same_loop(self):
            import asyncio

            return asyncio.get_running_loop() is self.loop

    mixed, mark = Mixed.remote(), tmp_path / "mark"
    blocked = mixed.block.remote(mark)
    assert get(mixed.same_loop.remote())
    mark.touch()
    get(blocked)
