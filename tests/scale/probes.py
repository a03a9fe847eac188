"""What one of something costs the head of a cluster that holds so much already.

A probe does the same work in each cluster, and undoes it, so it can be repeated: clusters of different
sizes take turns, and of several rounds the cheapest counts. What else runs on the machine then hardly
shows. `Cost.news` is apart: telling every node what has changed is paced in bytes, not paid for each change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .cluster import ROWS_PER_BATCH, HollowCluster
from .hollow import NEWS, OWN

FEW, SOME = 16, 64

Act = Callable[[HollowCluster], None]


@dataclass(frozen=True)
class Probe:
    """`count(cluster)` entities; `first` and `undo` are not measured."""

    name: str
    count: Callable[[HollowCluster], int]
    do: Act
    undo: Act | None = None
    first: Act | None = None


@dataclass(frozen=True)
class Cost:
    """Of one entity: seconds of the head's core, or calls; of the round: its longest callback."""

    own: float
    news: float
    news_share: float
    """Of the head's core while the probe lasted."""
    longest_s: float
    longest_call: str


def _number(count: int) -> Callable[[HollowCluster], int]:
    return lambda cluster: count


def _a_quarter(cluster: HollowCluster) -> int:
    """One task on every fourth node: a node tells at once of all that began within a tenth of a second."""
    return len(cluster.nodes) // 4


PROBES = (
    Probe("node joins", _number(FEW), lambda c: c.join(FEW)),
    Probe("node leaves", _number(FEW), lambda c: c.lose_nodes(FEW)),
    Probe("node comes back to a new head", _number(FEW), lambda c: c.return_nodes(FEW)),
    Probe("heartbeat with news", lambda c: len(c.nodes), lambda c: c.beat(news=True)),
    Probe("heartbeat without", lambda c: len(c.nodes), lambda c: c.beat(news=False)),
    Probe("status asked for, per node", lambda c: len(c.nodes), lambda c: c.ask_status()),
    Probe("actor made", _number(SOME), lambda c: c.make_actors(SOME),
          first=lambda c: c.make_actors(1)),
    Probe("actor dies", _number(SOME), lambda c: c.kill_actors(SOME)),
    Probe("placement group of 4 made", _number(FEW), lambda c: c.make_groups(FEW),
          first=lambda c: c.make_groups(1)),
    Probe("placement group of 4 removed", _number(FEW), lambda c: c.remove_groups(FEW)),
    Probe("task runs (figures of its lease)", _a_quarter, lambda c: c.run_tasks(_a_quarter(c)),
          lambda c: c.end_tasks(_a_quarter(c))),
    Probe("task finished (event)", _number(FEW * ROWS_PER_BATCH), lambda c: c.tell_events(FEW)),
)  # fmt: skip


def taken(probe: Probe, cluster: HollowCluster, *, counting: bool = False) -> Cost:
    """One round."""
    if probe.first is not None:
        probe.first(cluster)
        cluster.settle()
    meter, count, start = cluster.head.meter, probe.count(cluster), cluster.clock.now
    meter.reset()
    meter.counting = counting
    probe.do(cluster)
    cluster.settle()
    meter.counting = False
    lasted = cluster.clock.now - start
    spent = {kind: float(meter.calls(kind)) for kind in meter.spent} if counting else meter.spent
    cost = Cost(
        spent[OWN] / count, spent[NEWS] / count, spent[NEWS] / lasted, meter.longest, meter.longest_call)
    if probe.undo is not None:
        probe.undo(cluster)
        cluster.settle()
    return cost
