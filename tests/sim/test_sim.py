"""Seeds of the simulator in the default suite, and that the simulator itself can be trusted.

Many more behind `make sim`; a seed that once failed for a reason worth keeping goes to `KEPT`.
"""

from __future__ import annotations

import pytest

from . import copies, references, services
from .faults import Plan
from .network import Weather
from .run import Failure, Scenario, Simulation, scenario_of

KEPT = (6, 14, 33, 1261)
"""Seeds that have found something: nodes that speak before any view names them, the end of an
actor that a restarted GCS forgot, groups of jobs that ended while the GCS was away, nodes that are
spoken to before any view names them."""

KEPT_REFERENCES = (25, 213, 5059, 8054, 10014)
"""The same among the short seeds: a worker's own task waited for a child that waited behind it, a new
GCS was asked for an actor after its owner's end, an actor died while its constructor ran again, what
a dead node's lease had held went to that node's next request and never came back, the worker of a
cancelled task died."""


def check(simulation: Simulation) -> Simulation:
    """Run to the end; a failure is the story and nothing else."""
    try:
        simulation.run()
    except Failure as failure:
        pytest.fail(str(failure), pytrace=False)
    return simulation


def test_a_calm_cluster_does_everything_and_comes_to_rest() -> None:
    simulation = check(Simulation(1, Scenario(nodes=5, cpus=2, drivers=2, seconds=6.0, plan=Plan(6.0)), 1))
    oracle = simulation.cluster.oracle
    assert len(oracle.tasks) > 200 and oracle.read > 100
    assert not oracle.errors.keys() & {"OBJECT_LOST", "OWNER_DIED", "NODE_DIED", "UNAVAILABLE"}


@pytest.mark.parametrize("seed", [*range(100, 112), *KEPT])
def test_promises_hold_under_faults(seed: int) -> None:
    check(Simulation(seed))


@pytest.mark.parametrize("first", [0, 1000])
def test_references_are_neither_lost_nor_kept(first: int) -> None:
    for seed in range(first, first + 8):
        check(Simulation(seed, references.scenario_of(seed), 1))


@pytest.mark.parametrize("seed", KEPT_REFERENCES)
def test_seeds_that_broke_a_promise_about_references_keep_it(seed: int) -> None:
    check(Simulation(seed, references.scenario_of(seed)))


KEPT_COPIES = (326, 347)
"""The same among the seeds about large objects: two nodes waited for one another's rest, a pull in the queue
lost the only source that it could have asked."""


@pytest.mark.parametrize("seed", [80, *KEPT_COPIES])
def test_large_objects_reach_everybody_whatever_dies_in_their_chains(seed: int) -> None:
    simulation = check(Simulation(seed, copies.scenario_of(seed), 4))
    lines = simulation.world.lines
    assert [line for line in lines if " passes " in line], "nobody passed on what was still coming"


def test_services_outlive_their_makers_and_groups_are_whole() -> None:
    oracles = [check(Simulation(seed, services.scenario_of(seed))).cluster.oracle for seed in range(10)]
    assert sum(len(oracle.tasks) for oracle in oracles) > 500 and not any(one.detached for one in oracles)


def test_actors_in_a_cycle_live_as_long_as_their_driver_and_nothing_else_does() -> None:
    scenario = references.scenario_of(0, dict.fromkeys(("worker_crash", "node_crash", "driver_crash"), 0))
    ends = []
    for seed in range(6):
        simulation = check(Simulation(seed, scenario))
        lines = simulation.world.lines
        ends += [line for line in lines if "left to the end of its driver" in line]
        assert not simulation.cluster.oracle.live
    assert ends


@pytest.mark.parametrize("seed", range(2))
def test_twenty_nodes_under_many_faults(seed: int) -> None:
    faults = {"worker_crash": 8, "node_crash": 3, "head_crash": 2, "partition": 2, "storm": 2, "node_join": 1}
    weather = Weather(loss=0.03, duplicates=0.02, late=0.05, late_s=0.3)
    check(Simulation(seed, Scenario(20, 2, 3, 8.0, weather=weather, plan=Plan(14.0, faults))))


def test_nodes_that_leave_in_order_lose_no_object() -> None:
    taken = 0
    for seed in range(3):
        simulation = check(Simulation(seed, Scenario(4, 2, 1, 4.0, plan=Plan(4.0, {"drain": 2}))))
        assert "OBJECT_LOST" not in simulation.cluster.oracle.errors
        lines = simulation.world.lines
        assert not [line for line in lines if "are lost with this node" in line]
        taken += sum("taken_over" in line for line in lines)
    assert taken, "no node had anything that others needed"


def test_a_full_store_spills_and_loses_nothing() -> None:
    simulation = check(Simulation(3, Scenario(3, 4, 2, 6.0, store_bytes=2 << 20, plan=Plan(6.0))))
    assert "OBJECT_LOST" not in simulation.cluster.oracle.errors


@pytest.mark.parametrize("seed", [31, 108])
def test_promises_hold_whatever_the_clocks_of_the_machines_say(seed: int) -> None:
    scenario = scenario_of(seed, {"clocks_apart_s": 36_000.0, "clock_jump": 3, "head_crash": 1})
    simulation = check(Simulation(seed, scenario))
    shown = [node.world.now - simulation.world.now for node in simulation.cluster.nodes.values()]
    assert max(shown) - min(shown) > 3600.0


def test_a_seed_replays_exactly() -> None:
    first, second = (
        Simulation(7, scenario_of(7, {"nodes": 5})) for _ in range(2)
    )
    assert first.run() == second.run()
    assert first.world.lines == second.world.lines


def test_different_seeds_are_different_worlds() -> None:
    scenario = Scenario(nodes=3, drivers=1, seconds=2.0, plan=Plan(2.0))
    assert Simulation(1, scenario).run() != Simulation(2, scenario).run()
