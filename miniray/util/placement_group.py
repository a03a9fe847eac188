"""Placement groups: bundles of resources that are reserved together, or not at all.

`placement_group(…)` returns at once; `ready()` is a reference that becomes ready, `wait(s)` blocks
until all bundles are reserved. A group goes with its creator unless `lifetime="detached"`.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from miniray.ids import PlacementGroupID

if TYPE_CHECKING:
    from miniray._proto import common_pb2 as pb
    from miniray.ids import ObjectRef
    from miniray.runtime.worker import CoreWorker

# `miniray.util` imports this module at once, to have the function of the same name, and so do
# the modules below it: what it needs of them is imported where it is needed.

VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}
RESERVED = "bundle"
NODE_ID_LABEL = "ray.io/node-id"
GLANCE_S = 0.05
"""`ready()` waits no longer for the head's word that a group is there already; a task waits then."""


class PlacementGroup:
    """A handle to a placement group; may be passed to tasks and actors."""

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        """The handle that stands for no group."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @classmethod
    def from_binary(cls, id: bytes) -> PlacementGroup:
        """The group with this id."""
        return cls(PlacementGroupID(id))

    @property
    def is_empty(self) -> bool:
        """True when this stands for no group."""
        return self.id.is_nil()

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A reference to this group that is ready once all bundles are reserved."""
        if self.is_empty or _is_created(self.id.binary()):
            from miniray import api

            return api.put(self)
        from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        inside = PlacementGroupSchedulingStrategy(self, placement_group_capture_child_tasks=False)
        ready: ObjectRef[PlacementGroup] = _ready_task().options(scheduling_strategy=inside).remote(self)
        return ready

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait until all bundles are reserved; False after `timeout_seconds` or if it was removed."""
        return _wait(self.id.binary(), timeout_seconds)

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The bundles: resource → amount."""
        if not self.bundle_cache:
            info = _lookup(self.id.binary())
            self.bundle_cache = [_floats(bundle.resources) for bundle in info.bundles] if info else []
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        """How many bundles there are."""
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


def _worker() -> CoreWorker:
    from miniray import api

    return api.connected_worker()


def _floats(resources: pb.ResourceMap) -> dict[str, float]:
    from miniray.options import UNIT

    return {name: amount / UNIT for name, amount in resources.amounts.items()}


def _lookup(group_id: bytes, timeout_s: float = 60.0) -> pb.PlacementGroupInfo | None:
    from miniray._proto import gcs_pb2 as gcs

    try:
        message = gcs.GroupLookup(placement_group_id=group_id)
        return _worker().request("group_lookup", message, timeout_s).group
    except ValueError:
        return None  # never made, or forgotten


def _is_created(group_id: bytes) -> bool:
    """Whether the group is whole, for all that the head says at once; most are when they are asked for."""
    from miniray._proto import common_pb2 as pb
    from miniray.exceptions import GetTimeoutError

    try:
        info = _lookup(group_id, GLANCE_S)
    except GetTimeoutError:
        return False
    return info is not None and info.state == pb.GROUP_CREATED


def _wait(group_id: bytes, timeout_s: float | None) -> bool:
    """Until the group is whole (True), removed or `timeout_s` has passed (False)."""
    from miniray._proto import common_pb2 as pb

    changed = threading.Event()
    listens = False
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        changed.clear()
        info = _lookup(group_id)
        if info is None or info.state == pb.GROUP_REMOVED:
            return False
        if info.state == pb.GROUP_CREATED:
            return True
        left = 1.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        if listens:
            changed.wait(min(left, 1.0))
        else:  # most groups are there at the first look
            listens = True
            _worker().subscribe("group", group_id, lambda _: changed.set())


_ready: Any = None


