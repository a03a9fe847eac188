"""Where does this demand run, and if nowhere, why: `choose`, the one function that answers.

Used by the GCS for actors and by every raylet for leases, over the view each of them has of the
nodes. The order of the rules:

1. a node must be alive and must match the hard labels; a hard node affinity names the only
   candidate, a soft one goes first while that node could ever serve the demand; where the hard
   labels find no room, the strategy's fallbacks are tried in their order;
2. SPREAD takes the first node with room in turn, so that equal demands go round;
3. otherwise the node that holds most argument bytes, if it has room;
4. otherwise *hybrid*: pack until a node is half used, in the view's order and starting with the
   local node, then spread over the 20 % least used nodes. Nodes with a GPU come last for
   demands without one.
Soft labels restrict the candidates while one of those that match has room. A bundle choice is
plain resource names by the time it gets here (`demand_of`).

Pure and stateless: whoever calls keeps the turn counter and the seeded generator. Cost: about
1 µs per node looked at; packing stops at the first nodes that fit.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

from miniray._proto.common_pb2 import (
    NODE_ALIVE,
    NODE_DRAINING,
    LabelMatch,
    NodeInfo,
    SchedulingClass,
    SchedulingStrategy,
)
from miniray.core import resources as res
from miniray.core.resources import Resources

SPREAD_THRESHOLD = 0.5
"""Nodes are packed up to this use of their scarcest resource."""

LABELS_SHOWN = 5
"""Values of one label that a reason names."""
NEAR = 0.75
"""From 0 to 1: how alike two names must be for one to be a slip for the other."""
TOP_FRACTION = 0.2
"""Share of the nodes among which the final choice is random."""

_GPU_PENALTY = 2.0
"""Added to the score of a GPU node for demands without GPU; scores are at most 1."""


@dataclass(slots=True)
class NodeView:
    """What is known of one node."""

    node_id: bytes
    name: str = ""
    total: Resources = field(default_factory=dict)
    available: Resources = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    state: int = NODE_ALIVE

    @classmethod
    def of(cls, info: NodeInfo) -> NodeView:
        """The view of a node from its published row."""
        return cls(
            info.node_id,
            info.node_name,
            res.from_map(info.total),
            res.from_map(info.available),
            dict(info.labels),
            NODE_DRAINING if info.takes_no_work and info.state == NODE_ALIVE else info.state,
        )

    def title(self) -> str:
        """What people call it."""
        return self.name or self.node_id.hex()[:8]


View = Mapping[bytes, NodeView]
"""The nodes by id, in a stable order (joining order): packing follows it."""


@dataclass(slots=True, frozen=True)
class Choice:
    """The answer. `reason` is a sentence when there is no node, "" otherwise."""

    node_id: bytes | None
    feasible: bool = True
    """Some node could serve the demand once others release what they hold."""
    reason: str = ""
    hopeless: bool = False
    """Not even a new node would help: the named node is dead, gone or too small. A raylet whose
    view may lag behind should look again a second later before it refuses."""


def demand_of(scheduling_class: SchedulingClass, resources: Resources | None = None) -> Resources:
    """The plain resource names and amounts a class asks for, bundle choice included.

    `resources` replaces the class's own (an actor's lifetime resources, say).
    """
    amounts = res.demand_from_map(scheduling_class.resources) if resources is None else resources
    strategy = scheduling_class.strategy
    if strategy.WhichOneof("kind") != "bundle":
        return amounts
    return res.bundle_demand(amounts, strategy.bundle.placement_group_id, strategy.bundle.bundle_index)


def choose(
    view: View,
    demand: Resources,
    strategy: SchedulingStrategy,
    *,
    local: bytes | None = None,
    arguments: Mapping[bytes, int] | None = None,
    rng: Random | None = None,
    turn: int = 0,
    avoid: Container[bytes] = (),
) -> Choice:
    """The node for `demand`, or the reason why there is none now.

    `demand` comes from `demand_of`. `local` is preferred while it is not above the threshold;
    `arguments` are bytes of the task's arguments by node; `turn` counts the caller's SPREAD
    choices; nodes in `avoid` have just refused and do not get work now, though they still count
    as feasible. Without `rng` the best node wins instead of a random one of the best.
    """
    if strategy.WhichOneof("kind") == "affinity":
        answer = _by_affinity(view, demand, strategy, avoid)
        if answer is not None:
            return answer
    alive = [node for node in view.values() if node.state == NODE_ALIVE]
    refusal: Choice | None = None
    for wanted in (strategy.labels, *(fallback.matches for fallback in strategy.fallbacks)):
        nodes = [node for node in alive if matches(node.labels, wanted)] if wanted else alive
        tiers = [nodes]
        if strategy.soft_labels:
            tiers.insert(0, [node for node in nodes if matches(node.labels, strategy.soft_labels)])
        for tier in tiers:
            if strategy.spread:
                node_id = _spread(tier, demand, turn, avoid)
            else:
                node_id = _most_bytes(tier, demand, local, arguments, avoid) if arguments else None
                if node_id is None:
                    node_id = _hybrid(tier, demand, local, rng, avoid)
            if node_id is not None:
                return Choice(node_id)
        if refusal is None or not refusal.feasible:     # it waits for the first that could ever serve it
            refusal = _no_room(nodes, demand, strategy, alive)
    assert refusal is not None
    return refusal


def is_default(strategy: SchedulingStrategy) -> bool:
    """Whether it restricts nothing and asks for nothing: the hybrid rule alone decides."""
    return strategy.WhichOneof("kind") is None and not strategy.labels and not strategy.soft_labels


def has_room(node: NodeView, demand: Resources) -> bool:
    """Whether the node could start `demand` now, by what is known of it."""
    return _within(demand, node.available, node.total)


def is_feasible(node: NodeView, demand: Resources) -> bool:
    """Whether the node could start `demand` if it were empty."""
    return _within(demand, node.total, node.total)


def _within(demand: Resources, amounts: Resources, total: Resources) -> bool:
    if not res.fits(demand, amounts):
        return False
    bindings = res.bundle_bindings(demand, total)
    return bindings is None or any(res.fits(bound, amounts) for bound in bindings)


# ---- the rules -----------------------------------------------------------------------------


def _by_affinity(
    view: View, demand: Resources, strategy: SchedulingStrategy, avoid: Container[bytes]
) -> Choice | None:
    """Rule 1. None: a soft affinity that cannot be met; the other rules decide."""
    affinity = strategy.affinity
    node = view.get(affinity.node_id)
    if node is not None and node.state == NODE_ALIVE and is_feasible(node, demand):
        if has_room(node, demand) and node.node_id not in avoid:
            return Choice(node.node_id)
        if affinity.soft and affinity.spill_on_unavailable:
            return None
        lack = _shortage([node], demand)
        if affinity.fail_on_unavailable:
            return Choice(None, False, f"node {node.title()}, the only one allowed: {lack}", hopeless=True)
        return Choice(None, True, lack)
    if affinity.soft:
        return None
    if node is None or node.state != NODE_ALIVE:
        title = node.title() if node is not None else affinity.node_id.hex()[:8]
        return Choice(None, False, f"node {title}, the only one allowed, is not alive", hopeless=True)
    return Choice(
        None, False, f"node {node.title()}, the only one allowed: {_too_small([node], demand)}", hopeless=True
    )


def _spread(nodes: list[NodeView], demand: Resources, turn: int, avoid: Container[bytes]) -> bytes | None:
    """Rule 2: the first node with room, starting at the turn's."""
    count = len(nodes)
    for step in range(count):
        node = nodes[(turn + step) % count]
        if has_room(node, demand) and node.node_id not in avoid:
            return node.node_id
    return None


