"""Who keeps an object alive, and who must not any more: with processes that are killed.

After each test the stores are empty (`tests.leftovers`); the tests say until when they are not.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tests import leftovers
from tests.system.support import alive, eventually, kill

LARGE = np.zeros(1 << 18)


def stored() -> int:
    """How many objects the store holds."""
    from miniray import api

    return len(api.connected_worker().store.list())


@pytest.fixture
def keeper(ray: Any) -> Any:
    """A class of actors that keep and give references."""

    @ray.remote(num_cpus=0)
    class Keeper:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def keep(self, *boxes: Any) -> int:
            self.kept += boxes
            return os.getpid()

        def make(self) -> Any:
            """A reference inside a value inside a value, all of them the actor's own."""
            return ray.put([ray.put(LARGE)])

        def pass_on(self, other: Any) -> int:
            return int(ray.get(other.keep.remote(*self.kept), timeout=30))

    return Keeper


def test_a_borrower_that_is_killed_gives_back_what_it_borrowed(ray: Any, keeper: Any) -> None:
    """From the one that it was handed to, and from the one that this one passed it on to."""
    first, second = keeper.remote(), keeper.remote()
    ref = ray.put([ray.put(LARGE)])
    pids = [ray.get(first.keep.remote([ref]), timeout=30), ray.get(first.pass_on.remote(second), timeout=30)]
    del ref
    for pid in pids:
        assert ray.get(ray.put(1)) == 1 and stored() == 1, "somebody still reaches it"
        kill(pid)
        eventually(lambda pid=pid: not alive(pid))
    eventually(lambda: not stored())


def test_what_an_actor_made_goes_with_it_whoever_holds_a_reference(ray: Any, keeper: Any) -> None:
    actor = keeper.remote()
    outer = ray.get(actor.make.remote(), timeout=30)
    (inner,) = ray.get(outer, timeout=30)
    assert ray.get(inner, timeout=30).shape == LARGE.shape and stored() == 1
    kill(ray.get(actor.keep.remote(), timeout=30))
    eventually(lambda: not stored())
    with pytest.raises(ray.exceptions.OwnerDiedError):
        ray.get(inner, timeout=30)


def test_a_reference_outlives_the_way_that_it_came(ray: Any, keeper: Any) -> None:
    """The value that it was inside of, and its generator, are gone."""

    @ray.remote
    def items(box: Any) -> Any:
        for _ in range(3):
            yield [*box, ray.put(LARGE)]

    mine = ray.put(LARGE)
    stream = items.remote([mine])
    del mine
    mine, theirs = ray.get(next(stream), timeout=30)
    del stream
    assert ray.get(mine, timeout=30).shape == ray.get(theirs, timeout=30).shape == LARGE.shape
    del mine
    eventually(lambda: stored() == 1)
    assert ray.get(theirs, timeout=30).shape == LARGE.shape


def test_actors_that_hold_one_another_live_until_one_of_them_ends(ray: Any, keeper: Any) -> None:
    """Counts do not see a cycle: who drops its last handles keeps it, with what it holds, until its job
    ends or somebody ends one of its actors; the others follow."""
    one, other = keeper.remote(), keeper.remote()
    pids = ray.get([one.keep.remote([other, ray.put(LARGE)]), other.keep.remote([one])], timeout=30)
    del one
    assert ray.get(other.keep.remote(), timeout=30) == pids[1]
    del other
    assert stored() == 1 and all(map(alive, pids))
    kill(pids[1])
    eventually(lambda: not any(map(alive, pids)))


def test_what_is_left_is_told_with_who_holds_it(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "SETTLE_S", 0.1)
    ref = ray.put(LARGE)
    (told,) = leftovers.left()
    assert ref.hex() in told and f"driver {os.getpid()} has 1 references" in told
    del ref
    monkeypatch.undo()
    assert leftovers.left() == []
