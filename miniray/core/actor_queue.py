"""Actors that wait for a node: placed by shape, retried when something has changed.

Part of `core.actors`. An actor waits with all others of its *shape* (equal demand, strategy,
priority and job): if one of them finds no node, the rest are not tried, and one reason serves them
all. Shapes of higher priority go first, and jobs take turns (`core.turns`). A pass runs when
resources were freed, a node joined or a pause is over (`next_deadline`, `tick`), not on every
stimulus; with many shapes waiting, passes get rarer. A node that refuses a shape is not asked for it
again until its next heartbeat.

While a shape waits for room that nodes could have, one of them at a time is told so (`ActorWaits`): it
keeps what comes free for the actor (`core.claims`), else its own tasks would take all of it before a
heartbeat could show it. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from miniray._proto import gcs_pb2 as gcs
from miniray.core import resources as res
from miniray.core.actor_registry import ActorRecord, ActorRegistry
from miniray.core.desk import Desk, short
from miniray.core.link import AT_ONCE
from miniray.core.members import Members
from miniray.core.policy import Choice, NodeView, choose, is_default
from miniray.core.turns import Turns

PASS_COST_S = 0.0002
"""The next pass waits this long per waiting shape, half a second at most."""

CLAIM_EVERY_S = 1.0
"""So often nodes are told who waits for them; what they are told lasts `claims.CLAIM_LASTS_S`."""

CLAIMS_AT_ONCE = 16
"""Shapes that claim a node at a time; each costs a look at all nodes."""


@dataclass(slots=True)
class _Waiting:
    """All actors of one shape that wait, and why."""

    priority: int
    job_id: bytes
    actors: dict[bytes, ActorRecord] = field(default_factory=dict)
    choice: Choice | None = None
    avoid: dict[bytes, None] = field(default_factory=dict)
    """Nodes that refused since their last heartbeat."""
    claimed: dict[bytes, None] = field(default_factory=dict)
    """Nodes that were told; each gets its turn before one is told again."""
    claim_at: float = 0.0
    """When the next one is told."""


_Attempts = tuple[_Waiting, Iterator[ActorRecord]]
"""A shape, and its actors that have not been tried in this pass."""


class ActorQueue:
    """See the module head."""

    def __init__(
        self,
        desk: Desk,
        members: Members,
        registry: ActorRegistry,
        on_hopeless: Callable[[float, ActorRecord, str], None],
    ) -> None:
        """`on_hopeless(now, record, reason)`: no node will ever do; the queue holds it no more."""
        self._desk = desk
        self._members = members
        self._registry = registry
        self._on_hopeless = on_hopeless
        self._shapes: dict[bytes, _Waiting] = {}
        self._pauses: dict[bytes, float] = {}
        self._avoided: dict[bytes, None] = {}
        """Nodes that some shape avoids."""
        self._dirty = False
        self._next_pass = 0.0
        self._claim_at: float | None = None
        self._no_claim_before = 0.0
        self._turn = 0
        """SPREAD choices made so far."""
        self._turns: Turns[_Attempts] = Turns(lambda one: (one[0].priority, one[0].job_id))

    # ---- who waits

    def enqueue(self, record: ActorRecord) -> None:
        """The actor needs a node, not before `record.not_before`."""
        waiting = self._shapes.setdefault(
            record.shape, _Waiting(record.info.spec.priority, record.job_id)
        )
        waiting.actors[record.id] = record
        if record.not_before:
            self._pauses[record.id] = record.not_before
        self._dirty = True

    def dequeue(self, record: ActorRecord) -> None:
        """It needs none any more."""
        self._pauses.pop(record.id, None)
        record.not_before = 0.0
        waiting = self._shapes.get(record.shape)
        if waiting is not None:
            waiting.actors.pop(record.id, None)
            if not waiting.actors:
                del self._shapes[record.shape]

    def holds(self, record: ActorRecord) -> bool:
        """Whether the actor waits here."""
        waiting = self._shapes.get(record.shape)
        return waiting is not None and record.id in waiting.actors

    # ---- what changed

    def freed(self) -> None:
        """Something may fit now that did not before."""
        self._dirty = True

    def refused(self, record: ActorRecord, node_id: bytes) -> None:
        """The node had no room after all: wait again, for another node or its next heartbeat."""
        self.enqueue(record)
        self._shapes[record.shape].avoid[node_id] = self._avoided[node_id] = None

    def beat(self, node_id: bytes) -> None:
        """News of a node: it may be asked again."""
        if node_id in self._avoided:
            del self._avoided[node_id]
            self._dirty = True
            for waiting in self._shapes.values():
                waiting.avoid.pop(node_id, None)

    # ---- placing

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        dues = (self._pass_at(), self._claim_at if self._shapes else None)
        return min((due for due in dues if due is not None), default=None)

    def _pass_at(self) -> float | None:
        if not self._shapes:
            return None
        if self._dirty:
            return self._next_pass or AT_ONCE
        return min(self._pauses.values()) if self._pauses else None

    def tick(self, now: float) -> None:
        """Place what can be placed, if a pass is due, and claim nodes, if that is."""
        due = self._pass_at()
        if due is not None and now >= due:
            self.place(now)
        elif self._claim_at is not None and now >= self._claim_at:
            self._claim(now)

    def place(self, now: float) -> None:
        """One pass over the waiting shapes."""
        if now < self._next_pass:
            self._dirty = True
            return
        self._dirty = False
        for actor_id in [a for a, until in self._pauses.items() if until <= now]:
            del self._pauses[actor_id]
        shapes = list(self._shapes.values())
        self._next_pass = now + min(0.5, PASS_COST_S * len(shapes)) if len(shapes) > 20 else 0.0
        attempts = [(waiting, iter(list(waiting.actors.values()))) for waiting in shapes]
        self._turns.serve(attempts, lambda one: self._place_next(now, *one))
        self._claim(now)

    def _place_next(self, now: float, waiting: _Waiting, rest: Iterator[ActorRecord]) -> bool:
        """Place the next actor of a shape that may start. False: there is none, or no room for it."""
        for record in rest:
            if record.not_before > now or record.id not in waiting.actors:
                continue
            choice = self._choose(record, waiting)
            if choice.node_id is not None:
                waiting.claim_at = 0.0
                self._assign(now, record, choice.node_id)
            elif choice.hopeless and not self._is_awaited(record):
                self.dequeue(record)
                self._on_hopeless(now, record, choice.reason)
            else:
                self._explain_all(waiting, choice)
                return False
            return True
        return False

    def _choose(self, record: ActorRecord, waiting: _Waiting) -> Choice:
        strategy = record.info.spec.creation_class.strategy
        owner = record.info.spec.owner.node_id
        if is_default(strategy):
            best = self._members.rankings.best(
                record.demand, local=owner, rng=self._desk.rng, avoid=waiting.avoid
            )
            if best is not None:
                return Choice(best)
        choice = choose(
            self._members.view,
            record.demand,
            strategy,
            local=owner,
            rng=self._desk.rng,
            turn=self._turn,
            avoid=waiting.avoid,
        )
        if strategy.spread:
            self._turn += 1
        return choice

    def _is_awaited(self, record: ActorRecord) -> bool:
        """Whether the only node allowed is one that this GCS, just restarted, still expects."""
        member = self._members.living.get(record.info.spec.creation_class.strategy.affinity.node_id)
        return member is not None and not member.registered

    def _assign(self, now: float, record: ActorRecord, node_id: bytes) -> None:
        """Save the node first, so that a restarted GCS knows whom to ask about the actor."""
        self.dequeue(record)
        record.info.pending_reason = ""
        self._registry.assign(record, node_id)
        self._desk.note(now, record.id, f"to be created on {short(node_id)}")
        self._registry.save(record)
        self.send_create(record, node_id)

    def send_create(self, record: ActorRecord, node_id: bytes) -> None:
        """Tell the node; what the actor needs counts as taken from now on."""
        record.placement = self._members.placed(node_id, record.demand)
        create = gcs.CreateActor(spec=record.info.spec, attempt=record.info.restarts)
        create.spec.creation_task = record.creation_task
        self._desk.send(node_id, gcs.NodeMessage(create_actor=create))

    # ---- claiming

    def _claim(self, now: float) -> None:
        """Tell nodes that are full who waits for them: shapes that have not for longest first."""
        if now < self._no_claim_before:
            return
        waiting = [one for one in self._shapes.values() if one.choice is not None and one.choice.feasible]
        due = sorted((one for one in waiting if one.claim_at <= now), key=lambda one: one.claim_at)
        if due:
            view = self._members.view.items()
            empty = {node_id: replace(node, available=node.total) for node_id, node in view}
        for one in due[:CLAIMS_AT_ONCE]:
            one.claim_at = now + CLAIM_EVERY_S
            record = next((record for record in one.actors.values() if record.not_before <= now), None)
            if record is not None:
                self._claim_node(record, one, empty)
        if len(due) > CLAIMS_AT_ONCE:
            self._no_claim_before = now + CLAIM_EVERY_S
        self._claim_at = min((max(one.claim_at, self._no_claim_before) for one in waiting), default=None)

    def _claim_node(self, record: ActorRecord, waiting: _Waiting, empty: dict[bytes, NodeView]) -> None:
        spec = record.info.spec
        for _ in range(2):
            choice = choose(
                empty, record.demand, spec.creation_class.strategy,
                local=spec.owner.node_id, rng=self._desk.rng, turn=self._turn, avoid=waiting.claimed,
            )  # fmt: skip
            if choice.node_id is not None:
                waiting.claimed[choice.node_id] = None
                waits = gcs.ActorWaits(
                    actor_id=record.id, demand=res.to_map(record.demand), priority=spec.priority
                )
                self._desk.send(choice.node_id, gcs.NodeMessage(actor_waits=waits))
                return
            waiting.claimed.clear()

    # ---- why not

    def demand(self) -> list[gcs.Demand]:
        """Waiting actors by shape, with the reason."""
        return [
            gcs.Demand(
                resources=res.to_map(next(iter(waiting.actors.values())).demand),
                count=len(waiting.actors),
                reason=waiting.choice.reason if waiting.choice is not None else "",
                kind="actor",
            )
            for waiting in self._shapes.values()
        ]

    def _explain_all(self, waiting: _Waiting, choice: Choice) -> None:
        """Remember the reason; tell subscribers when its kind changes, not with every figure."""
        old, waiting.choice = waiting.choice, choice
        for record in waiting.actors.values():
            if not record.info.pending_reason or old is None or old.feasible != choice.feasible:
                record.info.pending_reason = choice.reason
                self._registry.publish(record)

    def explain(self, record: ActorRecord) -> None:
        """Bring the row's pending reason up to date."""
        if not self.holds(record):
            return
        choice = self._shapes[record.shape].choice
        if record.id in self._pauses:
            record.info.pending_reason = "it died young several times: there is a pause before each restart"
        elif choice is not None:
            record.info.pending_reason = choice.reason
