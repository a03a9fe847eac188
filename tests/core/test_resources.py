"""Resource arithmetic: amounts add up exactly, devices are not split wrongly, bundles are closed pools."""

from __future__ import annotations

import pytest

from miniray._proto.common_pb2 import ResourceMap
from miniray.core import resources as res
from miniray.core.resources import UNIT, NodeResources

GROUP = bytes(range(18))


def pool(**amounts: float) -> NodeResources:
    return NodeResources(res.from_floats(amounts))


def demand(**amounts: float) -> res.Resources:
    return res.from_floats(amounts)


def test_a_thousand_tenths_leave_the_pool_exactly_full() -> None:
    node = pool(CPU=100)
    held = [node.acquire(demand(CPU=0.1)) for _ in range(1000)]
    assert all(held) and node.acquire(demand(CPU=0.1)) is None
    for allocation in held:
        node.release(allocation)
    assert node.available == node.total == {"CPU": 100 * UNIT}


def test_a_demand_that_does_not_fit_takes_nothing() -> None:
    node = pool(CPU=4, GPU=1)
    assert node.acquire(demand(CPU=2, GPU=2)) is None
    assert node.available == node.total


def test_zero_amounts_vanish_and_bad_amounts_are_refused() -> None:
    assert res.from_floats({"CPU": 0, "x": 1}) == {"x": UNIT}
    with pytest.raises(ValueError, match="negative"):
        res.from_floats({"CPU": -1})
    with pytest.raises(ValueError, match="whole number"):
        res.from_floats({"GPU": 1.5})