def _most_bytes(
    nodes: Iterable[NodeView],
    demand: Resources,
    local: bytes | None,
    arguments: Mapping[bytes, int],
    avoid: Container[bytes],
) -> bytes | None:
    """Rule 3: the node with more argument bytes than any other, and than the local one."""
    best, best_bytes = None, arguments.get(local, 0) if local is not None else 0
    for node in nodes:
        held = arguments.get(node.node_id, 0)
        if held > best_bytes:
            best, best_bytes = node, held
    if best is None or best.node_id in avoid or not has_room(best, demand):
        return None
    return best.node_id


def _hybrid(
    nodes: list[NodeView], demand: Resources, local: bytes | None, rng: Random | None, avoid: Container[bytes]
) -> bytes | None:
    """Rule 4."""
    top = number_of_best(len(nodes))
    scored: list[tuple[float, int]] = []
    idle = 0
    for position, node in _local_first(nodes, local):
        if node.node_id in avoid or not has_room(node, demand):
            continue
        mark = score(node, demand)
        if mark == 0.0:
            if node.node_id == local:
                return local
            idle += 1
            if idle == top:
                # nodes come in packing order: nothing later can beat these
                scored = [entry for entry in scored if entry[0] == 0.0]
                scored.append((mark, position))
                break
        scored.append((mark, position))
    if not scored:
        return None
    scored.sort()
    if local is not None:
        best = [position for mark, position in scored if mark == scored[0][0]]
        for position in best:
            if nodes[position].node_id == local:
                return local
    pick = 0 if rng is None else rng.randrange(min(top, len(scored)))
    return nodes[scored[pick][1]].node_id


