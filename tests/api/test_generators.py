"""Tasks that yield: streams, dynamic and fixed numbers of returns, back-pressure, errors midway."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import miniray as ray

pytestmark = pytest.mark.usefixtures("ray_shared")


def get(refs):
    return ray.get(refs, timeout=30)


@ray.remote
def letters(count, fail=False, size=1):
    for i in range(count):
        yield chr(ord("a") + i) * size
    if fail:
        raise LookupError(f"no letter after {count}")


@ray.remote
class Speller:
    """The same as a method, plain and asynchronous."""

    def letters(self, count, fail=False, size=1):
        for i in range(count):
            yield chr(ord("a") + i) * size
        if fail:
            raise LookupError(f"no letter after {count}")

    async def letters_later(self, count):
        for i in range(count):
            await asyncio.sleep(0)
            yield chr(ord("a") + i)


@pytest.fixture(scope="module")
def speller(ray_shared):
    return Speller.remote()


@pytest.fixture(params=["task", "method"])
def spell(request, speller):
    """`letters` as a task, then as an actor's method."""
    return letters if request.param == "task" else speller.letters


@pytest.mark.parametrize("size", [1, 300_000], ids=["inline", "in the store"])
def test_a_fixed_number_of_returns_is_filled_by_yields(spell, size):
    values = get(spell.options(num_returns=3).remote(3, size=size))
    assert values == ["a" * size, "b" * size, "c" * size]


def test_one_return_is_the_one_value_that_was_yielded(spell):
    assert get(spell.options(num_returns=1).remote(1)) == "a"


def test_an_error_midway_takes_the_returns_that_are_left(spell):
    first, second, third = spell.options(num_returns=3).remote(1, fail=True)
    assert get(first) == "a"
    for ref in (second, third):
        with pytest.raises(LookupError, match="no letter after 1"):
            get(ref)


def test_too_few_yields_are_an_error_and_too_many_are_dropped(spell):
    first, second = spell.options(num_returns=2).remote(1)
    assert get(first) == "a"
    with pytest.raises(ValueError, match="yielded 1 values, but num_returns=2"):
        get(second)
    assert get(spell.options(num_returns=2).remote(5)) == ["a", "b"]


def test_an_async_generator_may_have_a_fixed_number_of_returns(speller):
    assert get(speller.letters_later.options(num_returns=2).remote(2)) == ["a", "b"]


def test_dynamic_returns_end_with_the_error(spell):
    first, last = get(spell.options(num_returns="dynamic").remote(1, fail=True))
    assert get(first) == "a"
    with pytest.raises(LookupError, match="no letter after 1"):
        get(last)


def test_a_dynamic_task_that_raises_is_retried_where_that_is_asked_for(tmp_path):
    @ray.remote(max_retries=1, num_returns="dynamic", retry_exceptions=[LookupError])
    def once_broken(mark):
        yield 1
        if not mark.exists():
            mark.touch()
            raise LookupError("only the first time")
        yield 2

    assert get(list(get(once_broken.remote(tmp_path / "mark")))) == [1, 2]


def test_a_fixed_generator_that_raises_is_retried_where_that_is_asked_for(tmp_path):
    @ray.remote(max_retries=1, num_returns=2, retry_exceptions=True)
    def once_broken(mark):
        yield 1
        if not mark.exists():
            mark.touch()
            raise LookupError("only the first time")
        yield 2

    assert get(once_broken.remote(tmp_path / "mark")) == [1, 2]


def test_a_stream_that_was_taken_to_its_end_has_nothing_ready(spell):
    items = spell.remote(1)
    assert get(next(items)) == "a"
    ray.get(items.completed(), timeout=30)
    with pytest.raises(StopIteration):
        next(items)
    assert items.is_finished() and not items.next_ready()


# ---- back-pressure


@ray.remote(_generator_backpressure_num_objects=2)
def paced(tally, count):
    for i in range(count):
        ray.get(tally.add.remote())
        yield i


@ray.remote(num_cpus=0)
class Tally:
    """How many items a producer has begun."""

    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1

    def read(self):
        return self.count


def begun(tally):
    return get(tally.read.remote())


def test_a_producer_is_not_resumed_before_an_item_was_taken(wait_until):
    tally = Tally.remote()
    items = paced.remote(tally, 6)
    wait_until(lambda: begun(tally) == 2, timeout_s=30)
    assert get(next(items)) == 0
    wait_until(lambda: begun(tally) == 3, timeout_s=30)
    assert [get(ref) for ref in items] == [1, 2, 3, 4, 5]
    assert begun(tally) == 6


def test_a_producer_whose_consumer_is_gone_runs_to_its_end(wait_until):
    tally = Tally.remote()
    items = paced.remote(tally, 20)
    assert get(next(items)) == 0
    del items
    wait_until(lambda: begun(tally) == 20, timeout_s=30)


def test_a_retried_producer_does_not_wait_for_items_that_were_taken(tmp_path):
    @ray.remote(_generator_backpressure_num_objects=1, max_retries=1, retry_exceptions=True)
    def once_broken(mark):
        for i in range(4):
            if i == 3 and not mark.exists():
                mark.touch()
                raise LookupError("only the first time")
            yield i

    assert [get(ref) for ref in once_broken.remote(tmp_path / "mark")] == [0, 1, 2, 3]


def test_async_generators_have_no_back_pressure(speller):
    items = speller.letters_later.options(_generator_backpressure_num_objects=1).remote(2)
    with pytest.raises(ValueError, match="synchronous ones only"):
        get(next(items))


# ---- lost items


def test_lost_items_are_made_again(ray_start_cluster):
    ray.shutdown()
    cluster = ray_start_cluster
    cluster.add_node(num_cpus=0)
    ray.init(address=cluster.address)
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    @ray.remote(num_cpus=1)
    def blocks(count, offset):
        for i in range(count):
            yield np.full(300_000, i + offset, dtype=np.uint8)

    @ray.remote(num_cpus=1)
    def first_byte(block):
        return int(block[0])

    stream = list(blocks.remote(3, 1))
    dynamic = list(get(blocks.options(num_returns="dynamic").remote(3, 1)))
    ray.wait(stream + dynamic, num_returns=6, timeout=30, fetch_local=False)
    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    for refs in (stream, dynamic):
        assert ray.get([first_byte.remote(ref) for ref in refs], timeout=60) == [1, 2, 3]
