"""The scaler: packing, bounds, idleness; and a simulated cluster that comes to rest."""

from __future__ import annotations

from random import Random

import pytest

from miniray.core import resources as res
from miniray.core.resources import UNIT, Resources
from miniray.core.scaling import Decision, NodeState, NodeType, Options, Scaler, Wanted

SMALL = NodeType("small", {"CPU": 4 * UNIT}, max_nodes=10)
LARGE = NodeType("large", {"CPU": 16 * UNIT, "GPU": 2 * UNIT}, max_nodes=3)


def scaler(*types: NodeType, **options: float) -> Scaler:
    return Scaler(Options(types or (SMALL, LARGE), **{"idle_s": 60.0, **options}))  # type: ignore[arg-type]


def tasks(count: int, **amounts: float) -> Wanted:
    return Wanted((res.from_floats(amounts),), count)


def node(handle: str, kind: NodeType = SMALL, *, free: float = 4, idle: bool = False) -> NodeState:
    return NodeState(handle, kind.name, {"CPU": int(free * UNIT)}, idle)


def test_demand_that_fits_starts_nothing() -> None:
    assert scaler().decide(0.0, [node("a")], [tasks(4, CPU=1)]) == Decision()


def test_what_does_not_fit_is_packed_into_new_nodes_of_the_type_it_fills_best() -> None:
    decision = scaler().decide(0.0, [node("a", free=1)], [tasks(9, CPU=1), tasks(1, GPU=1)])
    assert decision.start == {"large": 1}, "the nine fit beside the GPU"
    assert scaler().decide(0.0, [node("a", free=1)], [tasks(9, CPU=1)]).start == {"small": 2}


def test_nodes_on_their_way_count_until_they_are_late() -> None:
    machine = scaler(start_within_s=100.0)
    assert machine.decide(0.0, [], [tasks(4, CPU=1)]).start == {"small": 1}
    machine.started(0.0, "a", "small")
    assert machine.decide(50.0, [], [tasks(4, CPU=1)]).start == {}
    assert machine.decide(101.0, [], [tasks(4, CPU=1)]).start == {"small": 1}


def test_what_is_wanted_for_a_moment_only_starts_nothing() -> None:
    machine = scaler(settle_s=1.0)
    wanted = [tasks(8, CPU=1)]
    assert machine.decide(0.0, [], wanted).start == {}
    assert machine.decide(0.6, [], []).start == {}
    assert machine.decide(1.2, [], wanted).start == {}, "it was not wanted in between"
    assert machine.decide(1.8, [], [tasks(4, CPU=1)]).start == {}
    assert machine.decide(2.2, [], wanted).start == {"small": 1}, "two only since a moment ago"
    machine.started(2.2, "a", "small")
    assert machine.decide(2.3, [], wanted).start == {}, "that one is on its way"
    assert machine.decide(3.2, [], wanted).start == {"small": 1}, "and this one is missing for long enough"
    machine.started(3.2, "b", "small")
    assert machine.decide(9.0, [], wanted).start == {}


def test_groups_are_placed_as_a_whole_or_not_at_all() -> None:
    four = tuple({"CPU": 3 * UNIT} for _ in range(4))
    assert scaler(SMALL).decide(0.0, [], [Wanted(four, apart=True)]).start == {"small": 4}
    assert scaler().decide(0.0, [], [Wanted(four, together=True)]).start == {"large": 1}
    three = scaler(NodeType("small", SMALL.resources, max_nodes=3))
    refused = three.decide(0.0, [], [Wanted(four, apart=True)])
    assert refused.start == {} and "one more of small (at most 3)" in refused.refused[0]
    assert "no node type has" in scaler(SMALL).decide(0.0, [], [Wanted(four, together=True)]).refused[0]


def test_no_more_are_started_at_once_than_the_speed_allows() -> None:
    decision = scaler(NodeType("small", SMALL.resources, max_nodes=90)).decide(0.0, [], [tasks(400, CPU=1)])
    assert decision.start == {"small": 5}
    many = [node(str(number), free=0) for number in range(20)]
    machine = scaler(NodeType("small", SMALL.resources, max_nodes=90), speed=0.5)
    assert machine.decide(0.0, many, [tasks(400, CPU=1)]).start == {"small": 10}


def test_idle_nodes_stop_after_their_time_but_for_the_minimum_and_what_is_needed() -> None:
    machine = scaler(NodeType("small", SMALL.resources, min_nodes=1))
    both = [node("a", idle=True), node("b", idle=True)]
    assert machine.decide(0.0, both, []).stop == []
    assert machine.decide(59.0, both, []).stop == []
    assert machine.decide(60.0, both, []).stop == ["a"]
    assert machine.decide(61.0, both, [tasks(8, CPU=1)]).stop == [], "they are wanted"
    busy = [node("a"), node("b", idle=True)]
    assert machine.decide(62.0, busy, []).stop == ["b"]
    assert machine.decide(63.0, both, []).stop == ["b"], "a has been busy in between"


def test_a_cluster_keeps_its_minimum() -> None:
    assert scaler(NodeType("small", SMALL.resources, min_nodes=3)).decide(0.0, [], []).start == {"small": 3}


class Simulation:
    """Nodes that take ten seconds to come; tasks of random shapes that run for a while."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.machine = scaler(idle_s=30.0)
        self.nodes: dict[str, tuple[NodeType, Resources]] = {}
        self.coming: dict[str, tuple[float, NodeType]] = {}
        self.queue: list[Resources] = []
        self.running: list[tuple[float, str, Resources]] = []
        self.made = self.stopped = 0

    def step(self, now: float) -> None:
        for handle, (at, kind) in list(self.coming.items()):
            if now >= at:
                del self.coming[handle]
                self.nodes[handle] = (kind, dict(kind.resources))
        for entry in [entry for entry in self.running if entry[0] <= now]:
            self.running.remove(entry)
            res.add(self.nodes[entry[1]][1], entry[2])
        for demand in list(self.queue):
            home = next((h for h, (_, free) in self.nodes.items() if res.fits(demand, free)), None)
            if home is not None:
                self.queue.remove(demand)
                res.subtract(self.nodes[home][1], demand)
                self.running.append((now + self.rng.uniform(1, 20), home, demand))
        states = [
            NodeState(handle, kind.name, free, free == kind.resources)
            for handle, (kind, free) in self.nodes.items()
        ]
        decision = self.machine.decide(now, states, [Wanted((demand,)) for demand in self.queue])
        for name, count in decision.start.items():
            for _ in range(count):
                self.made += 1
                kind = SMALL if name == "small" else LARGE
                self.coming[f"n{self.made}"] = (now + 10.0, kind)
                self.machine.started(now, f"n{self.made}", name)
        for handle in decision.stop:
            kind, free = self.nodes.pop(handle)
            assert free == kind.resources, "a node that works was stopped"
            self.stopped += 1


@pytest.mark.parametrize("seed", range(10))
def test_a_simulated_cluster_serves_all_demand_then_shrinks_to_nothing_without_thrash(seed: int) -> None:
    world = Simulation(seed)
    for second in range(400):
        if second < 200 and world.rng.random() < 0.5:
            shape = world.rng.choice([{"CPU": UNIT}, {"CPU": 4 * UNIT}, {"CPU": 8 * UNIT}, {"GPU": UNIT}])
            world.queue += [shape] * world.rng.randint(1, 3)
        world.step(float(second))
        assert len(world.nodes) + len(world.coming) <= 13
    assert not world.queue and not world.running and not world.nodes
    assert world.made == world.stopped <= 40
