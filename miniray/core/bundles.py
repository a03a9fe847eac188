"""A placement group's record, and `plan_bundles`: which nodes can take its bundles.

Planning is a pure function over the policy's view:

- STRICT_PACK: all on one node, the tightest that fits;
- PACK: the same if possible, else on few nodes, big bundles first;
- SPREAD: each on the node that has fewest bundles of the group so far;
- STRICT_SPREAD: each on a node of its own, found as a matching between bundles and nodes, so a
  placement that exists is found whatever the order.

Bundles that already have a node (the others lost theirs) count for all four. Costs about
bundles x nodes microseconds; a matching up to the square of that in bad cases.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from miniray._proto import common_pb2 as pb
from miniray.core import resources as res
from miniray.core.policy import NodeView, View, choose, matches
from miniray.core.resources import Resources


@dataclass(slots=True)
class Bundle:
    """One bundle to be placed."""

    index: int
    demand: Resources
    labels: list[pb.LabelMatch]


@dataclass(slots=True)
class Group:
    """One placement group; `info` is its public row, with the node of each settled bundle."""

    info: pb.PlacementGroupInfo
    bundles: dict[int, Bundle]
    attempt: int = 0
    planned: dict[int, bytes] = field(default_factory=dict)
    """Being prepared: node by bundle index."""
    awaited: dict[bytes, int] = field(default_factory=dict)
    """Nodes whose answer to PREPARE is missing, with the number of the placement."""
    committed: dict[int, None] = field(default_factory=dict)
    avoid: dict[bytes, None] = field(default_factory=dict)
    """Nodes that refused since their last heartbeat."""
    shape: bytes = b""
    """Equal for groups that find places, or none, together."""

    @property
    def id(self) -> bytes:
        """The group's id."""
        return self.info.placement_group_id

    def by_node(self, where: Mapping[int, bytes]) -> dict[bytes, list[int]]:
        """Bundle indices per node."""
        nodes: dict[bytes, list[int]] = {}
        for index, node_id in sorted(where.items()):
            nodes.setdefault(node_id, []).append(index)
        return nodes

    def demand(self, indices: Iterable[int]) -> Resources:
        """What these bundles need together."""
        return res.total_of(self.bundles[index].demand for index in indices)

    def planned_demand(self, node_id: bytes) -> Resources:
        """What the present attempt takes of this node."""
        return self.demand(index for index, where in self.planned.items() if where == node_id)

    def settled(self) -> dict[int, bytes]:
        """Nodes of the bundles that are decided on."""
        return {b.index: b.node_id for b in self.info.bundles if b.node_id}

    def nodes(self) -> dict[bytes, None]:
        """Where it has bundles, or tries for some."""
        return dict.fromkeys((*self.settled().values(), *self.planned.values()))

    def missing(self) -> list[Bundle]:
        """Bundles without a node."""
        return [self.bundles[b.index] for b in self.info.bundles if not b.node_id]

    @classmethod
    def of(cls, info: pb.PlacementGroupInfo) -> Group:
        """A new or restored group; what a CREATED one holds is committed."""
        bundles = {
            b.index: Bundle(b.index, res.demand_from_map(b.resources), list(b.labels)) for b in info.bundles
        }
        wanted = [pb.BundleInfo(resources=b.resources, labels=b.labels) for b in info.bundles]
        shape = pb.PlacementGroupInfo(strategy=info.strategy, bundles=wanted)
        group = cls(info, bundles, shape=shape.SerializeToString(deterministic=True))
        if info.state == pb.GROUP_CREATED:
            group.committed = dict.fromkeys(group.settled())
        return group

    def check(self) -> None:
        """Assert every invariant of one group."""
        settled, planned = self.settled(), self.planned
        assert not settled.keys() & planned.keys(), "decided and planned"
        assert self.committed.keys() <= settled.keys(), "committed but not decided"
        assert all(node_id in planned.values() for node_id in self.awaited)
        if self.info.state == pb.GROUP_CREATED:
            assert len(self.committed) == len(self.bundles), "created but not whole"
        if self.info.strategy == pb.STRICT_SPREAD:
            places = [*settled.values(), *planned.values()]
            assert len(places) == len(set(places)), "two bundles on one node"


