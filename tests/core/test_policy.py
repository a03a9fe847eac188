"""`choose`: where each kind of demand goes, and the sentence when it goes nowhere."""

from __future__ import annotations

from random import Random

from miniray._proto import common_pb2 as pb
from miniray.core import resources as res
from miniray.core.policy import Choice, NodeView, choose, demand_of

HYBRID = pb.SchedulingStrategy()
SPREAD = pb.SchedulingStrategy(spread=True)
GROUP = bytes(18)


def node(number: int, free: dict[str, float] | None = None, **total: float) -> NodeView:
    """Node `number`, with `free` of its totals still available."""
    totals = res.from_floats(total)
    available = dict(totals)
    if free is not None:
        available.update({name: res.to_fixed(amount) for name, amount in free.items()})
    return NodeView(bytes([number]) * 28, f"node-{number}", totals, available)


def view(*nodes: NodeView) -> dict[bytes, NodeView]:
    return {n.node_id: n for n in nodes}


def want(**amounts: float) -> res.Resources:
    return res.from_floats(amounts)


def number_of(choice: Choice) -> int:
    assert choice.node_id is not None, choice.reason
    return choice.node_id[0]


def affinity(number: int, soft: bool = False) -> pb.SchedulingStrategy:
    return pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=bytes([number]) * 28, soft=soft))


def label(operator: int, key: str, *values: str) -> pb.LabelMatch:
    return pb.LabelMatch(operator=operator, key=key, values=values)


def test_hybrid_packs_nodes_in_order_up_to_half() -> None:
    nodes = view(node(1, CPU=4), node(2, CPU=4))
    placed = []
    for _ in range(4):
        choice = choose(nodes, want(CPU=1), HYBRID)
        placed.append(number_of(choice))
        nodes[choice.node_id].available["CPU"] -= res.UNIT
    assert placed == [1, 1, 2, 2]


def test_hybrid_above_half_takes_the_least_used_node() -> None:
    nodes = view(node(1, {"CPU": 1}, CPU=4), node(2, {"CPU": 2}, CPU=4))
    assert number_of(choose(nodes, want(CPU=1), HYBRID)) == 2


def test_the_local_node_wins_until_it_is_half_used() -> None:
    nodes = view(node(1, CPU=4), node(2, {"CPU": 3}, CPU=4))
    assert number_of(choose(nodes, want(CPU=1), HYBRID, local=bytes([2]) * 28)) == 2
    nodes[bytes([2]) * 28].available["CPU"] = 2 * res.UNIT
    assert number_of(choose(nodes, want(CPU=1), HYBRID, local=bytes([2]) * 28)) == 1


def test_the_final_choice_is_random_among_the_top_fifth() -> None:
    nodes = view(*(node(n, CPU=8) for n in range(1, 11)))
    rng = Random(1)
    seen = {number_of(choose(nodes, want(CPU=1), HYBRID, rng=rng)) for _ in range(50)}
    assert seen == {1, 2}


def test_gpu_nodes_come_last_for_demands_without_gpu() -> None:
    nodes = view(node(1, CPU=4, GPU=1), node(2, {"CPU": 1}, CPU=4))
    assert number_of(choose(nodes, want(CPU=1), HYBRID, local=bytes([1]) * 28)) == 2
    assert number_of(choose(nodes, want(CPU=1, GPU=1), HYBRID)) == 1


def test_arguments_draw_the_task_to_their_bytes_while_there_is_room() -> None:
    nodes = view(node(1, CPU=4), node(2, {"CPU": 1}, CPU=4))
    heavy = {bytes([1]) * 28: 10, bytes([2]) * 28: 10_000}
    assert number_of(choose(nodes, want(CPU=1), HYBRID, local=bytes([1]) * 28, arguments=heavy)) == 2
    assert number_of(choose(nodes, want(CPU=2), HYBRID, local=bytes([1]) * 28, arguments=heavy)) == 1


def test_spread_goes_round_and_skips_full_nodes() -> None:
    nodes = view(node(1, CPU=4), node(2, {"CPU": 0}, CPU=4), node(3, CPU=4))
    assert [number_of(choose(nodes, want(CPU=1), SPREAD, turn=t)) for t in range(4)] == [1, 3, 3, 1]