def _ready_task() -> Any:
    """The task behind `PlacementGroup.ready`: it runs inside the group, so it waits as groups' tasks do.

    Waiting costs no process that way, however many groups are asked for; it takes no resources.
    """
    global _ready
    if _ready is None:
        from miniray.decorator import remote

        @remote(num_cpus=0, max_retries=-1, name="placement_group.ready")
        def ready(group: PlacementGroup) -> PlacementGroup:
            return group

        _ready = ready
    return _ready


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
    priority: int = 0,
) -> PlacementGroup:
    """Reserve bundles of resources; returns at once.

    Args:
        bundles: What each bundle holds, for instance ``[{"CPU": 2}, {"GPU": 1}]``.
        strategy: "PACK" (the default: as few nodes as possible), "SPREAD" (as many), "STRICT_PACK"
            (one node) or "STRICT_SPREAD" (a node each).
        name: For `get_placement_group`.
        lifetime: None: it goes with its creator; "detached": it stays until it is removed.
        bundle_label_selector: Labels that each bundle's node must have, one selector per bundle.
        topology_strategy: ``{"ray.io/node-id": strategy}``, another way to say `strategy`.
        priority: Higher ones are placed first. Not in Ray.

    Raises:
        ValueError: for bundles or strategies that cannot be.
    """
    worker = _worker()
    validate_placement_group(
        bundles, strategy, lifetime, _soft_target_node_id, bundle_label_selector, topology_strategy
    )
    chosen = strategy or (topology_strategy or {}).get(NODE_ID_LABEL) or "PACK"
    from miniray._proto import common_pb2 as pb
    from miniray._proto import gcs_pb2 as gcs
    from miniray.labels import add_selector
    from miniray.options import fixed

    group_id = PlacementGroupID.of_job(worker.job_id)
    context = worker.executor.context() if worker.executor is not None else None
    info = pb.PlacementGroupInfo(
        placement_group_id=group_id.binary(),
        name=name,
        namespace=worker.namespace,
        strategy=chosen,
        detached=lifetime == "detached",
        priority=priority,
        creator_job_id=worker.job_id,
        creator_actor_id=context.actor_id if context is not None else b"",
    )
    for index, bundle in enumerate(bundles):
        row = info.bundles.add(index=index)
        row.resources.amounts.update(
            {resource: fixed(amount) for resource, amount in bundle.items() if amount}
        )
        if bundle_label_selector:
            add_selector(row.labels, bundle_label_selector[index])
    worker.request("group_create", gcs.GroupCreate(info=info))
    return PlacementGroup(group_id, [{k: float(v) for k, v in bundle.items()} for bundle in bundles])


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give a group's resources back; what runs in it is ended."""
    assert placement_group is not None
    from miniray._proto import gcs_pb2 as gcs

    message = gcs.GroupRemove(placement_group_id=placement_group.id.binary())
    worker = _worker()
    worker.give_back_idle_leases()
    worker.request("group_remove", message)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of that name in this namespace. ValueError if there is none."""
    if not placement_group_name:
        raise ValueError("Please supply a non-empty value to get_placement_group")
    from miniray._proto import gcs_pb2 as gcs

    worker = _worker()
    try:
        message = gcs.GroupLookup(name=placement_group_name, namespace=worker.namespace)
        info = worker.request("group_lookup", message).group
    except ValueError:
        raise ValueError(f"Failed to look up placement group with name: {placement_group_name}") from None
    return PlacementGroup.from_binary(info.placement_group_id)


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the current task or actor runs in; None in a driver and outside of groups."""
    from miniray import runtime_context

    group_id = runtime_context.current_group_id(_worker())
    return PlacementGroup.from_binary(group_id) if group_id else None


STATES = ("PENDING", "PREPARED", "CREATED", "REMOVED", "RESCHEDULING")


def _row(info: pb.PlacementGroupInfo) -> dict[str, Any]:
    from miniray._proto import common_pb2 as pb

    return {
        "placement_group_id": info.placement_group_id.hex(),
        "name": info.name,
        "strategy": pb.GroupStrategy.Name(info.strategy),
        "state": STATES[info.state],
        "bundles": {bundle.index: _floats(bundle.resources) for bundle in info.bundles},
        "bundles_to_node_id": {bundle.index: bundle.node_id.hex() for bundle in info.bundles},
        "stats": {
            "scheduling_state": _scheduling_state(info),
            "scheduling_attempt": 1,
            "end_to_end_creation_latency_ms": None if info.state == pb.GROUP_CREATED else 0,
            "pending_reason": info.pending_reason,
        },
    }


