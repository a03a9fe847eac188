"""Programs that ask for the impossible get a typed error, and the session goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest

import miniray as ray
from miniray import options
from miniray.core import limits

HOSTILE: list[dict[str, Any]] = [
    {"special": math.nan}, {"special": math.inf}, {"special": -1}, {"special": -math.inf}, {"special": 1e300},
    {f"r{n}": 1 for n in range(100_000)}, {"x" * 1_000_000: 1},
]  # fmt: skip


def test_the_limits_are_the_same_on_both_sides() -> None:
    assert options.MAX_QUANTITY == limits.MAX_AMOUNT // options.UNIT
    assert options.MAX_RESOURCES == limits.MAX_RESOURCES


@pytest.mark.parametrize("resources", HOSTILE, ids=["nan", "inf", "-1", "-inf", "1e300", "many", "long"])
def test_resources_that_cannot_be_are_refused_at_once(ray_shared: Any, resources: dict[str, Any]) -> None:
    def task() -> int:
        return 1

    class Actor:
        pass

    for thing in (task, Actor):
        with pytest.raises(ValueError, match="resource|quantity"):
            ray.remote(resources=resources)(thing).remote()
        with pytest.raises(ValueError, match="resource|quantity"):
            ray.remote(thing).options(resources=resources).remote()
    assert ray.get(ray.remote(task).remote(), timeout=60) == 1


@pytest.mark.parametrize("resources", HOSTILE[:5], ids=["nan", "inf", "-1", "-inf", "1e300"])
def test_so_are_those_of_a_placement_group(ray_shared: Any, resources: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ray.util.placement_group([resources])
