"""Placement groups at the GCS: two-phase placing, all or nothing.

::

    created ──▶ PENDING ──plan──▶ prepare ──all ok──▶ PREPARED (saved) ──all committed──▶ CREATED
                  ▲  │              │ some refused: RETURN to all                         ▲ │ node lost
                  ├──│──────────────┘                                                     │ ▼
                  │  └─one node takes all that is wanted: grant ──ok──────────────────────┘ │
                  └──────────────── the lost bundles only ◀───────────────────────── RESCHEDULING
    removed: RETURN to every node ──▶ REMOVED

Where one node takes all, it decides: what it was granted and the GCS did not live to save is adopted when
it registers again, if no other place was looked for by then. Else `PREPARED` is the decision: it is saved
before the first COMMIT leaves, so after a restart of the GCS prepared bundles of a saved group are
committed and those of an unsaved attempt returned (`node_registered`). Each try has an attempt number;
answers to older ones are ignored. Between a node and the GCS messages keep their order, so RETURN always
follows its PREPARE.

Groups wait by priority, jobs taking turns; one that does not fit holds nobody back. Removed
groups are remembered up to `REMOVED_KEPT`. Pure; part of `Head`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import resources as res
from miniray.core.bundles import Group, Places, Plan, plan_bundles
from miniray.core.desk import Desk, Refusal, short
from miniray.core.link import AT_ONCE
from miniray.core.members import Members
from miniray.core.pubsub import PubSub
from miniray.core.resources import Resources
from miniray.core.turns import Turns

TABLE = "group"

REMOVED_KEPT = 1_000
"""Removed groups remembered; the oldest are forgotten first."""

PASS_COST_S = 0.001
"""The next pass waits this long per waiting group, half a second at most."""

_STEP = gcs.BundleRequest


class Placement:
    """All placement groups."""

    def __init__(
        self, desk: Desk, pubsub: PubSub, members: Members, on_removed: Callable[[float, bytes], None]
    ) -> None:
        """`on_removed(now, group_id)`: what runs in the group must end."""
        self._desk = desk
        self._pubsub = pubsub
        self._members = members
        self._on_removed = on_removed
        self._groups: dict[bytes, Group] = {}
        self._on_nodes = Places()
        self._removed: dict[bytes, pb.PlacementGroupInfo] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._by_actor: dict[bytes, dict[bytes, None]] = {}
        """Groups by the actor that made them."""
        self._waiting: dict[bytes, None] = {}
        self._turns: Turns[Group] = Turns(lambda group: (group.info.priority, group.info.creator_job_id))
        self._avoided: dict[bytes, None] = {}
        """Nodes that some waiting group avoids."""
        self._dirty = False
        self._next_pass = 0.0

    # ---- requests

    def restore(self, info: pb.PlacementGroupInfo) -> None:
        """One saved group; nodes that register again say what they hold of it."""
        if info.state == pb.GROUP_REMOVED:
            self._removed[info.placement_group_id] = info
            return
        self._add(info)

    def created(self, now: float, request: gcs.GroupCreate) -> pb.PlacementGroupInfo:
        """A new group, or the one with this id. Raises Refusal."""
        wanted = request.info
        known = self.info(wanted.placement_group_id)
        if known is not None:
            return known
        if wanted.name and (wanted.namespace, wanted.name) in self._names:
            where = f"placement group named {wanted.name!r} exists in namespace {wanted.namespace!r}"
            raise Refusal(pb.ALREADY_EXISTS, f"a {where} already: remove it, or take another name")
        if not wanted.bundles or any(not res.demand_from_map(b.resources) for b in wanted.bundles):
            raise Refusal(pb.INVALID_ARGUMENT, "a placement group needs bundles that ask for something")
        info = pb.PlacementGroupInfo()
        info.CopyFrom(wanted)
        info.state = pb.GROUP_PENDING
        for index, bundle in enumerate(info.bundles):
            bundle.index = index
            bundle.node_id = b""
        group = self._add(info)
        self._save(group)
        self._note(now, group, "created")
        self._pass(now)
        return info

    def _add(self, info: pb.PlacementGroupInfo) -> Group:
        group = self._groups[info.placement_group_id] = Group.of(info)
        if info.creator_actor_id:
            self._by_actor.setdefault(info.creator_actor_id, {})[group.id] = None
        if info.name:
            self._names[(info.namespace, info.name)] = group.id
        self._on_nodes.add(group.id, group.nodes())
        if group.missing():
            self._wait(group)
        return group

    def find(self, request: gcs.GroupLookup) -> list[pb.PlacementGroupInfo]:
        """By id, by name, or all of them. Raises Refusal when the one asked for is not there."""
        if request.placement_group_id:
            known = self.info(request.placement_group_id)
            what = f"placement group {request.placement_group_id.hex()}"
        elif request.name:
            known = self.info(self._names.get((request.namespace, request.name), b""))
            what = f"placement group named {request.name!r} in namespace {request.namespace!r}"
        else:
            return self.infos() + list(self._removed.values())
        if known is None:
            raise Refusal(pb.NOT_FOUND, f"there is no {what}")
        return [known]

    def infos(self) -> list[pb.PlacementGroupInfo]:
        """The rows of all groups that have not been removed."""
        return [group.info for group in self._groups.values()]

    def info(self, pg_id: bytes) -> pb.PlacementGroupInfo | None:
        """The row of one group, removed ones included."""
        group = self._groups.get(pg_id)
        return group.info if group is not None else self._removed.get(pg_id)

    def lives(self, pg_id: bytes) -> bool:
        """Whether the group exists and is not removed."""
        return pg_id in self._groups

    def removed(self, now: float, pg_id: bytes) -> None:
        """The group goes, and what runs in it; a second time changes nothing."""
        group = self._groups.pop(pg_id, None)
        if group is None:
            return
        self._waiting.pop(pg_id, None)
        info = group.info
        if self._names.get((info.namespace, info.name)) == pg_id:
            del self._names[(info.namespace, info.name)]
        made_by = self._by_actor.get(info.creator_actor_id)
        if made_by is not None:
            del made_by[pg_id]
            if not made_by:
                del self._by_actor[info.creator_actor_id]
        nodes = group.by_node({**group.settled(), **group.planned})
        self._on_nodes.discard(pg_id, nodes)
        self._forget_attempt(group)
        for node_id, indices in nodes.items():
            self._return(group, node_id, indices)
        for bundle in info.bundles:
            bundle.node_id = b""
        info.state = pb.GROUP_REMOVED
        info.pending_reason = ""
        self._removed[pg_id] = info
        self._save(group)
        self._note(now, group, "removed")
        self._publish(group)
        while len(self._removed) > REMOVED_KEPT:
            oldest = next(iter(self._removed))
            del self._removed[oldest]
            self._desk.persist(TABLE, oldest, None)
        self.freed()
        self._on_removed(now, pg_id)

    def job_ended(self, now: float, job_id: bytes) -> None:
        """Groups of the job go, but for detached ones and those that an actor has made."""
        for group in list(self._groups.values()):
            info = group.info
            if info.creator_job_id == job_id and not info.detached and not info.creator_actor_id:
                self.removed(now, group.id)

    def actor_died(self, now: float, actor_id: bytes) -> None:
        """Groups that this actor made go, but for detached ones."""
        for pg_id in list(self._by_actor.get(actor_id, ())):
            if not self._groups[pg_id].info.detached:
                self.removed(now, pg_id)

    def demand(self) -> list[gcs.Demand]:
        """Groups that wait, equal ones summed up, with the reason."""
        shapes: dict[bytes, gcs.Demand] = {}
        for pg_id in self._waiting:
            group = self._groups[pg_id]
            bundles = [bundle.demand for bundle in group.missing()]
            key = group.shape + b"%d" % len(bundles)
            if key in shapes:
                shapes[key].count += 1
                continue
            shapes[key] = gcs.Demand(
                resources=res.to_map(res.total_of(bundles)), count=1, reason=group.info.pending_reason,
                kind="placement group", bundles=[res.to_map(bundle) for bundle in bundles],
                strategy=group.info.strategy,
            )  # fmt: skip
        return list(shapes.values())

    def count(self) -> tuple[int, int]:
        """(groups that are not removed, those of them that wait for room or are being placed)."""
        pending = sum(group.info.state != pb.GROUP_CREATED for group in self._groups.values())
        return len(self._groups), pending

    # ---- placing

    def freed(self) -> None:
        """Something may fit now that did not before."""
        self._dirty = True

    def beat(self, node_id: bytes) -> None:
        """News of a node: it may be asked again."""
        if node_id in self._avoided:
            del self._avoided[node_id]
            self._dirty = True
            for pg_id in self._waiting:
                self._groups[pg_id].avoid.pop(node_id, None)

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        return (self._next_pass or AT_ONCE) if self._dirty and self._waiting else None

    def tick(self, now: float) -> None:
        """Place what can be placed, if a pass is due."""
        due = self.next_deadline()
        if due is not None and now >= due:
            self._pass(now)

    def _wait(self, group: Group) -> None:
        self._waiting[group.id] = None
        self._dirty = True

    def _pass(self, now: float) -> None:
        if now < self._next_pass:
            self._dirty = True
            return
        self._dirty = False
        count = len(self._waiting)
        self._next_pass = now + min(0.5, PASS_COST_S * count) if count > 20 else 0.0
        failed: dict[bytes, Plan] = {}
        waiting = [self._groups[pg_id] for pg_id in self._waiting]
        self._turns.serve(waiting, lambda group: self._plan(now, group, failed))

    def _plan(self, now: float, group: Group, failed: dict[bytes, Plan]) -> bool:
        """Find places and prepare them; `failed`: shapes that found none in this pass. False: it waits."""
        if group.id not in self._waiting:
            return False  # it has been served
        is_fresh = not group.avoid and not group.settled()
        plan = failed.get(group.shape) if is_fresh else None
        if plan is None:
            plan = self._places(group)
            if is_fresh and plan.nodes is None:
                failed[group.shape] = plan
        if plan.nodes is None:
            if group.info.pending_reason != plan.reason:
                group.info.pending_reason = plan.reason
                self._publish(group)
            return False
        del self._waiting[group.id]
        group.attempt += 1
        group.planned = plan.nodes
        self._on_nodes.add(group.id, plan.nodes.values())
        group.info.pending_reason = ""
        self._note(now, group, f"prepare, attempt {group.attempt}")
        nodes = group.by_node(plan.nodes)
        step = _STEP.PREPARE if len(nodes) > 1 else _STEP.GRANT
        for node_id, indices in nodes.items():
            group.awaited[node_id] = self._request(group, node_id, step, indices, group.demand(indices))
        return True

    def _places(self, group: Group) -> Plan:
        """A plan among the few nodes that matter; among all where that fails, for the reason."""
        missing, taken = group.missing(), group.settled()
        if not any(bundle.labels for bundle in missing):
            demands = [bundle.demand for bundle in missing]
            few = self._members.rankings.candidates(demands, taken.values())
            plan = plan_bundles(few, missing, group.info.strategy, taken=taken, avoid=group.avoid)
            if plan.nodes is not None:
                return plan
        return plan_bundles(
            self._members.view, missing, group.info.strategy, taken=taken, avoid=group.avoid
        )

    # ---- answers

    def replied(self, now: float, node_id: bytes, reply: gcs.BundleReply) -> None:
        """A node's answer to one step."""
        group = self._groups.get(reply.placement_group_id)
        if group is None:
            return
        if reply.step in (_STEP.PREPARE, _STEP.GRANT):
            if reply.attempt == group.attempt and node_id in group.awaited:
                self._prepare_answered(now, group, node_id, reply)
        elif reply.step == _STEP.COMMIT:
            self._commit_answered(now, group, node_id, reply)

    def _prepare_answered(self, now: float, group: Group, node_id: bytes, reply: gcs.BundleReply) -> None:
        number = group.awaited.pop(node_id)
        demand = group.planned_demand(node_id)
        self._members.settled(node_id, number, demand, demand if reply.ok else {})
        if not reply.ok:
            self._note(now, group, f"refused: {reply.reason}")
            group.avoid[node_id] = self._avoided[node_id] = None
            self._roll_back(group, {node_id: None})
        elif reply.step == _STEP.GRANT:
            self._granted(now, group, node_id)
        elif not group.awaited:
            self._decide(now, group)

    def _settle(self, group: Group, planned: dict[int, bytes]) -> None:
        for bundle in group.info.bundles:
            if bundle.index in planned:
                bundle.node_id = planned[bundle.index]
        group.info.state = pb.GROUP_PREPARED
        group.avoid = {}

    def _granted(self, now: float, group: Group, node_id: bytes) -> None:
        """One node has taken and opened all that was wanted."""
        planned, group.planned = group.planned, {}
        self._settle(group, planned)
        self._committed(group, node_id, planned)
        if group.missing():
            self._save(group)
            self._wait(group)  # some were lost meanwhile
        self._finish_if_whole(now, group)

    def _decide(self, now: float, group: Group) -> None:
        """All have prepared: save the decision, then tell them."""
        planned, group.planned = group.planned, {}
        self._settle(group, planned)
        self._save(group)
        self._note(now, group, "prepared")
        for node_id, indices in group.by_node(planned).items():
            self._request(group, node_id, _STEP.COMMIT, indices, {})
        if group.missing():
            self._wait(group)  # some were lost meanwhile

    def _commit_answered(self, now: float, group: Group, node_id: bytes, reply: gcs.BundleReply) -> None:
        mine = [i for i in reply.indices if group.settled().get(i) == node_id]
        if not reply.ok:
            lost = [index for index in mine if index not in group.committed]
            self._return(group, node_id, lost)
            self._lose(now, group, lost, reply.reason)
            return
        self._committed(group, node_id, mine)
        self._finish_if_whole(now, group)

    def _committed(self, group: Group, node_id: bytes, indices: Iterable[int]) -> None:
        """The pools of these bundles are open."""
        for index in indices:
            if index not in group.committed:
                group.committed[index] = None
                supply = res.bundle_supply(group.bundles[index].demand, group.id, index)
                self._members.granted(node_id, supply, +1)

    def _finish_if_whole(self, now: float, group: Group) -> None:
        if len(group.committed) < len(group.bundles) or group.info.state == pb.GROUP_CREATED:
            return
        group.info.state = pb.GROUP_CREATED
        group.info.pending_reason = ""
        self._save(group)
        self._note(now, group, "CREATED")
        self._publish(group)

    def _roll_back(self, group: Group, but: dict[bytes, None]) -> None:
        """Give back what was prepared in this attempt, except on nodes `but`; then wait again."""
        nodes = group.by_node(group.planned)
        self._forget_attempt(group)
        for node_id, indices in nodes.items():
            if node_id not in but:
                self._return(group, node_id, indices)
        group.planned = {}
        self._on_nodes.discard(group.id, nodes.keys() - group.nodes().keys())
        self._wait(group)

    def _forget_attempt(self, group: Group) -> None:
        """Answers that are still on their way belong to nobody any more."""
        for node_id, number in group.awaited.items():
            demand = group.planned_demand(node_id)
            # counted as taken and not as given back: RETURN, sent next, credits it
            self._members.settled(node_id, number, demand, demand)
        group.awaited = {}

    # ---- loss

    def node_died(self, now: float, node_id: bytes) -> None:
        """Bundles there are lost; attempts that involve the node are given up."""
        self.beat(node_id)
        for pg_id in self._on_nodes.on(node_id):
            group = self._groups[pg_id]
            if node_id in group.planned.values():
                self._roll_back(group, {node_id: None})
            lost = [index for index, where in group.settled().items() if where == node_id]
            if lost:
                self._lose(now, group, lost, "its node died")

    def _lose(self, now: float, group: Group, indices: list[int], why: str) -> None:
        """These bundles need another node; the others stay where they are."""
        before = group.nodes()
        for bundle in group.info.bundles:
            if bundle.index in indices:
                bundle.node_id = b""
                group.committed.pop(bundle.index, None)
        self._on_nodes.discard(group.id, before.keys() - group.nodes().keys())
        group.info.state = pb.GROUP_RESCHEDULING
        self._save(group)
        self._note(now, group, f"RESCHEDULING bundles {indices}: {why}")
        self._publish(group)
        if not group.planned:
            self._wait(group)

    def node_registered(self, now: float, node_id: bytes, held: Iterable[gcs.HeldBundle]) -> None:
        """A raylet says which bundles it holds: commit what was decided, return what was not."""
        listed = {(bundle.placement_group_id, bundle.index): bundle.committed for bundle in held}
        for pg_id in dict.fromkeys((*self._on_nodes.on(node_id), *(pg_id for pg_id, _ in listed))):
            group = self._groups.get(pg_id)
            if group is None:
                continue
            self._adopt(group, node_id, listed)
            mine = [index for index, where in group.settled().items() if where == node_id]
            here = {index: listed.pop((group.id, index)) for index in mine if (group.id, index) in listed}
            undecided = [index for index, where in group.planned.items() if where == node_id]
            for index in undecided:
                listed.pop((group.id, index), None)  # its answer is still to come
            for index, committed in here.items():
                if committed:
                    group.committed[index] = None
            again = [index for index, committed in here.items() if not committed]
            if again:
                self._request(group, node_id, _STEP.COMMIT, again, {})
            lost = [index for index in mine if index not in here]
            if lost:
                self._lose(now, group, lost, "its node does not hold it any more")
            elif mine:
                self._finish_if_whole(now, group)
        for pg_id, index in listed:
            self._desk.send(node_id, gcs.NodeMessage(bundle_request=_unknown(pg_id, index)))
            self._members.placed(node_id, {})
        self.freed()

    def _adopt(self, group: Group, node_id: bytes, listed: dict[tuple[bytes, int], bool]) -> None:
        """Settle what this node was granted when the GCS ended before it could say so."""
        if group.planned:
            return
        granted = [b.index for b in group.missing() if listed.get((group.id, b.index))]
        if granted:
            self._settle(group, dict.fromkeys(granted, node_id))
            self._on_nodes.add(group.id, [node_id])
            self._save(group)
            if not group.missing():
                del self._waiting[group.id]

    # ---- small parts

    def _return(self, group: Group, node_id: bytes, indices: list[int]) -> None:
        """Tell a node to give bundles back, and count them as free."""
        if node_id not in self._members.living:
            return
        for index in indices:
            if index in group.committed:
                supply = res.bundle_supply(group.bundles[index].demand, group.id, index)
                self._members.granted(node_id, supply, -1)
        number = self._request(group, node_id, _STEP.RETURN, indices, {})
        self._members.settled(node_id, number, group.demand(indices), {})

    def _request(
        self,
        group: Group,
        node_id: bytes,
        step: gcs.BundleRequest.Step,
        indices: Iterable[int],
        demand: Resources,
    ) -> int:
        """Send one step; `demand` counts as taken from now on. Returns the placement's number."""
        request = gcs.BundleRequest(
            step=step,
            placement_group_id=group.id,
            attempt=group.attempt,
            bundles=[b for b in group.info.bundles if b.index in indices],
        )
        number = self._members.placed(node_id, demand)
        self._desk.send(node_id, gcs.NodeMessage(bundle_request=request))
        return number

    def _save(self, group: Group) -> None:
        self._desk.persist(TABLE, group.id, group.info.SerializeToString())

    def _publish(self, group: Group) -> None:
        self._pubsub.published("group", group.id, group=group.info)

    def _note(self, now: float, group: Group, text: str) -> None:
        self._desk.note(now, group.id, text)

    def check(self) -> None:
        """Assert every invariant."""
        assert not self._groups.keys() & self._removed.keys()
        for pg_id, group in self._groups.items():
            group.check()
            assert (pg_id in self._waiting) == bool(group.missing() and not group.planned), short(pg_id)
        self._on_nodes.check(self._groups)
        for pg_id in self._waiting:
            assert pg_id in self._groups
        for name, pg_id in self._names.items():
            info = self._groups[pg_id].info
            assert (info.namespace, info.name) == name

    def dump(self) -> dict[str, Any]:
        """State, places and reason of each group."""
        return {
            short(pg_id): {
                "state": pb.GroupState.Name(group.info.state),
                "bundles": {i: short(node_id) for i, node_id in group.settled().items()},
                "reason": group.info.pending_reason,
            }
            for pg_id, group in self._groups.items()
        }


def _unknown(pg_id: bytes, index: int) -> gcs.BundleRequest:
    """RETURN of a bundle that nobody here has decided on."""
    return gcs.BundleRequest(
        step=gcs.BundleRequest.RETURN, placement_group_id=pg_id, bundles=[pb.BundleInfo(index=index)]
    )
