"""Rankings answer as `choose` and `plan_bundles` do over all nodes, whatever has changed in between."""

from __future__ import annotations

from random import Random

import pytest

from miniray._proto import common_pb2 as pb
from miniray.core.bundles import Bundle, plan_bundles
from miniray.core.policy import NodeView, choose
from miniray.core.rankings import KEPT, Rankings
from miniray.core.resources import UNIT, Resources


class Nodes:
    """A view that changes at random, and its rankings."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = Random(seed)
        self.view: dict[bytes, NodeView] = {}
        self.rankings = Rankings(self.view)
        self.made = 0
        for _ in range(count):
            self.join()

    def join(self) -> None:
        self.made += 1
        total = {"CPU": self.rng.choice([2, 4, 8]) * UNIT, "memory": 16 * UNIT}
        if self.rng.random() < 0.3:
            total["GPU"] = 2 * UNIT
        node_id = self.made.to_bytes(28, "big")
        self.view[node_id] = NodeView(node_id, total=total, available=dict(total))
        self.rankings.touched(node_id)

    def change(self) -> None:
        """One node has more or less, drains, goes; or another one comes."""
        node = self.rng.choice(list(self.view.values()))
        what = self.rng.random()
        if what < 0.05 and len(self.view) > 2:
            del self.view[node.node_id]
            self.rankings.forget(node.node_id)
        elif what < 0.1:
            self.join()
        elif what < 0.15:
            node.state = pb.NODE_ALIVE if node.state != pb.NODE_ALIVE else pb.NODE_DRAINING
            self.rankings.touched(node.node_id)
        else:
            node.available = {name: self.rng.randint(0, most) for name, most in node.total.items()}
            self.rankings.touched(node.node_id)
        self.rankings.check()


DEMANDS: list[Resources] = [
    {"CPU": UNIT}, {"CPU": UNIT // 2}, {"GPU": UNIT}, {}, {"CPU": 3 * UNIT, "memory": UNIT},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_the_best_node_is_the_one_that_choose_would_draw(seed: int) -> None:
    nodes = Nodes(seed, 30)
    for step in range(200):
        nodes.change()
        demand = nodes.rng.choice(DEMANDS)
        local = nodes.rng.choice(list(nodes.view))
        avoid = nodes.rng.sample(list(nodes.view), 1) if step % 3 == 0 else []
        strategy, rng = pb.SchedulingStrategy(), Random(step)
        plain = choose(nodes.view, demand, strategy, local=local, rng=rng, avoid=avoid)
        best = nodes.rankings.best(demand, local=local, rng=Random(step), avoid=avoid)
        assert best == plain.node_id


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strategy", [pb.PACK, pb.SPREAD, pb.STRICT_PACK])
def test_bundles_find_the_same_places_among_the_candidates_as_among_all(
    seed: int, strategy: pb.GroupStrategy
) -> None:
    nodes = Nodes(seed, 30)
    for _ in range(60):
        nodes.change()
        demands = [nodes.rng.choice(DEMANDS[:3]) for _ in range(nodes.rng.randint(1, 4))]
        bundles = [Bundle(index, demand, []) for index, demand in enumerate(demands)]
        few = nodes.rankings.candidates(demands, ())
        whole = plan_bundles(nodes.view, bundles, strategy, taken={}).nodes
        among_few = plan_bundles(few, bundles, strategy, taken={}).nodes
        assert among_few == whole


def test_a_matching_exists_among_the_candidates_if_there_is_room_for_each_bundle() -> None:
    nodes = Nodes(1, 12)
    bundles = [Bundle(index, {"CPU": UNIT}, []) for index in range(6)]
    few = nodes.rankings.candidates([bundle.demand for bundle in bundles], ())
    plan = plan_bundles(few, bundles, pb.STRICT_SPREAD, taken={})
    assert plan.nodes is not None and len(set(plan.nodes.values())) == 6


def test_only_the_demands_used_last_are_kept() -> None:
    nodes = Nodes(1, 3)
    for amount in range(3 * KEPT):
        nodes.rankings.best({"CPU": amount + 1}, local=b"", rng=Random(1))
    assert len(nodes.rankings._kept) == KEPT
