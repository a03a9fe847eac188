"""How many nodes of which type a cluster needs: start some, stop some, or say why not.

::

    pending demand ─┐                        ┌─▶ start: so many of a type
    nodes, idle ────┼─▶ Scaler.decide(now) ──┼─▶ stop: idle nodes nobody will need
    nodes on the way┘                        └─▶ refused: demand that no type can serve, or no quota

Demand is packed, biggest first, into what living nodes have free, then into nodes on their way, then
into new ones of the type that is filled best. A group that must be together is one demand, one that must be
apart takes a node for each bundle. What may be started at once is bounded by `speed` times the cluster.

Nothing is stopped that demand was packed into, nor before it was idle for `idle_s`; so a node that was
started for work lives at least as long as that, and nodes do not come and go. Pure; the shell is
`miniray.autoscaler`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from miniray.core import resources as res
from miniray.core.resources import Resources

START_AT_LEAST = 5
"""So many may always be on their way at once, whatever `speed` says of a small cluster."""


@dataclass(frozen=True)
class NodeType:
    """A kind of node that can be started."""

    name: str
    resources: Resources
    min_nodes: int = 0
    max_nodes: int = 10


@dataclass(frozen=True)
class Options:
    """The rules."""

    types: tuple[NodeType, ...]
    max_nodes: int = 100
    """Of all types together."""
    idle_s: float = 300.0
    speed: float = 1.0
    """Nodes on their way at once, as a multiple of those there are."""
    settle_s: float = 0.0
    """So long must more nodes have been wanted, at each look, before they are started."""
    start_within_s: float = 600.0
    """A node that was started and has not joined by then is not counted on any more."""


@dataclass(frozen=True)
class Wanted:
    """Pending demand of one shape. `bundles` are together on one node, or each apart, if that is asked."""

    bundles: tuple[Resources, ...]
    count: int = 1
    together: bool = False
    apart: bool = False


@dataclass
class NodeState:
    """A living node. `handle` is the provider's; "" for one that is not its."""

    handle: str
    type_name: str
    available: Resources
    is_idle: bool


@dataclass
class Decision:
    """What to do. Nodes to start by type, handles to stop, and what could not be helped."""

    start: dict[str, int] = field(default_factory=dict)
    stop: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass
class _Bin:
    """A node, or one to be, while demand is packed."""

    free: Resources
    type_name: str
    handle: str = ""
    is_new: bool = False
    is_used: bool = False
    tags: dict[int, None] = field(default_factory=dict)
    """The group being packed has a bundle here, and they must be apart."""