def test_hard_affinity_waits_for_its_node_and_gives_up_on_a_dead_one() -> None:
    nodes = view(node(1, CPU=4), node(2, {"CPU": 0}, CPU=4))
    assert number_of(choose(nodes, want(CPU=1), affinity(1))) == 1
    busy = choose(nodes, want(CPU=1), affinity(2))
    assert busy.node_id is None and busy.feasible and not busy.hopeless
    assert busy.reason == "waiting for CPU: 1 needed, at most 0 free on node-2"
    gone = choose(nodes, want(CPU=1), affinity(3))
    assert gone.hopeless and "not alive" in gone.reason
    small = choose(nodes, want(CPU=9), affinity(1))
    assert small.hopeless and small.reason.startswith("node node-1, the only one allowed: no node has 9 CPU")


def test_soft_affinity_goes_elsewhere_only_when_its_node_cannot_serve() -> None:
    nodes = view(node(1, CPU=4), node(2, {"CPU": 0}, CPU=4))
    assert choose(nodes, want(CPU=1), affinity(2, soft=True)).node_id is None
    assert number_of(choose(nodes, want(CPU=1), affinity(3, soft=True))) == 1


def test_an_affinity_may_spill_from_a_full_node_or_fail_there() -> None:
    nodes = view(node(1, CPU=4), node(2, {"CPU": 0}, CPU=4))
    spills, fails = affinity(2, soft=True), affinity(2)
    spills.affinity.spill_on_unavailable = fails.affinity.fail_on_unavailable = True
    assert number_of(choose(nodes, want(CPU=1), spills)) == 1
    refused = choose(nodes, want(CPU=1), fails)
    assert refused.hopeless and "1 needed, at most 0 free on node-2" in refused.reason


def test_labels_filter_and_soft_labels_prefer() -> None:
    east, west = node(1, CPU=4), node(2, CPU=4)
    east.labels, west.labels = {"zone": "east"}, {"zone": "west", "ssd": "1"}
    nodes = view(east, west)
    for match, number in [
        (label(pb.LabelMatch.IN, "zone", "west", "north"), 2),
        (label(pb.LabelMatch.NOT_IN, "zone", "east"), 2),
        (label(pb.LabelMatch.EXISTS, "ssd"), 2),
        (label(pb.LabelMatch.NOT_EXISTS, "ssd"), 1),
        (label(pb.LabelMatch.NOT_IN, "ssd", "2"), 1),
    ]:
        assert number_of(choose(nodes, want(CPU=1), pb.SchedulingStrategy(labels=[match]))) == number
    soft = pb.SchedulingStrategy(soft_labels=[label(pb.LabelMatch.IN, "zone", "west")])
    assert number_of(choose(nodes, want(CPU=1), soft)) == 2
    west.available["CPU"] = 0
    assert number_of(choose(nodes, want(CPU=1), soft)) == 1
    north = pb.SchedulingStrategy(labels=[label(pb.LabelMatch.IN, "zone", "north")])
    nowhere = choose(nodes, want(CPU=1), north)
    assert not nowhere.feasible and nowhere.reason == (
        "no live node has labels where zone in (north); on the live ones zone is east, west")
    gpu = pb.SchedulingStrategy(labels=[label(pb.LabelMatch.EXISTS, "gpu")])
    assert choose(nodes, want(CPU=1), gpu).reason.endswith("where gpu exists; on the live ones none has gpu")


def zones(*names: str) -> pb.SchedulingStrategy:
    """In the first zone, else in the others, in this order; "" is any."""
    first, *others = ([label(pb.LabelMatch.IN, "zone", name)] if name else [] for name in names)
    return pb.SchedulingStrategy(labels=first, fallbacks=[pb.LabelSet(matches=other) for other in others])


def test_fallbacks_are_tried_in_order_when_the_labels_have_no_room() -> None:
    east, west, bare = node(1, CPU=1), node(2, {"CPU": 0}, CPU=1), node(3, CPU=1)
    east.labels, west.labels = {"zone": "east"}, {"zone": "west"}
    nodes = view(east, west, bare)
    assert number_of(choose(nodes, want(CPU=1), zones("north", "west", "east"))) == 1, "west is full now"
    assert number_of(choose(nodes, want(CPU=1), zones("north", ""))) in (1, 3)
    waits = choose(nodes, want(CPU=1), zones("north", "west"))
    assert waits.feasible and "node-2" in waits.reason, "it waits for the first that could ever serve it"
    nowhere = choose(nodes, want(CPU=1), zones("north", "south"))
    assert not nowhere.feasible
    assert nowhere.reason == (
        "no live node has labels where zone in (north); or zone in (south); "
        "on the live ones zone is east, west")
    assert not choose(nodes, want(CPU=2), zones("north", "west", "")).feasible