class Places:
    """Which groups have bundles on a node, or try to: what comes and goes with it looks at no others."""

    def __init__(self) -> None:
        self._groups: dict[bytes, dict[bytes, None]] = {}

    def add(self, group_id: bytes, nodes: Iterable[bytes]) -> None:
        """The group has, or tries for, something on these nodes."""
        for node_id in nodes:
            self._groups.setdefault(node_id, {})[group_id] = None

    def discard(self, group_id: bytes, nodes: Iterable[bytes]) -> None:
        """It has nothing there any more."""
        for node_id in nodes:
            groups = self._groups.get(node_id)
            if groups is not None:
                groups.pop(group_id, None)
                if not groups:
                    del self._groups[node_id]

    def on(self, node_id: bytes) -> list[bytes]:
        """A copy: the caller may change what it goes through."""
        return list(self._groups.get(node_id, ()))

    def check(self, groups: Mapping[bytes, Group]) -> None:
        """Assert that this is where these groups are."""
        places = {(node_id, group_id) for node_id, some in self._groups.items() for group_id in some}
        assert places == {(node_id, group.id) for group in groups.values() for node_id in group.nodes()}


@dataclass(slots=True)
class Plan:
    """`nodes` by bundle index; None when there is no room now, and `reason` says why."""

    nodes: dict[int, bytes] | None
    feasible: bool = True
    reason: str = ""


class _Pool:
    """The candidates with what would be left on each of them."""

    def __init__(self, nodes: list[NodeView], empty: bool) -> None:
        self.nodes = nodes
        self.free = {n.node_id: dict(n.total if empty else n.available) for n in nodes}
        self.count = {n.node_id: 0 for n in nodes}

    def takes(self, node: NodeView, bundle: Bundle) -> bool:
        return res.fits(bundle.demand, self.free[node.node_id]) and matches(node.labels, bundle.labels)

    def put(self, node_id: bytes, bundle: Bundle) -> None:
        res.subtract(self.free[node_id], bundle.demand)
        self.count[node_id] += 1

    def slack(self, node: NodeView, bundle: Bundle) -> float:
        """What would be left, as a share, of the scarcest resource that the bundle needs."""
        free = self.free[node.node_id]
        return min((free[name] - amount) / node.total[name] for name, amount in bundle.demand.items())


def plan_bundles(
    view: View,
    bundles: list[Bundle],
    strategy: pb.GroupStrategy,
    *,
    taken: Mapping[int, bytes],
    avoid: Container[bytes] = (),
) -> Plan:
    """Places for `bundles`; `taken` are the nodes of the group's other bundles, by index."""
    alive = [node for node in view.values() if node.state == pb.NODE_ALIVE]
    free = [node for node in alive if node.node_id not in avoid]
    nodes = _assign(_Pool(free, False), bundles, strategy, taken)
    if nodes is not None:
        return Plan(nodes)
    feasible = _assign(_Pool(alive, True), bundles, strategy, taken) is not None
    return Plan(None, feasible, _reason(view, alive, bundles, strategy, taken))


def _assign(
    pool: _Pool, bundles: list[Bundle], strategy: pb.GroupStrategy, taken: Mapping[int, bytes]
) -> dict[int, bytes] | None:
    for node_id in taken.values():
        if node_id in pool.count:
            pool.count[node_id] += 1
    if strategy == pb.STRICT_SPREAD:
        used = dict.fromkeys(taken.values())
        pool.nodes = [node for node in pool.nodes if node.node_id not in used]
        return _one_each(pool, bundles)
    if strategy == pb.SPREAD:
        return _spread(pool, bundles)
    together = _together(pool, bundles, taken)
    if together is not None or strategy == pb.STRICT_PACK:
        return together
    return _pack(pool, bundles)