class Scaler:
    """See the module head."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._types = {kind.name: kind for kind in options.types}
        self._coming: dict[str, tuple[str, float]] = {}
        """Started and not seen yet: type and time, by handle."""
        self._idle_since: dict[str, float] = {}
        self._wishes: list[tuple[float, dict[str, int]]] = []
        """What was to be started at the looks of the last `settle_s`, and at one before."""

    def started(self, now: float, handle: str, type_name: str) -> None:
        """The provider has started a node."""
        self._coming[handle] = (type_name, now)
        for _, wish in self._wishes:
            wish[type_name] = wish.get(type_name, 0) - 1

    def failed(self, handle: str) -> None:
        """The provider has lost a node that was on its way."""
        self._coming.pop(handle, None)

    def decide(self, now: float, nodes: Iterable[NodeState], wanted: Iterable[Wanted]) -> Decision:
        """What to do now. `nodes` are all living ones, `wanted` all that is pending."""
        living = list(nodes)
        self._look(now, living)
        decision = Decision()
        bins = [_Bin(dict(node.available), node.type_name, node.handle) for node in living]
        bins += [_Bin(dict(self._types[name].resources), name) for name, _ in self._coming.values()]
        self._keep_minimum(bins)
        for number, want in enumerate(sorted(wanted, key=_weight, reverse=True)):
            for _ in range(want.count):
                if not self._pack(bins, want, number, decision):
                    break
        for one in bins:
            if one.is_new:
                decision.start[one.type_name] = decision.start.get(one.type_name, 0) + 1
        self._settle(now, decision)
        self._slow_down(decision, len(living))
        self._stop_idle(now, living, bins, decision)
        return decision

    def _look(self, now: float, living: list[NodeState]) -> None:
        """Who has come, who is idle and since when."""
        known = {node.handle: node for node in living if node.handle}
        late = now - self.options.start_within_s
        self._coming = {
            handle: (name, at) for handle, (name, at) in self._coming.items()
            if handle not in known and at > late and name in self._types
        }  # fmt: skip
        self._idle_since = {
            handle: self._idle_since.get(handle, now) for handle, node in known.items() if node.is_idle
        }

    def _keep_minimum(self, bins: list[_Bin]) -> None:
        for kind in self.options.types:
            have = sum(one.type_name == kind.name for one in bins)
            for _ in range(have, kind.min_nodes):
                self._open(bins, kind)

    # ---- packing

    def _pack(self, bins: list[_Bin], want: Wanted, number: int, decision: Decision) -> bool:
        """Find room for one of these. False: the next of its kind would fare no better."""
        parts = sorted(want.bundles, key=_size, reverse=True)
        if want.together:
            parts = [res.total_of(want.bundles)]
        tag = number if want.apart else None
        taken: list[tuple[_Bin, Resources]] = []
        opened = len(bins)
        for part in parts:
            place = next((one for one in bins if _takes(one, part, tag)), None)
            if place is None:
                place = self._new(bins, part, decision)
            if place is None:
                for one, demand in taken:  # all or nothing
                    res.add(one.free, demand)
                    one.tags.clear()
                del bins[opened:]
                return False
            res.subtract(place.free, part)
            taken.append((place, part))
            if tag is not None:
                place.tags[tag] = None
        for place, _ in taken:
            place.is_used = True
            place.tags.clear()
        return True

    def _new(self, bins: list[_Bin], part: Resources, decision: Decision) -> _Bin | None:
        """A node of the type that the demand fills best; None, with the reason, if none may be started."""
        able = [kind for kind in self.options.types if res.fits(part, kind.resources)]
        if not able:
            decision.refused.append(f"no node type has {res.render(part)}")
            return None
        open_ = [kind for kind in able if sum(one.type_name == kind.name for one in bins) < kind.max_nodes]
        mine = sum(one.type_name in self._types for one in bins)
        if not open_ or mine >= self.options.max_nodes:
            names = ", ".join(f"{kind.name} (at most {kind.max_nodes})" for kind in able)
            decision.refused.append(f"{res.render(part)} needs one more of {names}, of {mine} nodes in all")
            return None
        return self._open(bins, max(open_, key=lambda kind: _use(part, kind.resources)))

    @staticmethod
    def _open(bins: list[_Bin], kind: NodeType) -> _Bin:
        bins.append(_Bin(dict(kind.resources), kind.name, is_new=True))
        return bins[-1]

    # ---- bounds

    def _settle(self, now: float, decision: Decision) -> None:
        """Start what has been wanted for a while: a node may say that it works before others say that what
        it does has left their queue, and in between the work seems to want one more."""
        wishes = self._wishes
        wishes.append((now, dict(decision.start)))
        settled = now - self.options.settle_s
        while len(wishes) > 1 and wishes[1][0] <= settled:
            del wishes[0]
        if wishes[0][0] > settled:
            decision.start = {}
            return
        least = {name: min(wish.get(name, 0) for _, wish in wishes) for name in decision.start}
        decision.start = {name: count for name, count in least.items() if count > 0}

    def _slow_down(self, decision: Decision, living: int) -> None:
        """Start no more at once than the cluster's size allows; the rest comes with the next decisions."""
        may = max(START_AT_LEAST, int(self.options.speed * living)) - len(self._coming)
        for name in list(decision.start):
            count = decision.start[name] = max(0, min(decision.start[name], may))
            may -= count
            if not count:
                del decision.start[name]

    def _stop_idle(self, now: float, living: list[NodeState], bins: list[_Bin], decision: Decision) -> None:
        used = {one.handle for one in bins if one.is_used}
        counts: dict[str, int] = {}
        for one in bins:
            counts[one.type_name] = counts.get(one.type_name, 0) + (not one.is_new)
        for handle, since in sorted(self._idle_since.items(), key=lambda item: item[1]):
            node = next(node for node in living if node.handle == handle)
            kind = self._types.get(node.type_name)
            spare = counts[node.type_name] > (kind.min_nodes if kind is not None else 0)
            if now - since >= self.options.idle_s and handle not in used and spare:
                counts[node.type_name] -= 1
                decision.stop.append(handle)


def _takes(one: _Bin, part: Mapping[str, int], tag: int | None) -> bool:
    return res.fits(part, one.free) and (tag is None or tag not in one.tags)


def _use(part: Mapping[str, int], offered: Mapping[str, int]) -> float:
    """How much of a new node the demand would fill: of all that it offers, what is least used."""
    return min((part.get(name, 0) / amount for name, amount in offered.items() if amount), default=0.0)


def _size(part: Mapping[str, int]) -> tuple[int, int]:
    slotted = sum(part.get(name, 0) for name in res.SLOTTED)
    return slotted, sum(part.values())


def _weight(want: Wanted) -> tuple[int, tuple[int, int]]:
    """Groups first, for they are the hardest to place; then by size."""
    return len(want.bundles), _size(res.total_of(want.bundles))