def test_reasons_name_the_missing_resource_and_the_figures() -> None:
    nodes = view(node(1, {"CPU": 0.5}, CPU=4), node(2, {"CPU": 0}, CPU=2, GPU=1))
    teapot = choose(nodes, want(teapot=1), HYBRID)
    assert not teapot.feasible
    assert teapot.reason == "no node has 'teapot' (asked 1): the cluster's resources are {CPU: 6, GPU: 1}"
    assert choose(nodes, want(CPU=8), HYBRID).reason == "no node has 8 CPU: the most is 4 on node-1"
    assert choose(nodes, want(CPU=4, GPU=1), HYBRID).reason.startswith("no single node has {CPU: 4, GPU: 1}")
    busy = choose(nodes, want(CPU=2), HYBRID)
    assert busy.feasible and busy.reason == "waiting for CPU: 2 needed, at most 0.5 free on node-1"
    assert choose({}, want(CPU=1), HYBRID).reason == "the cluster has no live node"


def test_draining_and_dead_nodes_get_nothing() -> None:
    nodes = view(node(1, CPU=4), node(2, CPU=4))
    nodes[bytes([1]) * 28].state = pb.NODE_DRAINING
    assert number_of(choose(nodes, want(CPU=1), HYBRID)) == 2
    nodes[bytes([2]) * 28].state = pb.NODE_DEAD
    assert not choose(nodes, want(CPU=1), HYBRID).feasible


def test_a_node_that_just_refused_is_avoided_but_still_feasible() -> None:
    nodes = view(node(1, CPU=4))
    choice = choose(nodes, want(CPU=1), HYBRID, avoid={bytes([1]) * 28: None})
    assert choice.node_id is None and choice.feasible


def test_a_bundle_choice_finds_its_bundle_and_says_when_there_is_none() -> None:
    strategy = pb.SchedulingStrategy(bundle=pb.BundleChoice(placement_group_id=GROUP, bundle_index=0))
    asked = pb.SchedulingClass(resources=res.to_map(want(CPU=1)), strategy=strategy)
    demand = demand_of(asked)
    plain = node(1, CPU=4)
    absent = choose(view(plain), demand, strategy)
    assert not absent.feasible and absent.reason.endswith("has no bundle on a live node")
    holder = node(2, CPU=4)
    supply = res.bundle_supply(want(CPU=1), GROUP, 0)
    res.add(holder.total, supply)
    res.add(holder.available, supply)
    assert number_of(choose(view(plain, holder), demand, strategy)) == 2
    res.subtract(holder.available, demand)
    busy = choose(view(plain, holder), demand, strategy)
    assert busy.feasible and busy.reason.startswith("waiting for CPU in bundle 0 of placement group")
    big = pb.SchedulingClass(resources=res.to_map(want(CPU=2)), strategy=strategy)
    too_big = choose(view(plain, holder), demand_of(big), strategy)
    assert not too_big.feasible and "has only 1 CPU (asked 2)" in too_big.reason


def test_an_any_bundle_demand_needs_one_bundle_that_holds_all_of_it() -> None:
    strategy = pb.SchedulingStrategy(bundle=pb.BundleChoice(placement_group_id=GROUP, bundle_index=-1))
    holder = node(1, CPU=1)
    for index in (0, 1):
        supply = res.bundle_supply(want(CPU=1), GROUP, index)
        res.add(holder.total, supply)
        res.add(holder.available, supply)
    one = demand_of(pb.SchedulingClass(resources=res.to_map(want(CPU=1)), strategy=strategy))
    two = demand_of(pb.SchedulingClass(resources=res.to_map(want(CPU=2)), strategy=strategy))
    assert number_of(choose(view(holder), one, strategy)) == 1
    assert not choose(view(holder), two, strategy).feasible