def _local_first(nodes: list[NodeView], local: bytes | None) -> Iterable[tuple[int, NodeView]]:
    """(position, node) in packing order; the local node, if it is there, before the others."""
    order = list(enumerate(nodes))
    if local is not None:
        for position, node in order:
            if node.node_id == local:
                order.insert(0, order.pop(position))
                break
    return order


def number_of_best(count: int) -> int:
    """Among how many of `count` nodes the choice is random."""
    return max(1, int(count * TOP_FRACTION))


def score(node: NodeView, demand: Resources) -> float:
    """How used the node would be: 0 below the threshold, else the share of its scarcest resource."""
    worst = 0.0
    for name in demand if res.CPU in demand else (*demand, res.CPU):
        total = node.total.get(name, 0)
        if total:
            use = (total - node.available.get(name, 0) + demand.get(name, 0)) / total
            if use > worst:
                worst = use
    mark = 0.0 if worst <= SPREAD_THRESHOLD else worst
    if res.GPU in node.total and res.GPU not in demand:
        mark += _GPU_PENALTY
    return mark


# ---- labels --------------------------------------------------------------------------------


def matches(labels: Mapping[str, str], wanted: Iterable[LabelMatch]) -> bool:
    """Whether a node's labels satisfy every condition."""
    return all(_matches(labels, match) for match in wanted)


def _matches(labels: Mapping[str, str], match: LabelMatch) -> bool:
    if match.operator == LabelMatch.EXISTS:
        return match.key in labels
    if match.operator == LabelMatch.NOT_EXISTS:
        return match.key not in labels
    inside = labels.get(match.key) in match.values if match.key in labels else False
    return inside if match.operator == LabelMatch.IN else not inside


def describe_labels(wanted: Iterable[LabelMatch]) -> str:
    """The conditions for people: `zone in (a, b) and gpu exists`."""
    words = {LabelMatch.IN: "in", LabelMatch.NOT_IN: "not in"}
    parts = []
    for match in wanted:
        if match.operator in words:
            parts.append(f"{match.key} {words[match.operator]} ({', '.join(match.values)})")
        else:
            verb = "exists" if match.operator == LabelMatch.EXISTS else "does not exist"
            parts.append(f"{match.key} {verb}")
    return " and ".join(parts)


# ---- reasons -------------------------------------------------------------------------------


def _no_room(
    nodes: list[NodeView], demand: Resources, strategy: SchedulingStrategy, alive: list[NodeView]
) -> Choice:
    """Nobody has room: is there someone who could, and what is missing?"""
    if not nodes:
        if strategy.labels:
            choices = [strategy.labels, *(fallback.matches for fallback in strategy.fallbacks)]
            wanted = "; or ".join(describe_labels(choice) for choice in choices)
            offered = _labels_of(alive, [match.key for choice in choices for match in choice])
            return Choice(None, False, f"no live node has labels where {wanted}{offered}")
        return Choice(None, False, "the cluster has no live node")
    able = [node for node in nodes if is_feasible(node, demand)]
    if not able:
        return Choice(None, False, _too_small(nodes, demand))
    return Choice(None, True, _shortage(able, demand))


