"""Resource arithmetic: fixed-point amounts, one node's pool, accelerator slots, bundle pools.

An amount is an int in units of 1/10,000 (`UNIT` = 1.0), so that a thousand acquisitions of 0.1
and their releases end exactly where they began. A *demand* is a plain `dict[str, int]` without
zero entries; the same shape describes totals and what is available.

A placement group's bundle takes its resources out of the node's pool when it is prepared; when
it is committed they come back under names of their own, as in Ray::

    CPU_group_<index>_<pg hex>   the bundle's own pool
    CPU_group_<pg hex>           the sum over the group's bundles on this node ("any bundle")
    bundle_group_...             a marker, 1,000.0 per bundle, so that a demand of nothing can
                                 still be bound to a bundle (it takes 0.001 of it)

so policy and leases see plain resource maps and know nothing of groups.

Pure; no thread of its own. Shared by the GCS and the raylet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from miniray._proto.common_pb2 import ResourceMap
from miniray.core.limits import MAX_AMOUNT

Resources = dict[str, int]
"""Amounts by resource name, in units of 1/10,000; zero entries are left out."""

UNIT = 10_000
"""Fixed-point units in 1.0."""

CPU = "CPU"
GPU = "GPU"
MEMORY = "memory"
OBJECT_STORE_MEMORY = "object_store_memory"
HEAD_NODE = "node:__internal_head__"

SLOTTED = ("GPU", "TPU", "neuron_cores", "HPU", "NPU")
"""Resources made of numbered devices: an acquisition names the devices it got."""

_GROUP = "_group_"
_MARKER = "bundle"
_MARKER_SUPPLY = 1000 * UNIT
_MARKER_DEMAND = UNIT // 1000


def node_resource(address: str) -> str:
    """The resource (1.0 per node) that pins work to the node with this IP address."""
    return f"node:{address}"


def accelerator_resource(kind: str) -> str:
    """The resource (1.0 per node) that says which accelerator model a node has."""
    return f"accelerator_type:{kind}"


# ---- amounts -------------------------------------------------------------------------------


def to_fixed(amount: float) -> int:
    """`amount` in units of 1/10,000, rounded to the nearest; ValueError when it is negative, or no number."""
    if not 0 <= amount <= MAX_AMOUNT // UNIT:
        raise ValueError(f"a resource amount must not be negative or above {MAX_AMOUNT // UNIT}: {amount}")
    return round(amount * UNIT)


def from_fixed(units: int) -> float:
    """Units of 1/10,000 as a plain number."""
    return units / UNIT


def from_floats(amounts: Mapping[str, float]) -> Resources:
    """A demand from plain numbers, without its zeros.

    ValueError when an amount is negative, or when more than one of a slotted resource (GPU) is
    asked for in a fraction: 1.5 devices cannot be handed out.
    """
    result = {}
    for name, amount in amounts.items():
        units = to_fixed(amount)
        if units > UNIT and units % UNIT and base_name(name) in SLOTTED:
            raise ValueError(f"{name} must be a whole number when it is above 1: {amount}")
        if units:
            result[name] = units
    return result


def from_map(message: ResourceMap) -> Resources:
    """The amounts of a protobuf map, without its zeros."""
    return {name: amount for name, amount in message.amounts.items() if amount}


def demand_from_map(message: ResourceMap) -> Resources:
    """The demand of a protobuf map: what is not positive asks for nothing, whoever sent it."""
    return {name: amount for name, amount in message.amounts.items() if amount > 0}


def to_map(amounts: Mapping[str, int]) -> ResourceMap:
    """The protobuf form, names in alphabetical order."""
    return ResourceMap(amounts=dict(sorted(amounts.items())))


def fits(demand: Mapping[str, int], available: Mapping[str, int]) -> bool:
    """Whether every amount asked for is there."""
    for name, amount in demand.items():  # noqa: SIM110 - a generator costs three times as much
        if available.get(name, 0) < amount:
            return False
    return True


def add(into: Resources, amounts: Mapping[str, int]) -> None:
    """Add `amounts` to `into`, in place."""
    for name, amount in amounts.items():
        into[name] = into.get(name, 0) + amount


def subtract(from_: Resources, amounts: Mapping[str, int]) -> None:
    """Take `amounts` from `from_`, in place; entries may become negative."""
    for name, amount in amounts.items():
        from_[name] = from_.get(name, 0) - amount


def render_amount(name: str, units: int) -> str:
    """One amount for people: memory in GiB, everything else as a short number."""
    if base_name(name) in (MEMORY, OBJECT_STORE_MEMORY):
        return f"{units / UNIT / 2**30:.4g} GiB"
    return f"{units / UNIT:.10g}"


def render(amounts: Mapping[str, int]) -> str:
    """Amounts for people: `{CPU: 4, GPU: 0.5}`, in alphabetical order."""
    return "{" + ", ".join(f"{name}: {render_amount(name, amounts[name])}" for name in sorted(amounts)) + "}"


# ---- bundles of placement groups -----------------------------------------------------------


def base_name(name: str) -> str:
    """`CPU` for `CPU`, `CPU_group_<pg>` and `CPU_group_<index>_<pg>`."""
    return name.partition(_GROUP)[0]


def group_name(name: str, pg_id: bytes, index: int = -1) -> str:
    """What resource `name` is called inside a bundle; index -1: in any bundle of the group."""
    if index < 0:
        return f"{name}{_GROUP}{pg_id.hex()}"
    return f"{name}{_GROUP}{index}_{pg_id.hex()}"


def group_of(name: str) -> tuple[str, int] | None:
    """(placement group id in hex, bundle index or -1) of a bundle resource; None for others."""
    _, found, rest = name.partition(_GROUP)
    if not found:
        return None
    index, separator, pg_hex = rest.partition("_")
    return (pg_hex, int(index)) if separator else (index, -1)


def bundle_demand(resources: Mapping[str, int], pg_id: bytes, index: int) -> Resources:
    """What a task or actor that asks for `resources` inside a bundle takes from the pools.

    With an index both the bundle's own pool and the group's are charged; with -1 the demand
    names the group only, and `NodeResources.acquire` binds it to one bundle.
    """
    demand: Resources = {}
    for name, amount in resources.items():
        demand[group_name(name, pg_id)] = amount
        if index >= 0:
            demand[group_name(name, pg_id, index)] = amount
    demand[group_name(_MARKER, pg_id)] = _MARKER_DEMAND
    if index >= 0:
        demand[group_name(_MARKER, pg_id, index)] = _MARKER_DEMAND
    return demand


def bundle_supply(resources: Mapping[str, int], pg_id: bytes, index: int) -> Resources:
    """The pools that open on a node when the bundle with `resources` is committed there."""
    supply: Resources = {}
    for name, amount in resources.items():
        supply[group_name(name, pg_id)] = amount
        supply[group_name(name, pg_id, index)] = amount
    supply[group_name(_MARKER, pg_id)] = _MARKER_SUPPLY
    supply[group_name(_MARKER, pg_id, index)] = _MARKER_SUPPLY
    return supply


def bundle_of(demand: Mapping[str, int]) -> str | None:
    """The marker of the one bundle a demand is bound to (`bundle_group_<index>_<pg>`), else None."""
    for name in demand:
        if name.startswith(_MARKER + _GROUP) and (group_of(name) or ("", -1))[1] >= 0:
            return name
    return None


def _any_bundle_group(demand: Mapping[str, int]) -> str | None:
    """The placement group (hex) of a demand that leaves the bundle open, else None."""
    group = None
    for name in demand:
        if name.startswith(_MARKER + _GROUP):
            pg_hex, index = group_of(name) or ("", -1)
            if index >= 0:
                return None
            group = pg_hex
    return group


def _bound(demand: Mapping[str, int], pg_hex: str, index: int) -> Resources:
    """An any-bundle demand, bound to one bundle: the bundle's own pools are charged as well."""
    bound = dict(demand)
    for name, amount in demand.items():
        if name.endswith(_GROUP + pg_hex):
            bound[f"{base_name(name)}{_GROUP}{index}_{pg_hex}"] = amount
    return bound