def test_gpu_fractions_share_a_device_and_wholes_get_free_ones() -> None:
    node = pool(GPU=3)
    first, second = node.acquire(demand(GPU=0.5)), node.acquire(demand(GPU=0.5))
    assert first.slots == second.slots == (("GPU", 0, UNIT // 2),)
    assert node.acquire(demand(GPU=2)).slots == (("GPU", 1, UNIT), ("GPU", 2, UNIT))
    assert node.acquire(demand(GPU=0.5)) is None
    node.check()


def test_two_half_free_gpus_are_not_one_gpu() -> None:
    node = pool(GPU=2)
    held = [node.acquire(demand(GPU=0.6)), node.acquire(demand(GPU=0.6))]
    assert node.available["GPU"] == 8000
    node.release(held[0])
    assert node.acquire(demand(GPU=1)).slots == (("GPU", 0, UNIT),)
    assert node.acquire(demand(GPU=0.5)) is None


def test_a_blocked_holder_lends_its_cpus_and_may_overdraw_when_it_wakes() -> None:
    node = pool(CPU=1, GPU=1)
    blocked = node.acquire(demand(CPU=1, GPU=1))
    node.lend(blocked)
    assert node.available == {"CPU": UNIT, "GPU": 0}
    other = node.acquire(demand(CPU=1))
    node.reclaim(blocked)
    assert node.available["CPU"] == -UNIT
    node.release(other)
    node.release(blocked)
    assert node.available == node.total


def test_a_blocked_holder_that_dies_gives_back_only_what_it_still_has() -> None:
    node = pool(CPU=2)
    blocked = node.acquire(demand(CPU=1))
    node.lend(blocked)
    node.release(blocked)
    assert node.available == node.total


def test_an_actor_keeps_less_than_its_creation_took() -> None:
    node = pool(CPU=4, GPU=2)
    actor = node.acquire(demand(CPU=1, GPU=2))
    node.reduce(actor, demand(GPU=1))
    assert actor.amounts == {"GPU": UNIT} and actor.slots == (("GPU", 0, UNIT),)
    assert node.available == demand(CPU=4, GPU=1)
    node.check()
    node.release(actor)
    assert node.available == node.total


def bundle(node: NodeResources, index: int, **amounts: float) -> res.Allocation:
    allocation = node.acquire(res.from_floats(amounts))
    assert allocation is not None
    node.open_bundle(GROUP, index, allocation)
    return allocation


def test_a_committed_bundle_serves_only_demands_of_its_group() -> None:
    node = pool(CPU=2)
    bundle(node, 0, CPU=2)
    assert node.acquire(demand(CPU=1)) is None
    inside = node.acquire(res.bundle_demand(demand(CPU=1), GROUP, 0))
    assert inside is not None
    assert node.acquire(res.bundle_demand(demand(CPU=2), GROUP, 0)) is None
    node.check()


def test_an_any_bundle_demand_is_bound_to_one_bundle_with_room_for_all_of_it() -> None:
    node = pool(CPU=3)
    bundle(node, 0, CPU=1)
    bundle(node, 2, CPU=2)
    wide = node.acquire(res.bundle_demand(demand(CPU=2), GROUP, -1))
    assert wide.amounts[res.group_name("CPU", GROUP, 2)] == 2 * UNIT
    node.release(wide)
    assert node.acquire(res.bundle_demand(demand(CPU=3), GROUP, -1)) is None


def test_a_demand_of_nothing_can_be_bound_to_a_bundle() -> None:
    node = pool(CPU=1)
    bundle(node, 1, CPU=1)
    held = node.acquire(res.bundle_demand({}, GROUP, -1))
    assert held.amounts[res.group_name("bundle", GROUP, 1)] == 10
    assert node.acquire(res.bundle_demand({}, GROUP, 0)) is None


def test_devices_of_a_bundle_are_the_ones_it_was_prepared_with() -> None:
    node = pool(CPU=1, GPU=2)
    other = node.acquire(demand(GPU=1))
    bundle(node, 0, GPU=1)
    inside = node.acquire(res.bundle_demand(demand(GPU=0.5), GROUP, -1))
    assert inside.slots == ((res.group_name("GPU", GROUP, 0), 1, UNIT // 2),)
    node.release(other)
    node.check()


def test_closing_a_bundle_restores_the_node_even_with_holders_inside() -> None:
    node = pool(CPU=3)
    before = dict(node.total)
    first, second = bundle(node, 0, CPU=1), bundle(node, 1, CPU=2)
    holder = node.acquire(res.bundle_demand(demand(CPU=1), GROUP, 0))
    assert node.close_bundle(GROUP, 0)
    node.release(first)
    node.release(holder)
    assert node.available[res.group_name("CPU", GROUP)] == 2 * UNIT
    node.check()
    assert node.close_bundle(GROUP, 1) and not node.close_bundle(GROUP, 1)
    node.release(second)
    assert node.total == before and node.available == before


def test_a_late_release_does_not_enter_a_bundle_opened_anew() -> None:
    node = pool(CPU=1)
    allocation = bundle(node, 0, CPU=1)
    holder = node.acquire(res.bundle_demand(demand(CPU=1), GROUP, 0))
    node.close_bundle(GROUP, 0)
    node.release(allocation)
    bundle(node, 0, CPU=1)
    node.release(holder)
    node.check()
    assert node.available[res.group_name("CPU", GROUP, 0)] == UNIT


def test_an_actor_in_any_bundle_keeps_its_lifetime_share_of_that_bundle() -> None:
    node = pool(CPU=4)
    bundle(node, 0, CPU=4)
    actor = node.acquire(res.bundle_demand(demand(CPU=2), GROUP, -1))
    node.reduce(actor, res.bundle_demand(demand(CPU=1), GROUP, -1))
    assert node.available[res.group_name("CPU", GROUP, 0)] == 3 * UNIT
    assert node.available[res.group_name("CPU", GROUP)] == 3 * UNIT
    node.check()


def test_amounts_are_rendered_for_people() -> None:
    text = res.render({"memory": 3 * 2**30 * UNIT, "CPU": 4 * UNIT, "GPU": UNIT // 2})
    assert text == "{CPU: 4, GPU: 0.5, memory: 3 GiB}"


def test_an_open_demand_leaves_the_gpu_bundle_to_those_who_need_it() -> None:
    node = pool(CPU=3, GPU=1)
    for index, amounts in enumerate(({"CPU": 1, "GPU": 1}, {"CPU": 1}, {"CPU": 1})):
        node.open_bundle(GROUP, index, node.acquire(res.from_floats(amounts)))
    plain = res.bundle_demand(demand(CPU=1), GROUP, -1)
    taken = [res.bundle_of(node.acquire(plain).amounts) for _ in range(2)]
    assert taken == [res.group_name("bundle", GROUP, index) for index in (1, 2)]
    trainer = node.acquire(res.bundle_demand(demand(CPU=1, GPU=1), GROUP, -1))
    assert trainer is not None and res.bundle_of(trainer.amounts) == res.group_name("bundle", GROUP, 0)
    node.check()


def test_a_demand_of_less_than_nothing_is_none() -> None:
    message = ResourceMap(amounts={"CPU": -10_000, "GPU": 0, "memory": 10_000})
    assert res.demand_from_map(message) == {"memory": 10_000}