def _labels_of(nodes: list[NodeView], keys: Iterable[str]) -> str:
    """What the nodes have of these labels instead; "" without nodes."""
    if not nodes:
        return ""
    parts = []
    for key in dict.fromkeys(keys):
        found = list(dict.fromkeys(node.labels[key] for node in nodes if key in node.labels))
        more = ", …" if len(found) > LABELS_SHOWN else ""
        parts.append(f"{key} is {', '.join(found[:LABELS_SHOWN])}{more}" if found else f"none has {key}")
    return f"; on the live ones {' and '.join(parts)}"


def _too_small(nodes: list[NodeView], demand: Resources) -> str:
    """Why no node could serve the demand, even when it is empty."""
    group = _group_sentence(nodes, demand, "total")
    if group:
        return group
    cluster = res.total_of(_plain(node.total) for node in nodes)
    for name, amount in demand.items():
        asked = res.render_amount(name, amount)
        largest = max(nodes, key=lambda node: node.total.get(name, 0))
        most = largest.total.get(name, 0)
        if not most:
            whose = "the cluster's resources are" if len(nodes) > 1 else "its resources are"
            where = "no node has" if len(nodes) > 1 else f"node {nodes[0].title()} does not have"
            return f"{where} '{name}' (asked {asked}): {whose} {res.render(cluster)}{_meant(name, cluster)}"
        if most < amount:
            held = f"{res.render_amount(name, most)} on {largest.title()}"
            return f"no node has {asked} {name}: the most is {held}"
    together = res.render(demand)
    return f"no single node has {together} together: the cluster's resources are {res.render(cluster)}"


def _meant(name: str, offered: Resources) -> str:
    """The name that was probably meant by one that nobody has."""
    import difflib

    known = list(dict.fromkeys(("CPU", "GPU", *offered)))
    same = [one for one in known if one.lower() == name.lower() and one != name]
    near = same or difflib.get_close_matches(name, [one for one in known if one != name], 1, NEAR)
    return f"; was '{near[0]}' meant?" if near else ""


def _shortage(able: list[NodeView], demand: Resources) -> str:
    """What the nodes that could serve the demand lack now."""
    group = _group_sentence(able, demand, "available")
    if group:
        return group
    for name, amount in demand.items():
        freest = max(able, key=lambda node: node.available.get(name, 0))
        most = freest.available.get(name, 0)
        if most < amount:
            needed, free = res.render_amount(name, amount), res.render_amount(name, max(0, most))
            return f"waiting for {name}: {needed} needed, at most {free} free on {freest.title()}"
    where = able[0].title() if len(able) == 1 else "one node"
    return f"waiting for {res.render(demand)} together on {where}"


def _group_sentence(nodes: list[NodeView], demand: Resources, which: str) -> str:
    """The reason for a demand inside a placement group; "" for other demands."""
    named = [(name, group) for name in demand if (group := res.group_of(name)) is not None]
    if not named:
        return ""
    pg_hex, index = max((group for _, group in named), key=lambda group: group[1])
    bundle = f"bundle {index} of placement group" if index >= 0 else "placement group"
    if not any(f"_{pg_hex}" in name for node in nodes for name in node.total):
        return f"placement group {pg_hex} has no bundle on a live node"
    for name, group in named:
        pools = [node.total if which == "total" else node.available for node in nodes]
        most = max(pool.get(name, 0) for pool in pools)
        if group[1] != index or most >= demand[name]:
            continue
        base, asked = res.base_name(name), res.render_amount(name, demand[name])
        held = res.render_amount(name, max(0, most))
        if which == "available":
            return f"waiting for {base} in {bundle} {pg_hex}: {asked} needed, at most {held} free"
        has = f"has only {held} {base}" if most else f"has no {base}"
        return f"{bundle} {pg_hex} {has} (asked {asked})"
    return f"waiting for room in {bundle} {pg_hex}"


def _plain(total: Resources) -> Resources:
    """Without bundle pools and node:<ip>, which say nothing to people."""
    return {n: a for n, a in total.items() if res.group_of(n) is None and not n.startswith("node:")}
