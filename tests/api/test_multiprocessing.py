"""The standard library's Pool interface, and joblib, on actors."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import miniray as ray
from miniray.util.multiprocessing import Pool, TimeoutError


@pytest.fixture(scope="module")
def pool(ray_shared):
    with Pool(2) as pool:
        yield pool


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self):
        self.event = threading.Event()

    def open(self):
        self.event.set()

    def is_open(self):
        return self.event.is_set()


def wait_for(gate):
    while not ray.get(gate.is_open.remote()):
        pass
    return "through"


def invert(x):
    return 1 / x


def test_calls(pool):
    assert pool.apply(lambda a, b=1: a + b, (1,), {"b": 5}) == 6
    assert pool.map(lambda x: x * x, range(50)) == [x * x for x in range(50)]
    assert pool.starmap(lambda a, b: a + b, [(1, 2), (3, 4)]) == [3, 7]
    assert pool.map(abs, []) == []
    assert len(set(pool.map(lambda _: os.getpid(), range(50)))) == 2


def test_errors(pool):
    with pytest.raises(ZeroDivisionError):
        pool.apply(invert, (0,))
    result = pool.map_async(invert, [1, 0, 2])
    result.wait(10)
    assert result.ready()
    assert not result.successful()
    with pytest.raises(ZeroDivisionError):
        result.get()


def test_waiting(pool):
    gate = Gate.remote()
    result = pool.apply_async(wait_for, (gate,))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.05)
    gate.open.remote()
    assert result.get(timeout=10) == "through"


def test_callbacks(pool, wait_until):
    seen = []
    pool.map_async(invert, [1, 2], callback=seen.append)
    wait_until(lambda: seen == [[1.0, 0.5]])
    seen.clear()
    pool.map_async(invert, [1, 0, 0], callback=seen.append, error_callback=seen.append)
    wait_until(lambda: len(seen) == 1)
    assert isinstance(seen[0], ZeroDivisionError)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_imap(pool, chunksize):
    results = list(pool.imap(invert, iter([1, 0, 2, 4]), chunksize=chunksize))
    assert [results[0], results[2], results[3]] == [1.0, 0.5, 0.25]
    assert isinstance(results[1], ZeroDivisionError)
    assert sorted(pool.imap_unordered(abs, [-3, 1, -2], chunksize=chunksize)) == [1, 2, 3]
    with pytest.raises(TypeError, match="not iterable"):
        pool.imap(abs, 3)


def test_imap_unordered_hands_out_what_is_ready(pool):
    gate = Gate.remote()
    results = pool.imap_unordered(lambda x: wait_for(gate) if x == 0 else x, range(4))
    assert next(results) != 0
    gate.open.remote()
    assert "through" in list(results)


def test_closed_pool(ray_shared):
    pool = Pool(1)
    result = pool.map_async(abs, [-1, -2])
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(abs, (1,))
    pool.join()
    assert result.get() == [1, 2]


def test_initializer_and_recycling(ray_shared):
    def initialize(value):
        os.environ["POOL_VALUE"] = value

    pool = Pool(1, initializer=initialize, initargs=("set",), maxtasksperchild=2)
    assert pool.apply(lambda: os.environ["POOL_VALUE"]) == "set"
    assert len({pool.apply(os.getpid) for _ in range(6)}) >= 3
    pool.terminate()
    pool.join()


def test_too_many_processes(ray_shared):
    with pytest.raises(ValueError, match="only 2 CPUs"):
        Pool(100)
    with pytest.raises(ValueError, match="must be >0"):
        Pool(-1)


def test_joblib_backend(ray_shared):
    joblib = pytest.importorskip("joblib")
    from miniray.util.joblib import register_ray

    register_ray()
    data = np.ones(10_000)
    with joblib.parallel_backend("ray"):
        parallel = joblib.Parallel()
        assert parallel(joblib.delayed(lambda x, i: float(x.sum() + i))(data, i) for i in range(4)) == [
            10_000.0 + i for i in range(4)
        ]
        with pytest.raises(ZeroDivisionError):
            parallel(joblib.delayed(invert)(i) for i in (1, 0))
