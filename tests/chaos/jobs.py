"""The work: small programs whose answers are known. Each runs in a driver, again and again.

A job returns when its answer was right and raises `Wrong` when not. `SURE` jobs may not fail at all
as long as their driver's node lives: they allow any number of retries, so every fault must be
hidden from them. `UNSURE` jobs do something at most once, and a fault may show as a typed error.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import miniray as ray
from miniray import exceptions
from miniray.util.placement_group import placement_group, remove_placement_group
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PATIENCE_S = 120.0
"""No call may take longer, whatever happens."""

FOR_EVER: dict[str, Any] = {"max_retries": -1}
REVIVED: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "num_cpus": 0}


class Wrong(Exception):
    """An answer that is not the known one."""


def equal(found: Any, expected: Any, what: str) -> None:
    """Raise `Wrong` unless both are the same."""
    if found != expected:
        raise Wrong(f"{what}: found {str(found)[:300]}, expected {str(expected)[:300]}")


def get(refs: Any) -> Any:
    """`ray.get` with patience."""
    return ray.get(refs, timeout=PATIENCE_S)


@ray.remote
def leaf(number: int, size: int) -> np.ndarray[Any, Any]:
    """`size` equal numbers: large ones live in the store, and are lost with their node."""
    time.sleep(0.002)
    return np.full(size, number, dtype=np.int64)


@ray.remote
def add(*parts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sum of its arguments."""
    return np.add.reduce(parts)


@ray.remote
def square(number: int) -> int:
    """A short task."""
    time.sleep(0.01)
    return number * number


def dag(rng: random.Random) -> None:
    """A tree of additions, spread over the nodes: what a dead node held is made again."""
    size = rng.choice([10, 20_000, 60_000])
    count = rng.randrange(4, 16)
    leaves = leaf.options(**FOR_EVER, scheduling_strategy="SPREAD")
    level = [leaves.remote(number, size) for number in range(count)]
    while len(level) > 1:
        groups = [level[at : at + 3] for at in range(0, len(level), 3)]
        level = [add.options(**FOR_EVER).remote(*group) for group in groups]
    total = get(level[0])
    equal((total.shape, int(total.min()), int(total.max())), ((size,), *[sum(range(count))] * 2), "dag")


