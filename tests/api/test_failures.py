"""What a caller learns of a failure: which actor, which argument, and as early as it is known."""

from __future__ import annotations

import os
import time

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


def test_a_worker_that_has_done_its_last_task_stays_for_what_it_owns(wait_until):
    @ray.remote
    def child():
        time.sleep(0.2)
        return "done"

    @ray.remote(max_calls=1, max_retries=0)
    def parent():
        return os.getpid(), child.remote()

    pid, ref = ray.get(parent.remote())
    assert ray.get(ref) == "done"
    assert os.path.exists(f"/proc/{pid}"), "we hold what it owns"
    del ref
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


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


def test_idle_workers_end_but_not_those_that_own_what_others_hold(wait_until):
    @ray.remote(num_cpus=0.1)
    def own(i):
        time.sleep(1.0)     # so that each gets a worker of its own
        return [ray.put(i)], os.getpid()

    owned = get([own.remote(i) for i in range(8)])
    kept = [(refs[0], i, pid) for i, (refs, pid) in enumerate(owned) if i % 3 == 0]
    others = {pid for _, pid in owned} - {pid for _, _, pid in kept}
    assert len(others) > 2
    del owned
    wait_until(lambda: sum(os.path.exists(f"/proc/{pid}") for pid in others) <= 2, timeout_s=60)
    for ref, i, _ in kept:
        assert get(ref) == i


class Tidy:
    """Leaves a file for each handler that runs at its end."""

    def __init__(self, marks, leave=False):
        import atexit

        self.marks = marks
        atexit.register((marks / "atexit").touch)
        if leave:
            ray.actor.exit_actor()

    def __ray_shutdown__(self):
        assert not (self.marks / "atexit").exists()
        (self.marks / "shutdown").touch()
        raise LookupError("printed, and no more")

    def exit_actor(self):
        time.sleep(0.2)     # for calls to queue up
        ray.actor.exit_actor()

    def write(self):
        (self.marks / "written").touch()


class AsyncTidy(Tidy):
    """The same on an event loop, which the constructor can use as well."""

    def __init__(self, marks, leave=False):
        super().__init__(marks)
        if leave:
            import asyncio

            self.task = asyncio.create_task(self.exit_actor())

    async def exit_actor(self):
        ray.actor.exit_actor()


@pytest.mark.parametrize("how", ["exit_actor", "__ray_terminate__", "del"])
def test_handlers_run_when_an_actor_ends_on_purpose(tmp_path, wait_until, how):
    tidy = ray.remote(num_cpus=0)(Tidy).remote(tmp_path)
    get(tidy.__ray_ready__.remote())
    if how == "del":
        del tidy
    else:
        with pytest.raises(ray.exceptions.ActorDiedError):
            get(getattr(tidy, how).remote())
    wait_until((tmp_path / "atexit").exists, timeout_s=30)
    assert (tmp_path / "shutdown").exists()


def test_handlers_do_not_run_when_an_actor_is_killed(tmp_path):
    tidy = ray.remote(num_cpus=0)(Tidy).remote(tmp_path)
    get(tidy.__ray_ready__.remote())
    ray.kill(tidy)
    with pytest.raises(ray.exceptions.ActorDiedError, match=r"it was killed by `ray\.kill`"):
        get(tidy.write.remote())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [Tidy, AsyncTidy])
def test_an_actor_may_leave_in_its_constructor_or_a_task_of_its_own(tmp_path, wait_until, kind):
    actor = ray.remote(num_cpus=0)(kind).remote(tmp_path, leave=True)
    wait_until((tmp_path / "atexit").exists, timeout_s=30)
    with pytest.raises(ray.exceptions.ActorDiedError, match="exit_actor"):
        get(actor.write.remote())


def test_calls_behind_exit_actor_do_not_run(tmp_path):
    actor = ray.remote(num_cpus=0, max_restarts=1)(Tidy).remote(tmp_path)
    leaving = actor.exit_actor.remote()
    behind = [actor.write.remote() for _ in range(20)]
    for ref in (leaving, *behind):
        with pytest.raises(ray.exceptions.ActorDiedError, match="exit_actor"):
            get(ref)
    assert not (tmp_path / "written").exists()


def test_a_call_without_retries_does_not_wait_for_a_restart(tmp_path, wait_until):
    @ray.remote(num_cpus=0, max_restarts=1)
    class Slow:
        def __init__(self, go_on):
            while ray.get_runtime_context().was_current_actor_reconstructed and not go_on.exists():
                time.sleep(0.01)

        def ping(self):
            return "pong"

    go_on = tmp_path / "go on"
    slow = Slow.remote(go_on)
    assert get(slow.ping.remote()) == "pong"
    ray.kill(slow, no_restart=False)
    wait_until(lambda: slow._get_local_state() == "RESTARTING", timeout_s=30)
    with pytest.raises(ray.exceptions.ActorUnavailableError, match="The actor is restarting"):
        get(slow.ping.remote())
    go_on.touch()
    assert get(slow.ping.options(max_task_retries=-1).remote()) == "pong"


# ---- asyncio actors


def test_groups_of_an_asyncio_actor_do_not_hold_each_other_up(tmp_path):
    @ray.remote(num_cpus=0, concurrency_groups={"slow": 1})
    class Mixed:
        def __init__(self):
            import asyncio

            self.loop = asyncio.get_running_loop()

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