def _scheduling_state(info: pb.PlacementGroupInfo) -> str:
    """Ray's word for how far a group has come; INFEASIBLE when a bundle fits no living node."""
    from miniray._proto import common_pb2 as pb
    from miniray._proto import gcs_pb2 as gcs

    if info.state == pb.GROUP_CREATED:
        return "FINISHED"
    if info.state == pb.GROUP_REMOVED:
        return "REMOVED"
    nodes = _worker().request("node_list", gcs.NodeList()).nodes.nodes
    totals = [node.total.amounts for node in nodes if node.state != pb.NODE_DEAD]
    for bundle in info.bundles:
        wanted = bundle.resources.amounts
        if not any(all(total[name] >= amount for name, amount in wanted.items()) for total in totals):
            return "INFEASIBLE"
    return "NO_RESOURCES" if info.pending_reason else "QUEUED"


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """The state of one group, or id (hex) → state of all of them.

    A state has placement_group_id, name, strategy, state, bundles, bundles_to_node_id and stats;
    latencies are not measured.
    """
    from miniray._proto import gcs_pb2 as gcs

    if placement_group is not None:
        info = _lookup(placement_group.id.binary())
        return _row(info) if info is not None else {}
    groups = _worker().request("group_lookup", gcs.GroupLookup()).groups.groups
    return {info.placement_group_id.hex(): _row(info) for info in groups}


# ---- what may be asked for ----


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """ValueError when the group has no such bundle; -1 means any."""
    from miniray import options

    options.check_index(placement_group, bundle_index)


def validate_placement_group(
    bundles: Any,
    strategy: str | None = None,
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: Any = None,
    topology_strategy: dict[str, str] | None = None,
) -> None:
    """ValueError for arguments of `placement_group` that cannot be."""
    if topology_strategy is not None and strategy is not None:
        raise ValueError(
            "`strategy` and `topology_strategy` cannot both be specified. Pass node-level packing via "
            f"`topology_strategy['{NODE_ID_LABEL}']`."
        )
    for chosen in (strategy, *(topology_strategy or {}).values()):
        if chosen is not None and chosen not in VALID_PLACEMENT_GROUP_STRATEGIES:
            raise ValueError(
                f"Invalid placement group strategy {chosen}. "
                f"Supported strategies are: {VALID_PLACEMENT_GROUP_STRATEGIES}."
            )
    if _soft_target_node_id and strategy != "STRICT_PACK":
        raise ValueError(f"_soft_target_node_id currently only works with STRICT_PACK but got {strategy}")
    if _soft_target_node_id and bytes.fromhex(_soft_target_node_id) == b"\xff" * 28:
        raise ValueError(f"Invalid hex ID of _soft_target_node_id, got {_soft_target_node_id}")
    _validate_bundles(bundles)
    if bundle_label_selector is not None:
        if len(bundles) != len(bundle_label_selector):
            raise ValueError(
                f"Invalid bundle label selector {bundle_label_selector}. "
                "The length of `bundle_label_selector` should equal the length of `bundles`."
            )
        _validate_bundle_label_selector(bundle_label_selector)
    if lifetime not in (None, "detached"):
        raise ValueError(
            f"Placement group `lifetime` argument must be either `None` or 'detached'. Got {lifetime}."
        )


def _validate_bundles(bundles: Any) -> None:
    if not isinstance(bundles, list):
        raise ValueError(f"Placement group bundles must be a list, got {type(bundles)}.")
    example = 'For example: `[{"CPU": 1.0}, {"GPU": 1.0}]`.'
    if not bundles:
        raise ValueError(
            f"Bundles must be a non-empty list of resource dictionaries. {example} Got empty list."
        )
    for bundle in bundles:
        if not isinstance(bundle, dict) or not all(
            isinstance(name, str) and isinstance(amount, (int, float)) for name, amount in bundle.items()
        ):
            raise ValueError(f"Bundles must be a non-empty list of resource dictionaries. {example}")
        if RESERVED in bundle:
            raise ValueError(f"Bundles cannot ask for '{RESERVED}': the name is the placement group's own.")
        if not any(bundle.values()):
            raise ValueError(
                f"Bundles cannot be an empty dictionary or resources with only 0 values. Bundles: {bundles}"
            )


def _validate_bundle_label_selector(selectors: Any) -> None:
    from miniray.labels import selector_error

    if not isinstance(selectors, list):
        raise ValueError(f"Placement group bundle_label_selector must be a list, got {type(selectors)}.")
    for selector in selectors:
        if not isinstance(selector, dict) or not all(
            isinstance(key, str) and isinstance(value, str) for key, value in selector.items()
        ):
            raise ValueError("Bundle label selector must be a list of string dictionary label selectors.")
        wrong = selector_error(selector)
        if wrong:
            raise ValueError(
                f"Invalid label selector provided in bundle_label_selector list. Detailed error: '{wrong}'"
            )


__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]
