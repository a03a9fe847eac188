"""The nodes of the cluster as the GCS knows them: joining, liveness, resources, leaving.

::

    (unknown) ──registered──▶ ALIVE ──drain──▶ DRAINING ──leaving──▶ DEAD
                                 └──── silent 10 s, or refused 2 s ─────▶ DEAD

A dead node never returns under its id: it is refused (and told to stop) whenever it speaks.
After a restart of the GCS the saved nodes are *awaited*: alive, given no work until they have
registered again, and dead if they stay silent.

`view` is what the policy sees: the available amounts of the last heartbeat less what has been
placed since. A heartbeat says how many placement messages it already reflects
(`placements_seen`), so nothing is counted twice. What other raylets are told, and when, is in
`core.views`. Pure; part of `Head`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import resources as res
from miniray.core.desk import Desk, failure, short
from miniray.core.policy import NodeView
from miniray.core.pubsub import PubSub
from miniray.core.rankings import Rankings
from miniray.core.resources import Resources
from miniray.core.roster import Roster
from miniray.core.views import Views

TABLE = "node"

DEAD_KEPT = 1_000
"""Dead nodes remembered (and refused); the oldest are forgotten first."""

SWEEP_S = 0.5
"""How often silent nodes are looked for."""


@dataclass(slots=True, frozen=True)
class Timing:
    """When a node counts as dead, in seconds."""

    silent_s: float = 10.0
    refused_s: float = 2.0


@dataclass(slots=True)
class Member:
    """One living node."""

    info: pb.NodeInfo
    view: NodeView
    heard_at: float
    reported: Resources
    """Available amounts by the last heartbeat."""
    registered: bool = False
    """False: restored from storage, has not spoken to this GCS yet."""
    placements_sent: int = 0
    unseen: dict[int, Resources] = field(default_factory=dict)
    """Placed, by number, and not reflected in `reported`."""
    outstanding: Resources = field(default_factory=dict)
    """The sum of `unseen`."""
    demand: list[gcs.Demand] = field(default_factory=list)
    is_as_told: bool = False
    """`reported` and the view's totals are those of the last heartbeat still."""


