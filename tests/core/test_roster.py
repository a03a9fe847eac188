"""The roster: pages encoded once, the order of joining, and what a joiner is told meanwhile."""

from __future__ import annotations

from random import Random

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import roster as rosters
from miniray.core.neighbours import Neighbours
from miniray.core.packing import LARGE_BYTES, packed_view, unpack_view
from miniray.core.roster import PAGE_ROWS, Roster
from tests.core.head_world import World, amounts, node_id


def info(number: int) -> pb.NodeInfo:
    return pb.NodeInfo(node_id=number.to_bytes(28, "big"), node_name=f"node-{number}", total=amounts(CPU=4))


def told(roster: Roster) -> list[str]:
    """Names in the view of a joiner, after a journey over the wire."""
    view = gcs.NodeMessage.FromString(roster.whole().SerializeToString()).view
    assert view.full
    unpack_view(view)
    return [row.node_name for row in view.nodes]


@pytest.mark.parametrize("seed", range(20))
def test_a_joiner_is_told_of_all_living_nodes_in_the_order_of_their_joining(seed: int) -> None:
    rng = Random(seed)
    roster, living = Roster(), {}
    for number in range(400):
        if living and rng.random() < (0.2 if number < 250 else 0.8):
            gone = rng.choice([*living])
            roster.drop(gone)
            del living[gone]
        row = info(number)
        if rng.random() < 0.7:
            roster.put(row)
            living[row.node_id] = row.node_name
        roster.check()
        if rng.random() < 0.1:
            assert told(roster) == [*living.values()]
    for node in [*living]:
        roster.drop(node)
        roster.drop(node)
        roster.check()
    assert told(roster) == []


def test_a_joiner_costs_one_page_and_not_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    plain = rosters._plain

    def counted(page: rosters._Page) -> bytes:
        encoded.append(len(page.rows) if not page.plain else 0)
        return plain(page)

    monkeypatch.setattr(rosters, "_plain", counted)
    costs = []
    roster = Roster()
    for number in range(20 * PAGE_ROWS):
        encoded.clear()
        roster.put(info(number))
        roster.whole()
        costs.append(sum(encoded))
    assert max(costs[-PAGE_ROWS:]) <= 2 * PAGE_ROWS, "no more with twenty pages than with one"
    assert sum(costs) <= len(costs) * (PAGE_ROWS + 1)


def test_a_changed_row_costs_its_page_once() -> None:
    roster = Roster()
    rows = [info(number) for number in range(3 * PAGE_ROWS)]
    for row in rows:
        roster.put(row)
    before = list(roster.whole().view.deflated)
    rows[0].total.CopyFrom(amounts(CPU=9))
    roster.stale(rows[0].node_id)
    after = list(roster.whole().view.deflated)
    assert before[0] != after[0] and before[1:] == after[1:]


def test_large_views_are_deflated_and_small_ones_are_not() -> None:
    few, many = (gcs.ClusterView(nodes=[info(n) for n in range(count)]) for count in (3, 200))
    small, large = packed_view(few), packed_view(many)
    assert small.packed and not small.deflated
    assert not large.packed and large.ByteSize() < many.ByteSize() / 2 and many.ByteSize() > LARGE_BYTES
    for view, wanted in ((small, few), (large, many)):
        unpack_view(view)
        assert list(view.nodes) == list(wanted.nodes)


def test_of_several_pages_a_raylet_knows_every_node() -> None:
    world = World()
    count = 2 * PAGE_ROWS + 10
    for number in range(1, count + 1):
        world.join(number, CPU=number)
    view = world.take(count, "view")[0]
    assert view.full
    neighbours = Neighbours(node_id(count), {})
    assert neighbours.view_arrived(0.0, view) == []
    assert len(neighbours.view) == count - 1
    assert neighbours.view[node_id(1)].total["CPU"] == 10_000


def test_figures_that_a_joiner_was_told_late_reach_it_with_everybody() -> None:
    """Pages are not encoded anew for every heartbeat: what has changed is about to be told to all."""
    world = World(CPU=4)
    world.join(2, CPU=8)
    world.sleep(0.2)
    world.beat(1, CPU=4)
    world.head.members.full_view()
    world.beat(1, CPU=1)
    world.join(3, CPU=2)
    world.sleep(0.2)
    neighbours = Neighbours(node_id(3), {})
    for view in world.take(3, "view"):
        assert neighbours.view_arrived(0.0, view) == []
    assert neighbours.view[node_id(1)].available["CPU"] == 10_000
    world.join(4, CPU=2)
    (view,) = world.take(4, "view")
    assert view.nodes[0].available.amounts["CPU"] == 10_000, "and those who come after that see it at once"