def bundle_bindings(demand: Mapping[str, int], total: Mapping[str, int]) -> list[Resources] | None:
    """The ways to bind an any-bundle demand on a node with these totals, best first: bundles that have
    least of what is not asked for (a GPU, say), then the lowest index.

    None when the demand is not of that kind and is to be taken as it is.
    """
    pg_hex = _any_bundle_group(demand)
    if pg_hex is None:
        return None
    asked = {base_name(name) for name in demand}
    unasked: dict[int, int] = {}
    for name in total:
        if name.endswith("_" + pg_hex) and _GROUP in name:
            found = group_of(name)
            if found is not None and found[0] == pg_hex and found[1] >= 0:
                unasked[found[1]] = unasked.get(found[1], 0) + (base_name(name) not in asked | {_MARKER})
    return [_bound(demand, pg_hex, index) for index in sorted(unasked, key=lambda i: (unasked[i], i))]


# ---- one node's pool -----------------------------------------------------------------------


@dataclass(slots=True)
class Allocation:
    """What one holder has: amounts, and the devices they are on. Give it back with `release`."""

    amounts: Resources
    slots: tuple[tuple[str, int, int], ...] = ()
    """(pool name, device index, amount); `base_name` of the pool gives GPU, TPU, …"""
    lent: Resources = field(default_factory=dict)
    """The part a blocked holder has lent back to the pool (its CPUs)."""
    home: _Bundle | None = None
    """The bundle it was taken from; None: the node itself."""