def large(rng: random.Random) -> None:
    """More than a store can hold: objects are spilled, restored and sent from node to node."""
    size = rng.randrange(200_000, 1_000_000)
    refs = [leaf.options(**FOR_EVER, scheduling_strategy="SPREAD").remote(n, size) for n in range(8)]
    own = [ray.put(np.full(size // 4, n, dtype=np.int64)) for n in range(4)]
    rng.shuffle(refs)
    sums = [int(value.sum()) for value in (get(ref) for ref in refs)]
    equal(sorted(sums), [n * size for n in range(8)], "large")
    parts = [add.options(**FOR_EVER).remote(ref, ref) for ref in own]
    equal([int(value[0]) for value in map(get, parts)], [0, 2, 4, 6], "large: what was put")


@ray.remote
class Calculator:
    """An actor without state, so that its calls may run again."""

    def square(self, number: int) -> int:
        """One call."""
        return number * number

    def keep(self, refs: list[Any]) -> list[Any]:
        """References travel in and out."""
        self.kept = refs
        return refs


def revived(rng: random.Random) -> None:
    """Calls to an actor that starts again as often as needed, and runs its calls again."""
    actor = Calculator.options(**REVIVED, resources={f"place{rng.randrange(3)}": 1}).remote()
    refs = []
    for number in range(60):
        refs.append(actor.square.remote(number))
        time.sleep(rng.random() * 0.02)
    equal(get(refs), [n * n for n in range(60)], "revived")


def borrowed(rng: random.Random) -> None:
    """References inside values: an actor keeps them and gives them back."""
    actor = Calculator.options(**REVIVED).remote()
    refs = [leaf.options(**FOR_EVER).remote(n, rng.choice([5, 30_000])) for n in range(6)]
    back = get(actor.keep.remote(refs))
    del refs
    equal([int(value[0]) for value in get(back)], list(range(6)), "borrowed")


@ray.remote
def parent(depth: int) -> int:
    """Tasks that start tasks."""
    if depth == 0:
        return 1
    children = [parent.options(**FOR_EVER).remote(depth - 1) for _ in range(2)]
    return sum(ray.get(children))


def nested(rng: random.Random) -> None:
    """A tree of tasks that wait for their children."""
    depth = rng.randrange(1, 4)
    equal(get(parent.options(**FOR_EVER).remote(depth)), 2**depth, "nested")


@ray.remote
def count_to(number: int, size: int) -> Any:
    """A generator; with a large `size` its items live in the store."""
    for item in range(number):
        time.sleep(0.005)
        yield np.full(size, item, dtype=np.int64)


def generator(rng: random.Random) -> None:
    """Items of a streaming generator, read while it runs, and again from the first after a fault."""
    count, size = rng.randrange(5, 40), rng.choice([1, 30_000])
    stream = count_to.options(**FOR_EVER, num_returns="streaming").remote(count, size)
    equal([int(get(ref)[0]) for ref in stream], list(range(count)), "generator")


def waiting(rng: random.Random) -> None:
    """`wait` reports each reference once."""
    left = [square.options(**FOR_EVER).remote(number) for number in range(40)]
    seen = []
    while left:
        ready, left = ray.wait(left, num_returns=min(len(left), rng.randrange(1, 9)), timeout=PATIENCE_S)
        if not ready:
            raise exceptions.GetTimeoutError(f"wait reported nothing of {left} in {PATIENCE_S} s")
        seen += get(ready)
    equal(sorted(seen), [n * n for n in range(40)], "waiting")


def group(rng: random.Random) -> None:
    """Tasks and an actor in a placement group, which is made again when a node of it dies."""
    strategy = rng.choice(["PACK", "SPREAD"])
    made = placement_group([{"CPU": 1}, {"CPU": 1}], strategy=strategy)
    try:
        if not made.wait(PATIENCE_S):
            raise exceptions.GetTimeoutError(f"a {strategy} group of two CPUs was not ready: {made.id.hex()}")
        refs = []
        for index in range(2):
            there = PlacementGroupSchedulingStrategy(made, placement_group_bundle_index=index)
            refs += [square.options(**FOR_EVER, scheduling_strategy=there).remote(n) for n in range(8)]
        equal(get(refs), [n * n for n in range(8)] * 2, "group")
    finally:
        remove_placement_group(made)


def own_error(rng: random.Random) -> None:
    """What user code raises arrives as it was raised, whatever else happens."""

    @ray.remote(max_retries=-1)
    def raises(number: int) -> None:
        raise KeyError(number)

    number = rng.randrange(1000)
    try:
        get(raises.remote(number))
    except KeyError as error:
        equal(str(number) in str(error), True, f"own_error: {error}")
    else:
        raise Wrong("own_error: nothing was raised")


@ray.remote
class Ledger:
    """Counts what it was told, at most once each."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self, number: int) -> list[int]:
        """All that was noted so far."""
        self.seen.append(number)
        return list(self.seen)


def in_order(rng: random.Random) -> None:
    """Calls without retries to an actor without restarts: in order, none twice, none after its end."""
    actor = Ledger.options(num_cpus=0, resources={f"place{rng.randrange(3)}": 1}).remote()
    refs = []
    for number in range(40):
        refs.append(actor.note.remote(number))
        time.sleep(rng.random() * 0.02)
    for number, ref in enumerate(refs):
        equal(get(ref), list(range(number + 1)), "in_order")


def at_most_once(rng: random.Random) -> None:
    """Tasks that must not run twice."""
    refs = [square.options(max_retries=0).remote(number) for number in range(20)]
    equal([get(ref) for ref in refs], [n * n for n in range(20)], "at_most_once")


def foreign(rng: random.Random) -> None:
    """References whose owner is a worker: they fail with it."""

    @ray.remote(max_retries=-1)
    def puts(number: int) -> list[Any]:
        return [ray.put(np.full(20_000, number + k)) for k in range(3)]

    for number in range(4):
        refs = get(puts.remote(number))
        equal([int(value[0]) for value in get(refs)], [number, number + 1, number + 2], "foreign")


def named(rng: random.Random) -> None:
    """A detached actor, found by its name and ended."""
    name = f"named-{rng.getrandbits(64):x}"
    actor = Calculator.options(name=name, lifetime="detached", **REVIVED).remote()
    equal(get(actor.square.remote(7)), 49, "named")
    equal(get(ray.get_actor(name).square.remote(8)), 64, "named")
    ray.kill(actor)


SURE: tuple[Callable[[random.Random], None], ...] = (
    dag, large, revived, borrowed, nested, generator, waiting, group, own_error, named,
)  # fmt: skip
UNSURE: tuple[Callable[[random.Random], None], ...] = (in_order, at_most_once, foreign)
