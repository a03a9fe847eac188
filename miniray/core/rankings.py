"""Nodes with room for a demand, best first, kept up to date instead of looked for anew.

`policy.choose` looks at every node: right for a raylet, which asks rarely, and too slow for a GCS that
places twenty thousand actors on two thousand nodes. Here the answer for one demand is a sorted list;
what has changed since it was last used (`touched`) is taken out and put back. The answers are those of
`choose` for the default strategy, drawn numbers included: a test compares them.

`best` serves actors, `candidates` the planning of placement groups. A ranking costs some 150 bytes a
node; the `KEPT` used last are kept. Pure; part of `core.members`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from random import Random

from miniray._proto.common_pb2 import NODE_ALIVE
from miniray.core import resources as res
from miniray.core.policy import NodeView, has_room, number_of_best, score
from miniray.core.resources import Resources

KEPT = 32
"""Demands whose ranking is kept; those of equal actors and bundles are one."""

Entry = tuple[float, int, bytes]
"""(how good, smaller is better; order of joining; node id)"""


class _Ranking:
    """The nodes with room for one demand."""

    __slots__ = ("_demand", "_judge", "entries", "of", "stamp")

    def __init__(self, demand: Resources, judge: Callable[[NodeView, Resources], float]) -> None:
        self._demand = demand
        self._judge = judge
        self.entries: list[Entry] = []
        self.of: dict[bytes, Entry] = {}
        self.stamp = 0
        """What was touched up to here is reflected."""

    def fill(self, nodes: Iterable[tuple[int, NodeView]]) -> None:
        """Begin with all nodes, in one go."""
        for order, node in nodes:
            if node.state == NODE_ALIVE and has_room(node, self._demand):
                self.of[node.node_id] = (self._judge(node, self._demand), order, node.node_id)
        self.entries = sorted(self.of.values())

    def put(self, node_id: bytes, order: int, node: NodeView | None) -> None:
        """A node has changed; None: it is gone."""
        old = self.of.pop(node_id, None)
        if old is not None:
            del self.entries[bisect_left(self.entries, old)]
        if node is not None and node.state == NODE_ALIVE and has_room(node, self._demand):
            new = self.of[node_id] = (self._judge(node, self._demand), order, node_id)
            insort(self.entries, new)


class Rankings:
    """See the module head. `view` is shared with its owner, who says what it has changed there."""

    def __init__(self, view: dict[bytes, NodeView]) -> None:
        self._view = view
        self._alive: dict[bytes, None] = {}
        self._order: dict[bytes, int] = {}
        self._touched: dict[bytes, int] = {}
        """Nodes by the time of their last change, oldest first."""
        self._stamp = 0
        self._next_order = 0
        self._kept: dict[tuple[object, ...], _Ranking] = {}

    def touched(self, node_id: bytes) -> None:
        """The node's entry in the view has changed, come or gone."""
        node = self._view.get(node_id)
        if node is not None and node_id not in self._order:
            self._order[node_id] = self._next_order
            self._next_order += 1
        if node is not None and node.state == NODE_ALIVE:
            self._alive[node_id] = None
        else:
            self._alive.pop(node_id, None)
        self._stamp += 1
        self._touched.pop(node_id, None)
        self._touched[node_id] = self._stamp

    def forget(self, node_id: bytes) -> None:
        """The node never comes back: take it out of all rankings."""
        self.touched(node_id)
        order = self._order.pop(node_id, 0)
        for ranking in self._kept.values():
            ranking.put(node_id, order, None)
        del self._touched[node_id]

    def best(
        self, demand: Resources, *, local: bytes, rng: Random, avoid: Collection[bytes] = ()
    ) -> bytes | None:
        """What `policy.choose` answers without a strategy; None when nobody has room."""
        ranking = self._ranking(demand, score)
        count = number_of_best(len(self._alive))
        entries = ranking.entries
        if avoid:
            entries = list(islice((entry for entry in entries if entry[2] not in avoid), count))
        if not entries:
            return None
        mine = ranking.of.get(local)
        if mine is not None and mine[0] == entries[0][0] and local not in avoid:
            return local
        return entries[rng.randrange(min(count, len(entries)))][2]

    def candidates(self, demands: list[Resources], taken: Iterable[bytes]) -> dict[bytes, NodeView]:
        """Nodes among which bundles of these demands find the places they would find among all.

        For each demand, and for all together, the tightest and the roomiest, as many as there are
        bundles; and those that are `taken` by others of the group. In order of joining.
        """
        found: dict[bytes, None] = dict.fromkeys(taken)
        count = len(demands) + len(found)
        distinct = {tuple(sorted(demand.items())): demand for demand in (*demands, res.total_of(demands))}
        for demand in distinct.values():
            entries = self._ranking(demand, _slack).entries
            for _, _, node_id in (*entries[:count], *_roomiest(entries, count)):
                found[node_id] = None
        known = sorted((self._order[node_id], node_id) for node_id in found if node_id in self._view)
        return {node_id: self._view[node_id] for _, node_id in known}

    def _ranking(self, demand: Resources, judge: Callable[[NodeView, Resources], float]) -> _Ranking:
        key = (judge, *sorted(demand.items()))
        ranking = self._kept.pop(key, None)
        if ranking is None:
            ranking = _Ranking(demand, judge)
            ranking.fill((self._order[node_id], node) for node_id, node in self._view.items())
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
        else:
            for node_id in reversed(self._touched):
                if self._touched[node_id] <= ranking.stamp:
                    break
                ranking.put(node_id, self._order[node_id], self._view.get(node_id))
        ranking.stamp = self._stamp
        self._kept[key] = ranking
        return ranking

    def check(self) -> None:
        """Assert that the kept rankings agree with the view."""
        assert self._order.keys() == self._view.keys()
        assert list(self._alive) == [n for n in self._alive if self._view[n].state == NODE_ALIVE]
        for ranking in self._kept.values():
            assert ranking.entries == sorted(ranking.of.values())


def _slack(node: NodeView, demand: Resources) -> float:
    """What would be left, as a share, of the scarcest resource asked for."""
    return min((node.available[name] - amount) / node.total[name] for name, amount in demand.items())


def _roomiest(entries: list[Entry], count: int) -> list[Entry]:
    """The last `count`; of those that are as roomy as the first of them, the ones that joined first."""
    if len(entries) <= count:
        return entries
    bound = entries[-count][0]
    equal = bisect_left(entries, (bound, -1, b""))
    above = [entry for entry in entries[-count:] if entry[0] > bound]
    return [*entries[equal : equal + count - len(above)], *above]
