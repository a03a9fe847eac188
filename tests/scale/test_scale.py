"""A hollow cluster holds what it should, and what one costs does not depend on how many others there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from miniray.runtime.storage import NoStorage

from .cluster import HollowCluster, Size, nodes_that_beat_when_asked
from .probes import PROBES, taken

SMALL = Size(nodes=8, actors=20, tasks=10, groups=4, batches=2)


@pytest.fixture(autouse=True)
def beats_when_asked() -> Iterator[None]:
    with nodes_that_beat_when_asked():
        yield


def test_a_small_hollow_cluster_goes_through_all_probes_and_is_as_before() -> None:
    cluster = HollowCluster(SMALL, NoStorage())
    head = cluster.head.head
    for probe in PROBES:
        cost = taken(probe, cluster)
        assert cost.own > 0 and cost.longest_s > 0, probe.name
        head.check()
    made_first = 1  # by each of two probes
    assert head.placement.count() == (SMALL.groups + made_first, 0)
    assert head.actors.count()[0] == SMALL.actors + made_first
    assert len(head.members.view) == SMALL.nodes
    held = sum(len(one.node.leases.grants) for one in cluster.nodes)
    assert held == SMALL.tasks + SMALL.actors + made_first


@pytest.mark.parametrize("dimension", ["actors", "groups"])
def test_what_a_node_and_a_death_cost_does_not_depend_on_what_else_there_is(dimension: str) -> None:
    """By functions called: no clock is asked. Each of these once looked at everything."""
    calls: dict[str, list[float]] = {}
    for count in (10, 80):
        size = Size(**{"nodes": 16, "actors": 10, "tasks": 1, "groups": 10, "batches": 1, dimension: count})
        cluster = HollowCluster(size, NoStorage())
        for probe in PROBES:
            if probe.name in ("node joins", "node leaves", "actor made", "actor dies"):
                calls.setdefault(probe.name, []).append(taken(probe, cluster, counting=True).own)
    assert all(many < 1.3 * few for few, many in calls.values()), calls


def test_figures_are_sent_at_a_rate_that_does_not_grow_with_the_square_of_the_nodes() -> None:
    sent = []
    for nodes in (20, 80):
        cluster = HollowCluster(Size(nodes=nodes, actors=1, tasks=1, groups=1, batches=1), NoStorage())
        before = cluster.head.packets_sent
        for _ in range(8):
            cluster.beat(news=True)
        sent.append((cluster.head.packets_sent - before) / nodes)
    assert sent[1] < 2 * sent[0]
