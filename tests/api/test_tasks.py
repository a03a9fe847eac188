"""Tasks through the public API on a real local session."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

import miniray as ray

pytestmark = pytest.mark.usefixtures("ray_shared")


@ray.remote
def add(x, y=1):
    return x + y


@ray.remote
def fail(text="boom"):
    raise ValueError(text)


@ray.remote
def sleep(seconds):
    time.sleep(seconds)
    return seconds


def get(refs):
    return ray.get(refs, timeout=20)


def test_result_of_a_task():
    assert get(add.remote(1)) == 2
    assert get(add.remote(1, y=5)) == 6


def test_results_come_in_the_order_asked_for():
    assert get([add.remote(i) for i in range(50)]) == list(range(1, 51))


def test_references_are_replaced_by_values():
    ref = add.remote(1)
    assert get(add.remote(ref, y=ref)) == 4


def test_nested_references_stay_references():
    @ray.remote
    def take(refs):
        assert isinstance(refs[0], ray.ObjectRef)
        return ray.get(refs)

    assert get(take.remote([add.remote(1), add.remote(2)])) == [2, 3]


def test_a_task_that_waits_for_a_later_one_of_its_kind_is_not_waited_for(tmp_path):
    """Tasks of one or two milliseconds travel alone, and the next need not wait for the first."""

    @ray.remote
    def step(path=None):
        time.sleep(0.0012)
        while path is not None and not path.exists():
            time.sleep(0.005)

    for _ in range(20):
        get(step.remote())
    first = step.remote(tmp_path / "there")
    time.sleep(0.05)
    get(step.remote())
    (tmp_path / "there").touch()
    get(first)


def test_captured_references_live():
    ref = ray.put(41)

    @ray.remote
    def read():
        return ray.get(ref) + 1

    assert get(read.remote()) == 42


def test_tasks_start_tasks():
    @ray.remote
    def depth(n):
        return 0 if n == 0 else 1 + ray.get(depth.remote(n - 1))

    assert get(depth.remote(4)) == 4


def test_several_returns():
    @ray.remote(num_returns=3)
    def three():
        return 1, 2, 3

    assert get(three.remote()) == [1, 2, 3]
    assert get(three.options(num_returns=1).remote()) == (1, 2, 3)
    assert three.options(num_returns=0).remote() is None


def test_wrong_number_of_returns_is_an_error():
    @ray.remote(num_returns=2)
    def wrong():
        return 1, 2, 3

    with pytest.raises(ValueError, match="3"):
        get(wrong.remote())


def test_large_values_both_ways():
    array = np.arange(500_000)
    result = get(add.remote(array))
    np.testing.assert_array_equal(result, array + 1)
    assert not result.flags.writeable


def test_error_has_both_types_and_the_traceback():
    with pytest.raises(ValueError, match="boom") as error:
        get(fail.remote())
    assert isinstance(error.value, ray.exceptions.RayTaskError)
    assert "ray::fail()" in str(error.value)
    assert "in fail" in str(error.value)
    assert "/miniray/runtime/" not in str(error.value)


def test_error_of_an_argument_fails_the_task():
    with pytest.raises(ValueError, match="boom"):
        get(add.remote(fail.remote()))


def test_arguments_are_checked_at_the_call():
    with pytest.raises(TypeError, match="missing a required argument"):
        add.remote()
    with pytest.raises(TypeError, match="unexpected keyword"):
        add.remote(1, z=2)


def test_application_errors_are_retried_when_asked(tmp_path):
    path = tmp_path / "tries"

    @ray.remote(max_retries=3, retry_exceptions=[KeyError])
    def flaky():
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size < 3:
            raise KeyError("again")
        return path.stat().st_size

    assert get(flaky.remote()) == 3


def test_crashed_worker_is_retried(tmp_path):
    path = tmp_path / "ran"

    @ray.remote(max_retries=2)
    def crash_once():
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), 9)
        return "ok"

    assert get(crash_once.remote()) == "ok"


def test_crashed_worker_without_retries_is_an_error():
    @ray.remote(max_retries=0)
    def crash():
        os.kill(os.getpid(), 9)

    with pytest.raises(ray.exceptions.WorkerCrashedError, match="SIGKILL"):
        get(crash.remote())


def test_get_times_out_and_says_what_is_missing():
    ref = sleep.remote(3.0)
    start = time.monotonic()
    with pytest.raises(ray.exceptions.GetTimeoutError, match=ref.hex()):
        ray.get(ref, timeout=0.1)
    assert time.monotonic() - start < 2.9
    assert get(ref) == 3.0


def test_infeasible_task_is_explained():
    ref = add.options(num_cpus=1000).remote(1)
    with pytest.raises(ray.exceptions.GetTimeoutError, match="1000 CPU"):
        ray.get(ref, timeout=0.3)
    ray.cancel(ref)


def test_cancel_a_running_task():
    ref = sleep.remote(30)
    ray.wait([ref], timeout=0.3)
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(ref)


def test_cancel_a_waiting_task():
    blocker = sleep.remote(30)
    waiting = add.remote(blocker)
    ray.cancel(waiting)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(waiting)
    ray.cancel(blocker)


def test_streaming_generator():
    @ray.remote
    def count(n):
        yield from range(n)

    assert [get(ref) for ref in count.remote(5)] == list(range(5))


def test_generator_that_fails_midway():
    @ray.remote
    def broken():
        yield 1
        raise ValueError("midway")

    refs = iter(broken.remote())
    assert get(next(refs)) == 1
    with pytest.raises(ValueError, match="midway"):
        get(next(refs))
    with pytest.raises(StopIteration):
        next(refs)


def test_dynamic_returns():
    @ray.remote(num_returns="dynamic")
    def some(n):
        yield from range(n)

    assert [get(ref) for ref in get(some.remote(3))] == [0, 1, 2]


def test_threads_may_use_the_api():
    results = []

    def work(i):
        results.append(get(add.remote(i)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(1, 9))


def test_invocation_decorator_wraps_the_call():
    def doubling(function):
        def decorate(submit):
            return lambda args, kwargs: (submit(args, kwargs), submit(args, kwargs))

        function.__ray_invocation_decorator__ = decorate
        return function

    @ray.remote
    @doubling
    def one():
        return 1

    assert get(list(one.remote())) == [1, 1]


def test_builtin_and_lambda_tasks():
    assert get(ray.remote(lambda x: x * 2).remote(4)) == 8
    assert get(ray.remote(len).remote([1, 2])) == 2


def test_unpicklable_argument_is_refused_at_the_call():
    with pytest.raises(TypeError, match="Could not serialize the argument"):
        add.remote(threading.Lock())


def test_unpicklable_function_is_refused_at_the_call():
    lock = threading.Lock()

    @ray.remote
    def locked():
        return lock

    with pytest.raises(TypeError, match="Could not serialize the function"):
        locked.remote()
