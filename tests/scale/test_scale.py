"""The hollow cluster goes through all its phases, and what it counts is what happened."""

from __future__ import annotations

from miniray.runtime.storage import NoStorage

from .phases import HollowCluster, Size


def test_a_small_hollow_cluster_goes_through_all_phases() -> None:
    cluster = HollowCluster(Size().times(0.005), NoStorage())
    phases = cluster.phases()
    head = cluster.head.head
    head.check()
    assert [phase.count for phase in phases[:4]] == [10, 100, 5, 50]
    assert all(phase.stall_s > 0 for phase in phases)
    assert head.placement.count() == (5, 0) and len(head.members.view) == 9
    assert head.actors.count()[0] < 100, "some were killed"


def test_figures_are_sent_at_a_rate_that_does_not_grow_with_the_square_of_the_nodes() -> None:
    sent = []
    for nodes in (20, 80):
        cluster = HollowCluster(Size(nodes=nodes, actors=1, tasks=1, groups=1), NoStorage())
        cluster._join()
        before = cluster.head.packets_sent
        cluster._beat_busy()
        sent.append((cluster.head.packets_sent - before) / nodes)
    assert sent[1] < 2 * sent[0]
