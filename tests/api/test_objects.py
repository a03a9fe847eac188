"""put, get, wait and references on a real local session."""

from __future__ import annotations

import asyncio
import pickle
import queue
import threading
import time

import numpy as np
import pytest

import miniray as ray
from miniray import _testing
from miniray.api import connected_worker

pytestmark = pytest.mark.usefixtures("ray_shared")


@ray.remote
def later(seconds, value=None):
    time.sleep(seconds)
    return value


def test_put_and_get():
    for value in (1, "x", None, [1, {"a": (2,)}], b"y" * 200_000):
        assert ray.get(ray.put(value)) == value


def test_arrays_are_views_on_shared_memory():
    array = np.arange(200_000)
    ref = ray.put(array)
    first, second = ray.get(ref), ray.get(ref)
    np.testing.assert_array_equal(first, array)
    assert np.shares_memory(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_view_outlives_its_reference():
    array = ray.get(ray.put(np.arange(200_000)))
    for _ in range(20):
        ray.put(np.zeros(200_000))
    np.testing.assert_array_equal(array, np.arange(200_000))


def test_object_leaves_the_store_with_its_last_reference(wait_until):
    ref = ray.put(np.arange(200_000))
    oid = ref.binary()
    assert _testing.object_exists(oid)
    del ref
    wait_until(lambda: not _testing.object_exists(oid))


def test_wrong_arguments_of_get():
    with pytest.raises(ValueError, match="Invalid type of object refs"):
        ray.get(5)
    with pytest.raises(TypeError, match="Attempting to call `get` on the value 5"):
        ray.get([5])


def test_putting_a_reference_is_refused():
    with pytest.raises(TypeError, match="not allowed"):
        ray.put(ray.put(1))


def test_wait_splits_in_input_order():
    refs = [later.remote(5), ray.put(1), ray.put(2)]
    ready, rest = ray.wait(refs, num_returns=2, timeout=10)
    assert ready == refs[1:]
    assert rest == refs[:1]
    ray.cancel(refs[0])


def test_wait_returns_no_more_than_asked_for():
    refs = [ray.put(i) for i in range(5)]
    ready, rest = ray.wait(refs, num_returns=2)
    assert (len(ready), len(rest)) == (2, 3)


def test_wait_times_out():
    ref = later.remote(5)
    start = time.monotonic()
    assert ray.wait([ref], timeout=0.1) == ([], [ref])
    assert time.monotonic() - start < 4
    ray.cancel(ref)


def test_failed_objects_are_ready():
    @ray.remote
    def fail():
        raise ValueError

    ref = fail.remote()
    assert ray.wait([ref], timeout=10) == ([ref], [])


@pytest.mark.parametrize(
    ("make", "kwargs", "error"),
    [
        (lambda: ray.put(1), {}, TypeError),
        (lambda: (ray.put(1),), {}, TypeError),
        (lambda: [1], {}, TypeError),
        (lambda: [ray.put(1)] * 2, {}, ValueError),
        (lambda: [ray.put(1)], {"num_returns": 0}, ValueError),
        (lambda: [ray.put(1)], {"num_returns": 2}, ValueError),
        (lambda: [ray.put(1)], {"timeout": -1}, ValueError),
    ],
)
def test_wrong_arguments_of_wait(make, kwargs, error):
    with pytest.raises(error):
        ray.wait(make(), **kwargs)


def test_wait_on_nothing():
    assert ray.wait([]) == ([], [])


def test_wait_takes_generators_too():
    @ray.remote
    def count():
        yield 1
        yield 2

    generator, slow = count.remote(), later.remote(5)
    ready, rest = ray.wait([slow, generator], timeout=10)
    assert ready == [generator]
    assert rest == [slow]
    assert ray.get(next(generator)) == 1
    ray.cancel(slow)


def test_await_and_futures():
    async def main():
        value = await later.remote(0.01, "awaited")
        several = await asyncio.gather(*[later.remote(0, i) for i in range(3)])
        return value, several

    assert asyncio.run(main()) == ("awaited", [0, 1, 2])
    assert later.remote(0, 5).future().result(timeout=10) == 5


def test_awaiting_a_failed_task_raises():
    @ray.remote
    def fail():
        raise KeyError("lost")

    async def main():
        await fail.remote()

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_references_inside_objects_keep_their_targets():
    inner = ray.put(np.arange(200_000))
    oid = inner.binary()
    outer = ray.put({"inner": inner})
    del inner
    assert ray.get(ray.get(outer)["inner"]).sum() == np.arange(200_000).sum()
    assert _testing.object_exists(oid)


def test_plainly_pickled_reference_stays_valid():
    ref = ray.put("kept")
    data = pickle.dumps(ref)
    del ref
    assert ray.get(pickle.loads(data)) == "kept"


def test_reference_counts_return_to_zero(wait_until):
    before = set(_testing.get_all_reference_counts())
    refs = [later.remote(0, i) for i in range(10)]
    ray.get(refs)
    assert len(set(_testing.get_all_reference_counts()) - before) >= 10
    del refs
    wait_until(lambda: set(_testing.get_all_reference_counts()) <= before)


def test_many_references_in_one_value():
    refs = [ray.put(i) for i in range(1000)]
    back = ray.get(ray.put(refs))
    assert back == refs
    assert ray.get(back[-1]) == 999


def test_locations():
    ref = ray.put(np.zeros(200_000))
    found = ray.experimental.get_object_locations([ref])[ref]
    assert found["node_ids"] == [ray.get_runtime_context().get_node_id()]
    assert found["object_size"] > 1_600_000


def test_a_copied_reference_keeps_its_object(ray_shared, wait_until):
    import copy

    from miniray._testing import get_all_reference_counts

    first = ray.put([1])
    name = first.hex().encode()
    second, third = copy.copy(first), copy.deepcopy({"nested": first})["nested"]
    assert second == first == third and second is not first
    wait_until(lambda: get_all_reference_counts()[name] == {"local": 3, "submitted": 0})
    del first, third
    wait_until(lambda: get_all_reference_counts()[name] == {"local": 1, "submitted": 0})
    assert ray.get(second) == [1]
    del second
    wait_until(lambda: name not in get_all_reference_counts())


def test_a_reference_pickled_by_hand_is_one_more_and_its_value_counts_as_here(ray_shared, wait_until):
    ref = ray.put("kept")
    name = ref.hex().encode()
    pickled = ray.cloudpickle.dumps(ref)
    assert _testing.get_all_reference_counts()[name]["local"] == 2
    assert _testing.object_exists(ref)
    del ref
    wait_until(lambda: _testing.get_all_reference_counts()[name]["local"] == 1)
    assert ray.get(ray.cloudpickle.loads(pickled)) == "kept"


def test_a_callback_gets_the_value_or_the_exception():
    @ray.remote
    def fails():
        raise KeyError("no")

    got = queue.Queue()
    ray.put(5)._on_completed(got.put)
    assert got.get(timeout=20) == 5
    fails.remote()._on_completed(got.put)
    assert isinstance(got.get(timeout=20), KeyError)


def test_an_object_lost_while_others_are_awaited_is_waited_for_again(tmp_path, wait_until):
    """`get` has seen it ready; its last copy goes before the others are there."""

    @ray.remote(num_cpus=0)
    def big(path):
        if path.exists():   # a second time
            while not (path / "open").exists():
                time.sleep(0.01)
        path.mkdir(exist_ok=True)
        return b"x" * 5_000_000

    @ray.remote(num_cpus=0)
    def slow(path):
        while not (path / "lost").exists():
            time.sleep(0.01)
        return 1

    def lose():
        worker = connected_worker()
        time.sleep(0.1)     # the getter waits for the slow one
        with worker.lock:
            for node in list(first.entry.locations):
                worker.copy_lost(first.entry.id, node)
            worker.drain()
        worker.pump.wake()
        (path / "lost").touch()
        wait_until(lambda: second.entry.ready, timeout_s=30)
        time.sleep(0.1)     # the getter reads them now
        (path / "open").touch()

    path = tmp_path / "made"
    first, second = big.remote(path), slow.remote(path)
    ray.wait([first], timeout=30)
    loser = threading.Thread(target=lose)
    loser.start()
    assert ray.get([first, second], timeout=30) == [b"x" * 5_000_000, 1]
    loser.join()