class _Bundle:
    """The pools of one committed bundle: what they were opened with, and whether they still are."""

    __slots__ = ("open", "slotted", "supply")

    def __init__(self, supply: Resources, slotted: tuple[str, ...]) -> None:
        self.supply = supply
        self.slotted = slotted
        self.open = True


class NodeResources:
    """A node's totals, what is available, and the devices of slotted resources.

    Available amounts never exceed the totals; they fall below zero only through `reclaim`, when
    a blocked worker wakes up while its lent CPUs are in use.
    """

    __slots__ = ("_bundles", "_slots", "available", "total", "version")

    def __init__(self, total: Mapping[str, int]) -> None:
        self.total: Resources = {name: amount for name, amount in total.items() if amount}
        self.available: Resources = dict(self.total)
        self.version = 0
        """Grows with every change: a heartbeat's version."""
        self._slots: dict[str, dict[int, int]] = {}
        self._bundles: dict[str, _Bundle] = {}
        """By the bundle's own marker name."""
        for name, amount in self.total.items():
            if name in SLOTTED:
                self._slots[name] = _devices(amount)

    # -- acquire and release

    def acquire(self, demand: Mapping[str, int]) -> Allocation | None:
        """Take `demand` out of the pool; None when it does not fit now.

        A demand for any bundle of a group is bound to the first bundle that has room for all
        of it. A slotted resource can fail to fit although the sum is there: halves of two GPUs
        are not one GPU.
        """
        bindings = bundle_bindings(demand, self.total)
        for candidate in (demand,) if bindings is None else bindings:
            if not fits(candidate, self.available):
                continue
            slots = self._pick_slots(candidate)
            if slots is not None:
                return self._take(candidate, slots)
        return None

    def release(self, allocation: Allocation) -> None:
        """Give everything back; the allocation must not be used again.

        Amounts of a bundle that has been closed meanwhile are dropped: its pool is gone.
        """
        if not _homeless(allocation):
            for name, amount in allocation.amounts.items():
                self.available[name] += amount - allocation.lent.get(name, 0)
                assert self.available[name] <= self.total[name], f"{name} released twice"
            for name, index, amount in allocation.slots:
                self._slots[name][index] += amount
        allocation.amounts = {}
        allocation.slots = ()
        allocation.lent = {}
        self.version += 1

    def reduce(self, allocation: Allocation, keep: Mapping[str, int]) -> None:
        """Shrink an allocation to the demand `keep` (an actor keeps less than its creation took).

        Amounts above what is held are ignored. The devices that are kept are the first ones.
        """
        kept = {}
        for name, amount in allocation.amounts.items():
            wanted = keep.get(name)
            if wanted is None:
                wanted = keep.get(_shared_name(name), 0)
            if wanted:
                kept[name] = min(amount, wanted)
        rest = Allocation(
            {name: amount - kept.get(name, 0) for name, amount in allocation.amounts.items()},
            home=allocation.home,
        )
        allocation.slots, rest.slots = _split_slots(allocation.slots, kept)
        rest.lent, allocation.lent = allocation.lent, {}
        for name in kept.keys() & rest.lent.keys():
            allocation.lent[name] = min(rest.lent[name], kept[name])
            rest.lent[name] -= allocation.lent[name]
        allocation.amounts = kept
        self.release(rest)

    def lend(self, allocation: Allocation) -> None:
        """Its holder blocks: its CPUs (and only those) go back to the pool for the while."""
        if _homeless(allocation):
            return
        for name, amount in allocation.amounts.items():
            if base_name(name) == CPU and name not in allocation.lent:
                allocation.lent[name] = amount
                self.available[name] += amount
        self.version += 1

    def reclaim(self, allocation: Allocation) -> None:
        """Its holder runs again and has its CPUs back at once, even if that overdraws the pool."""
        if not _homeless(allocation):
            for name, amount in allocation.lent.items():
                self.available[name] -= amount
        allocation.lent = {}
        self.version += 1

    # -- bundles

    def open_bundle(self, pg_id: bytes, index: int, allocation: Allocation) -> None:
        """Commit: what `allocation` took from the node becomes the bundle's pools.

        The caller keeps the allocation and releases it after `close_bundle`.
        """
        marker = group_name(_MARKER, pg_id, index)
        assert marker not in self._bundles, "bundle committed twice"
        supply = bundle_supply(allocation.amounts, pg_id, index)
        add(self.total, supply)
        add(self.available, supply)
        slotted: dict[str, dict[int, int]] = {}
        for name, device, amount in allocation.slots:
            pool = slotted.setdefault(group_name(name, pg_id, index), {})
            pool[device] = pool.get(device, 0) + amount
        self._slots.update(slotted)
        self._bundles[marker] = _Bundle(supply, tuple(slotted))
        self.version += 1

    def close_bundle(self, pg_id: bytes, index: int) -> bool:
        """Return: the bundle's pools vanish, whatever is still taken from them.

        False when there is no such bundle. Holders may release later: they get nothing back.
        """
        bundle = self._bundles.pop(group_name(_MARKER, pg_id, index), None)
        if bundle is None:
            return False
        bundle.open = False
        for name, amount in bundle.supply.items():
            shared = _shared_name(name)
            if shared == name:
                continue
            self.total[shared] -= amount
            self.available[shared] -= self.available.pop(name)
            del self.total[name]
            if not self.total[shared]:
                del self.total[shared], self.available[shared]
        for name in bundle.slotted:
            del self._slots[name]
        self.version += 1
        return True

    # -- inside

    def _take(self, demand: Mapping[str, int], slots: tuple[tuple[str, int, int], ...]) -> Allocation:
        for name, amount in demand.items():
            self.available[name] -= amount
        for name, index, amount in slots:
            self._slots[name][index] -= amount
        self.version += 1
        marker = bundle_of(demand)
        return Allocation(dict(demand), slots, home=self._bundles.get(marker) if marker else None)

    def _pick_slots(self, demand: Mapping[str, int]) -> tuple[tuple[str, int, int], ...] | None:
        """Devices for each slotted amount of the demand; None when they are too fragmented."""
        picked: list[tuple[str, int, int]] = []
        for name, amount in demand.items():
            pool = self._slots.get(name)
            if pool is None:
                continue
            indices = _pick(pool, amount)
            if indices is None:
                return None
            each = amount if amount < UNIT else UNIT
            picked.extend((name, index, each) for index in indices)
        return tuple(picked)

    def check(self) -> None:
        """Assert that no pool holds more than its total and devices agree with the sums."""
        assert self.total.keys() == self.available.keys()
        for name, amount in self.available.items():
            assert amount <= self.total[name], f"{name}: {amount} available of {self.total[name]}"
        for name, pool in self._slots.items():
            assert all(0 <= free <= UNIT for free in pool.values()), f"{name}: {pool}"
            assert sum(pool.values()) == self.available[name], f"{name}: devices {pool}"