def _together(pool: _Pool, bundles: list[Bundle], taken: Mapping[int, bytes]) -> dict[int, bytes] | None:
    """All on one node: the one that holds the others already, else the tightest."""
    whole = Bundle(-1, res.total_of(b.demand for b in bundles), [m for b in bundles for m in b.labels])
    fitting = [node for node in pool.nodes if pool.takes(node, whole)]
    if taken:
        home = dict.fromkeys(taken.values())
        fitting = [node for node in fitting if node.node_id in home]
    if not fitting:
        return None
    best = min(fitting, key=lambda node: pool.slack(node, whole))
    return {bundle.index: best.node_id for bundle in bundles}


def _pack(pool: _Pool, bundles: list[Bundle]) -> dict[int, bytes] | None:
    """Big bundles first, on nodes that have some already, else on the one with most room."""
    nodes: dict[int, bytes] = {}
    for bundle in _big_first(bundles):
        fitting = [node for node in pool.nodes if pool.takes(node, bundle)]
        if not fitting:
            return None
        best = max(fitting, key=lambda node: (pool.count[node.node_id] > 0, pool.slack(node, bundle)))
        pool.put(best.node_id, bundle)
        nodes[bundle.index] = best.node_id
    return nodes


def _spread(pool: _Pool, bundles: list[Bundle]) -> dict[int, bytes] | None:
    """Each where fewest are; equal ones where most room is."""
    nodes: dict[int, bytes] = {}
    for bundle in _big_first(bundles):
        fitting = [node for node in pool.nodes if pool.takes(node, bundle)]
        if not fitting:
            return None
        best = min(fitting, key=lambda node: (pool.count[node.node_id], -pool.slack(node, bundle)))
        pool.put(best.node_id, bundle)
        nodes[bundle.index] = best.node_id
    return nodes


def _one_each(pool: _Pool, bundles: list[Bundle]) -> dict[int, bytes] | None:
    """A matching of bundles to distinct nodes by augmenting paths (Kuhn)."""
    choices = {
        bundle.index: [node.node_id for node in pool.nodes if pool.takes(node, bundle)] for bundle in bundles
    }
    holder: dict[bytes, int] = {}

    def place(index: int, tried: dict[bytes, None]) -> bool:
        for node_id in choices[index]:
            if node_id in tried:
                continue
            tried[node_id] = None
            if node_id not in holder or place(holder[node_id], tried):
                holder[node_id] = index
                return True
        return False

    # bundles with few choices first: paths stay short
    for index in sorted(choices, key=lambda index: len(choices[index])):
        if not place(index, {}):
            return None
    return {index: node_id for node_id, index in holder.items()}


def _big_first(bundles: list[Bundle]) -> list[Bundle]:
    """By accelerators, then by CPUs, then by the rest; equal ones in their order."""

    def weight(bundle: Bundle) -> tuple[int, int, int]:
        demand = bundle.demand
        slotted = sum(demand.get(name, 0) for name in res.SLOTTED)
        return -slotted, -demand.get(res.CPU, 0), -sum(demand.values())

    return sorted(bundles, key=weight)


def _reason(
    view: View,
    alive: list[NodeView],
    bundles: list[Bundle],
    strategy: pb.GroupStrategy,
    taken: Mapping[int, bytes],
) -> str:
    """What stands in the way, with its figures."""
    for bundle in bundles:
        choice = choose(view, bundle.demand, pb.SchedulingStrategy(labels=bundle.labels))
        if choice.node_id is None:
            return f"bundle {bundle.index}: {choice.reason}"
    name = pb.GroupStrategy.Name(strategy)
    if strategy == pb.STRICT_SPREAD:
        wanted = len(bundles) + len(taken)
        if len(alive) < wanted:
            return f"{name} needs {wanted} nodes, one for each bundle: {len(alive)} are alive"
        return f"{name} needs {len(bundles)} different nodes with room for one bundle each"
    if strategy == pb.STRICT_PACK:
        whole = res.total_of(bundle.demand for bundle in bundles)
        choice = choose(view, whole, pb.SchedulingStrategy())
        together = choice.reason or f"no node that matches has {res.render(whole)}"
        return f"{name} needs all bundles on one node: {together}"
    whole = res.total_of(bundle.demand for bundle in bundles)
    return f"each bundle would fit somewhere, but not all of {res.render(whole)} at the same time"
