"""The allocator against a model: random puts, deletes and held views, checked after each step."""

from __future__ import annotations

import random

import numpy as np
import pytest

from miniray._native import ObjectExists, Store, StoreFull
from tests.native.support import oid, payload

UNIT = 64


def block(size: int) -> int:
    """Heap bytes that an object of `size` bytes takes."""
    return UNIT + -(-size // UNIT) * UNIT if size else 0


@pytest.mark.parametrize("seed", range(4))
def test_random_use_agrees_with_a_model(seed: int) -> None:
    rng = random.Random(seed)
    store = Store.create(256 << 10, slots=128)
    live: dict[int, int] = {}
    held: list[tuple[int, memoryview]] = []
    found = view = None
    sizes = [0, 1, 63, 64, 65, 1000, 4096, 20_000, 60_000]
    for step in range(3000):
        n = rng.randrange(40)
        what = rng.random()
        if what < 0.45:
            size = rng.choice(sizes) + rng.randrange(3)
            try:
                store.put(oid(n), [payload(n, size)])
                assert n not in live
                live[n] = size
            except ObjectExists:
                assert n in live
            except StoreFull as full:
                assert full.needed == size
                assert store.stats()["largest_free"] < block(size)
        elif what < 0.75:
            assert store.delete(oid(n)) == (n in live)
            live.pop(n, None)
        elif what < 0.9 and len(held) < 12:
            found = store.get(oid(n))
            assert (found is None) == (n not in live)
            if found is not None:
                held.append((n, memoryview(found)))
        elif held:
            m, view = held.pop(rng.randrange(len(held)))
            assert bytes(view) == payload(m, len(view))
            view.release()
        if step % 10 == 0:
            store.check()
    for m, view in held:
        assert bytes(view) == payload(m, len(view))
    held.clear()
    del view, found
    stats = store.stats()
    assert stats["used"] == sum(block(size) for size in live.values())
    assert stats["objects"] == len(live)
    for n in live:
        assert bytes(store.get(oid(n))) == payload(n, live[n])
        store.delete(oid(n))
    store.check()
    assert store.stats()["used"] == 0
    assert store.stats()["largest_free"] == store.stats()["free"], "free blocks were not merged"


def test_freed_neighbours_merge_in_any_order() -> None:
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        store = Store.create(3 * 1024 + 4 * UNIT - 4096 % UNIT, slots=16)
        size = (store.stats()["free"] // 3 - UNIT) // UNIT * UNIT
        for n in range(3):
            store.put(oid(n), [payload(n, size)])
        for n in order:
            store.delete(oid(n))
            store.check()
        store.put(oid(9), [payload(9, 3 * size)])
        assert bytes(store.get(oid(9))) == payload(9, 3 * size)


def test_an_allocation_fails_only_if_nothing_fits() -> None:
    """Twenty holes of one size class, of which only the last in its list is large enough."""
    store = Store.create(1 << 20, slots=128)
    sizes = [4096 + 64 * (n == 0) for n in range(20)]
    for n, size in enumerate(sizes):
        store.put(oid(n), [payload(n, size)])
        store.put(oid(100 + n), [b"wall"])
    rest = store.stats()["largest_free"] - UNIT
    store.put(oid(200), [bytes(rest)])
    for n in range(20):
        store.delete(oid(n))
    store.put(oid(50), [payload(50, 4160)])
    with pytest.raises(StoreFull):
        store.put(oid(51), [payload(51, 4160)])
    for n in range(19):
        store.put(oid(60 + n), [payload(n, 4096)])
    store.check()


def test_freed_memory_is_used_before_untouched_memory() -> None:
    store = Store.create(64 << 20)
    store.put(oid(0), [bytes(8 << 20)])
    store.put(oid(1), [b"wall"])
    store.delete(oid(0))
    cold = store.stats()["cold"]
    for n in range(2, 10):
        store.put(oid(n), [bytes((1 << 20) - UNIT)])
    assert store.stats()["cold"] == cold
    store.put(oid(10), [bytes(1 << 20)])
    assert store.stats()["cold"] < cold


def test_the_warmest_block_goes_first() -> None:
    store = Store.create(1 << 20)
    for n in range(0, 12, 2):
        store.put(oid(n), [bytes(1000)])
        store.put(oid(n + 1), [b"wall"])
    order = [4, 0, 8, 2]
    for n in order:
        store.delete(oid(n))

    def place(n: int) -> int:
        return int(np.frombuffer(store.get(oid(n)), np.uint8).ctypes.data)

    walls = {n: place(n + 1) for n in order}
    for n, expected in enumerate(reversed(order)):
        store.put(oid(100 + n), [bytes(1000)])
        assert place(100 + n) == walls[expected] - block(1000), "not the most recently freed"