class Members:
    """All nodes, living and dead."""

    def __init__(self, desk: Desk, pubsub: PubSub, timing: Timing = Timing()) -> None:
        self._desk = desk
        self._pubsub = pubsub
        self._timing = timing
        self.view: dict[bytes, NodeView] = {}
        """Registered living nodes in joining order: the policy's input."""
        self.rankings = Rankings(self.view)
        self.living: dict[bytes, Member] = {}
        self.dead: dict[bytes, pb.NodeInfo] = {}
        self._refused_at: dict[bytes, float] = {}
        self._roster = Roster()
        self._views = Views(desk, self._roster)
        self._sweep_at: float | None = None

    # ---- joining

    def restore(self, now: float, info: pb.NodeInfo) -> None:
        """One saved row: a dead node stays dead, another one is awaited."""
        if info.state == pb.NODE_DEAD:
            self.dead[info.node_id] = info
        else:
            self.living[info.node_id] = Member(info, NodeView.of(info), now, {})
            self._roster.put(info)
            self._sweep_at = now + SWEEP_S

    def refusal(self, node_id: bytes) -> str:
        """Why this node may not take part; "" when it may."""
        info = self.dead.get(node_id)
        if info is None:
            return ""
        return (
            f"node {short(node_id)} was declared dead ({info.death.message}) and cannot come back under "
            "the same id: start it anew"
        )

    def registered(self, now: float, info: pb.NodeInfo) -> bool:
        """A raylet that is not refused says who it is. True when it is new here."""
        member = self.living.get(info.node_id)
        is_new = member is None
        row = pb.NodeInfo()
        row.CopyFrom(info)
        row.state = pb.NODE_ALIVE
        if member is not None:
            row.started_at = member.info.started_at
            if member.info.state == pb.NODE_DRAINING:
                row.state = pb.NODE_DRAINING
        elif not row.started_at:
            row.started_at = self._desk.wall(now)
        view = NodeView.of(row)
        sent = member.placements_sent if member is not None and member.registered else 0
        self.living[info.node_id] = Member(row, view, now, dict(view.available), True, sent)
        self.view[info.node_id] = view
        self.rankings.touched(info.node_id)
        self._roster.put(row)
        self._refused_at.pop(info.node_id, None)
        if self._sweep_at is None:
            self._sweep_at = now + SWEEP_S
        self._save(row)
        self._desk.note(now, info.node_id, "registered" if is_new else "registered again")
        self._views.row_changed(now, info.node_id)
        self._pubsub.published("node", info.node_id, node=row)
        return is_new

    def full_view(self) -> gcs.NodeMessage:
        """All living nodes, awaited ones too (they are no less alive), for one that has just registered."""
        return self._roster.whole()

    # ---- living

    def heard(self, now: float, node_id: bytes) -> Member | None:
        """Something came from this node. None: it is dead or has not registered."""
        member = self.living.get(node_id)
        if member is None or not member.registered:
            return None
        member.heard_at = now
        return member

    def connected(self, now: float, node_id: bytes) -> None:
        """A connection from this node works."""
        self._refused_at.pop(node_id, None)
        member = self.living.get(node_id)
        if member is not None:
            member.heard_at = now

    def disconnected(self, now: float, node_id: bytes, refused: bool) -> None:
        """The connection broke; `refused`: nobody listens at the node's address any more."""
        if refused and node_id in self.living:
            self._refused_at.setdefault(node_id, now)

    def heartbeat(self, now: float, member: Member, beat: gcs.Heartbeat) -> bool:
        """New figures of a node. True when something may fit now that did not before."""
        member.demand = list(beat.demand)
        seen = beat.placements_seen
        settled = [number for number in member.unseen if number <= seen]
        for number in settled:
            res.subtract(member.outstanding, member.unseen.pop(number))
        draining = beat.state == pb.NODE_DRAINING and member.info.state == pb.NODE_ALIVE
        # `settled` and `granted` foresee figures: known here, but the other raylets have yet to hear.
        is_told = beat.available == member.info.available and beat.total == member.info.total
        if is_told and member.is_as_told and not draining:
            if settled:
                self._refresh(member)
            return bool(settled)
        available, total = res.from_map(beat.available), res.from_map(beat.total)
        freed = total != member.view.total or any(
            amount > member.view.available.get(name, 0) for name, amount in available.items()
        )
        is_offer = beat.total != member.info.total
        member.reported = available
        member.view.total = total
        member.is_as_told = True
        if draining:
            self._set_state(now, member, pb.NODE_DRAINING)
        member.info.total.CopyFrom(beat.total)
        member.info.available.CopyFrom(beat.available)
        self._refresh(member)
        if is_offer:
            self._views.totals_changed(now, member.info.node_id)
        else:
            self._views.figures_changed(now, member.info.node_id)
        return freed

    def drain(self, now: float, node_id: bytes, deadline_s: float, reason: str) -> bool:
        """No new work for this node; it leaves when its work is done. False: not alive."""
        member = self.living.get(node_id)
        if member is None:
            return False
        self._set_state(now, member, pb.NODE_DRAINING)
        self._desk.send(
            node_id, gcs.NodeMessage(drain=gcs.DrainNode(deadline_s=deadline_s, reason=reason))
        )
        return True

    def _set_state(self, now: float, member: Member, state: pb.NodeState) -> None:
        if member.info.state == state:
            return
        member.info.state = state
        member.view.state = state
        if member.registered:
            self.rankings.touched(member.info.node_id)
        self._save(member.info)
        self._desk.note(now, member.info.node_id, pb.NodeState.Name(state))
        self._views.row_changed(now, member.info.node_id)
        self._pubsub.published("node", member.info.node_id, node=member.info)

    # ---- placing

    def placed(self, node_id: bytes, demand: Resources) -> int:
        """A CreateActor or BundleRequest goes to the node and takes `demand`. Returns its number."""
        member = self.living[node_id]
        member.placements_sent += 1
        if demand:
            member.unseen[member.placements_sent] = demand
            res.add(member.outstanding, demand)
            res.subtract(member.view.available, demand)
            self.rankings.touched(node_id)
        return member.placements_sent

    def settled(self, node_id: bytes, number: int, taken: Resources, kept: Resources) -> None:
        """The node answered placement `number`: of what it `taken` it still holds `kept`."""
        member = self.living.get(node_id)
        if member is None:
            return
        member.is_as_told = False
        unseen = member.unseen.pop(number, None)
        if unseen is not None:
            res.subtract(member.outstanding, unseen)
            res.subtract(member.reported, kept)
        else:
            res.add(member.reported, taken)
            res.subtract(member.reported, kept)
        self._refresh(member)

    def granted(self, node_id: bytes, supply: Resources, sign: int) -> None:
        """Bundle pools opened (+1) or closed (-1) on the node, ahead of its next heartbeat."""
        member = self.living.get(node_id)
        if member is None:
            return
        member.is_as_told = False
        for name, amount in supply.items():
            for amounts in (member.view.total, member.reported):
                amounts[name] = amounts.get(name, 0) + sign * amount
                if amounts[name] <= 0 and sign < 0:
                    del amounts[name]
        self._refresh(member)

    def _refresh(self, member: Member) -> None:
        """Available to the policy: what was reported less what the report does not know of."""
        if not member.unseen:
            member.outstanding = {}
        member.view.available = dict(member.reported)
        res.subtract(member.view.available, member.outstanding)
        if member.registered:
            self.rankings.touched(member.info.node_id)

    # ---- leaving

    def died(self, now: float, node_id: bytes, reason: str, *, left: bool = False) -> pb.Failure | None:
        """The node is gone for ever. Returns the failure to report, None if it was not alive."""
        member = self.living.pop(node_id, None)
        if member is None:
            return None
        if self.view.pop(node_id, None) is not None:
            self.rankings.forget(node_id)
        self._refused_at.pop(node_id, None)
        info = member.info
        name = f"{member.view.title()} ({node_id.hex()[:8]})"   # nodes may share a name
        verb = "left the cluster" if left else "died"
        cause = failure(pb.NODE_DIED, f"node {name} {verb}: {reason}", node_id=node_id)
        info.state = pb.NODE_DEAD
        info.ended_at = self._desk.wall(now)
        info.death.CopyFrom(cause)
        info.available.Clear()
        self.dead[node_id] = info
        self._save(info)
        while len(self.dead) > DEAD_KEPT:
            oldest = next(iter(self.dead))
            del self.dead[oldest]
            self._desk.persist(TABLE, oldest, None)
        self._desk.note(now, node_id, cause.message)
        self._roster.drop(node_id)
        self._views.row_changed(now, node_id)
        self._pubsub.published("node", node_id, node=info)
        self._pubsub.node_gone(node_id)
        return cause

    def _save(self, info: pb.NodeInfo) -> None:
        row = pb.NodeInfo()
        row.CopyFrom(info)
        row.ClearField("available")
        self._desk.persist(TABLE, info.node_id, row.SerializeToString())

    # ---- time

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        due = self._sweep_at
        if self._refused_at:
            refused = min(self._refused_at.values()) + self._timing.refused_s
            due = refused if due is None else min(due, refused)
        views = self._views.next_deadline()
        return due if views is None else views if due is None else min(due, views)

    def tick(self, now: float) -> list[tuple[bytes, str]]:
        """Send view deltas that are due; returns the nodes that must be declared dead, and why."""
        self._tell(now)
        lost = [
            (node_id, f"its address refuses connections for {self._timing.refused_s:g} s")
            for node_id, since in self._refused_at.items()
            if now >= since + self._timing.refused_s
        ]
        if self._sweep_at is not None and now >= self._sweep_at:
            if now - self._sweep_at > SWEEP_S:
                # this process itself stood still: what the nodes said meanwhile is still unread
                for member in self.living.values():
                    member.heard_at += now - self._sweep_at
            self._sweep_at = now + SWEEP_S if self.living else None
            lost.extend(
                (node_id, f"silent for {self._timing.silent_s:g} s")
                for node_id, member in self.living.items()
                if now - member.heard_at >= self._timing.silent_s and node_id not in self._refused_at
            )
        return lost

    def _tell(self, now: float) -> None:
        due = self._views.next_deadline()
        if due is not None and now >= due:
            self._views.tick(now, self.dead, list(self.view))

    # ---- looking in

    def alive(self) -> list[pb.NodeInfo]:
        """Rows of the living nodes."""
        return [member.info for member in self.living.values()]

    def all(self) -> list[pb.NodeInfo]:
        """Rows of all nodes, living ones first."""
        return self.alive() + list(self.dead.values())

    def demand(self) -> list[gcs.Demand]:
        """Pending lease requests of all nodes, equal shapes summed up."""
        shapes: dict[bytes, gcs.Demand] = {}
        for member in self.living.values():
            for demand in member.demand:
                key = demand.resources.SerializeToString(deterministic=True)
                if key in shapes:
                    shapes[key].count += demand.count
                else:
                    shapes[key] = gcs.Demand()
                    shapes[key].CopyFrom(demand)
                    shapes[key].kind = "task"
        return list(shapes.values())

    def check(self) -> None:
        """Assert every invariant."""
        assert not self.living.keys() & self.dead.keys(), "alive and dead"
        assert list(self.view) == [n for n in self.view if n in self.living]
        for node_id, member in self.living.items():
            assert member.registered == (node_id in self.view)
            assert not member.registered or self.view[node_id] is member.view
            assert member.info.state != pb.NODE_DEAD
            assert member.info.takes_no_work or member.view.state == member.info.state
            if member.registered:
                unseen = res.total_of(member.unseen.values())
                assert all(n == unseen.get(name, 0) for name, n in member.outstanding.items())
                for name, amount in member.view.available.items():
                    expected = member.reported.get(name, 0) - unseen.get(name, 0)
                    assert amount == expected, f"placements of {name} do not add up"
        self.rankings.check()
        self._roster.check()
        assert list(self._roster.rows) == list(self.living)
        assert all(self._roster.rows[node_id] is member.info for node_id, member in self.living.items())
        for info in self.dead.values():
            assert info.state == pb.NODE_DEAD

    def dump(self) -> dict[str, Any]:
        """One line per living node."""
        return {
            member.view.title(): {
                "state": pb.NodeState.Name(member.info.state),
                "available": res.render(member.view.available),
                "unseen": len(member.unseen),
            }
            for member in self.living.values()
        }