def _homeless(allocation: Allocation) -> bool:
    return allocation.home is not None and not allocation.home.open


def _shared_name(name: str) -> str:
    """`CPU_group_<pg>` for `CPU_group_<index>_<pg>`; other names as they are."""
    group = group_of(name)
    return name if group is None else f"{base_name(name)}{_GROUP}{group[0]}"


def _split_slots(
    slots: tuple[tuple[str, int, int], ...], kept: Mapping[str, int]
) -> tuple[tuple[tuple[str, int, int], ...], tuple[tuple[str, int, int], ...]]:
    """The devices that cover `kept`, first ones first, and the others."""
    wanted = dict(kept)
    ours, others = [], []
    for name, index, amount in slots:
        part = min(amount, wanted.get(name, 0))
        if part:
            wanted[name] -= part
            ours.append((name, index, part))
        if amount > part:
            others.append((name, index, amount - part))
    return tuple(ours), tuple(others)


def _devices(total: int) -> dict[int, int]:
    """Free amount per device index; a fractional total makes the last device partial."""
    count = -(-total // UNIT)
    return {index: min(UNIT, total - index * UNIT) for index in range(count)}


def _pick(pool: Mapping[int, int], amount: int) -> list[int] | None:
    """Device indices for `amount`: the tightest fit for a fraction, free devices for wholes."""
    if amount < UNIT:
        fitting = [(free, index) for index, free in pool.items() if free >= amount]
        return [min(fitting)[1]] if fitting else None
    free_devices = [index for index, free in sorted(pool.items()) if free == UNIT]
    wanted, rest = divmod(amount, UNIT)
    if rest or len(free_devices) < wanted:
        return None
    return free_devices[:wanted]


def total_of(pools: Iterable[Mapping[str, int]]) -> Resources:
    """The sum over several nodes."""
    result: Resources = {}
    for pool in pools:
        add(result, pool)
    return result
