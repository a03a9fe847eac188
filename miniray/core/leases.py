"""Leases: who has resources and a worker of this node, in which order, and for how long.

::

    queued request ─▶ resources taken ─▶ worker found or started ─▶ LeaseReply (granted)
    (core.lease_queue)                                                   │
            ▲          resources and worker go back ◀── LeaseReturn, ────┤
            └── dispatch                                end of either ◀──┘

Queues are served in the order of `core.shares`, which also says when a lease is asked back. A
queue whose head has waited `STARVE_S` keeps later queues from taking what it waits for; what is
kept for actors is in `core.claims`.

A *grant* is a lease or an actor's place (`core.hosting`): resources first, then a worker.
A blocked task's worker lends its CPUs; they are taken back when it wakes, overdrawing if need be:
then as many leases are asked back as there are too many.
Actors keep theirs once their constructor has run.

Pure; runs inside `core.node.Node`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2, worker_pb2
from miniray.core import environments, resources
from miniray.core.claims import Claim, Claims, leaves_room
from miniray.core.contract import Send
from miniray.core.lease_queue import LeaseQueue, Request, RequestKey
from miniray.core.node_effects import slots_of, to_client
from miniray.core.pool import ACTORS, BUSY, GPU_TASKS, TASKS, Key, Pool, Worker, start_refusal
from miniray.core.relay import Relay
from miniray.core.resources import Allocation, NodeResources, Resources
from miniray.core.shares import BALANCE_EVERY_S, Shares

STARVE_S = 5.0
REASON_EVERY_S = 0.5


@dataclass(slots=True)
class Grant:
    """Resources taken for a lease or an actor, and the worker that uses them."""

    grant_id: int
    cls: common.SchedulingClass
    allocation: Allocation
    depth: int
    since: float
    key: RequestKey = (b"", 0)
    holder_node: bytes = b""
    """Node of the lease's holder; b"" for a client of this node."""
    actor_id: bytes = b""
    worker_id: bytes = b""
    """b"" while it waits for a process."""
    announced: bool = False
    """Its holder knows of the worker, or the actor's worker of the actor."""
    revoked: bool = False
    is_surplus: bool = False
    """Asked back because leases hold more CPUs together than there are."""
    told: bool = False
    """Its holder knows that it waits for a process."""
    keeps: bool = False
    """An actor's, for as long as it lives: it lends nothing while it waits."""

    @property
    def worker_key(self) -> Key:
        """The workers that can serve it."""
        use = ACTORS if self.actor_id else GPU_TASKS if self.cls.resources.amounts.get("GPU") else TASKS
        return Key(self.cls.job_id, self.cls.runtime_env, use)


@dataclass(slots=True)
class Leases:
    """See the module head."""

    out: list[Any]
    node_id: bytes
    pool: Pool
    relay: Relay
    resources: NodeResources
    requests: LeaseQueue
    on_worker: Callable[[float, Grant, Worker], None]
    """Called when a grant has its worker: the node sees to its job, then `granted` or StartActor."""
    draining: bool = False
    grants: dict[int, Grant] = field(default_factory=dict)
    by_key: dict[RequestKey, int] = field(default_factory=dict)
    next_grant: int = 1
    shares: Shares = field(default_factory=Shares)
    reasons_at: float | None = None
    starting_at: float | None = None
    """When the holders of leases that wait for a process are told so."""
    balance_at: float | None = None
    claims: Claims = field(default_factory=Claims)

    # ---- requests ----

    def requested(self, now: float, message: worker_pb2.LeaseRequest, via: bytes) -> None:
        """A client of this node, or the raylet `via` for one of its clients, wants a lease."""
        granted = self.by_key.get((message.requester.worker_id, message.request_id))
        if granted is not None:
            if self.grants[granted].announced:
                self._reply_granted(self.grants[granted])
            return
        self.requests.arrived(now, message, via)
        self.dispatch(now)

    def cancelled(self, now: float, message: worker_pb2.LeaseCancel) -> None:
        """The lease is not needed any more. One that was granted meanwhile comes back by return."""
        if self.requests.cancelled(message):
            return
        grant_id = self.by_key.get((message.requester.worker_id, message.request_id))
        if grant_id is not None and not self.grants[grant_id].announced:
            self.withdraw(now, self.grants[grant_id])

    # ---- granting ----

    def dispatch(self, now: float) -> None:
        """Take resources for as many queued requests as fit, in the order of the module head."""
        queues = self.requests.queues
        progress = bool(queues) and not self.draining
        while progress:
            progress = False
            reserved: dict[str, None] = {}
            kept = self._kept_for_actors(now)
            for queue in self.shares.ordered(list(queues.values()), self.grants):
                head = next(iter(queue.requests.values()))
                if not queue.allowed_here or any(name in reserved for name in head.demand):
                    continue
                is_kept = kept and not leaves_room(
                    kept, queue.cls.priority, head.demand, self.resources.available)
                allocation = None if is_kept else self.resources.acquire(head.demand)
                if allocation is not None:
                    self.requests.taken(head)
                    self.shares.served(queue)
                    self._grant(now, head, allocation)
                    progress = True
                elif now - head.since > STARVE_S and resources.fits(head.demand, self.resources.total):
                    reserved.update(dict.fromkeys(head.demand))
        if queues and self.reasons_at is None:
            self.reasons_at = now + REASON_EVERY_S
            self.balance_at = now + BALANCE_EVERY_S

    def acquire_for_actor(
        self, now: float, actor_id: bytes, demand: Resources, priority: int
    ) -> Allocation | None:
        """What an actor needs; if that is not free now, the actor has a claim on it."""
        allocation = self.resources.acquire(demand)
        if allocation is not None:
            self.claims.settled(actor_id)
        elif resources.fits(demand, self.resources.total):
            self.claims.made(now, actor_id, demand, priority)
        return allocation

    def actor_waits(self, now: float, actor_id: bytes, demand: Resources, priority: int) -> None:
        """The GCS has an actor for which there is no room, here or elsewhere."""
        self.claims.made(now, actor_id, demand, priority)
        if self.balance_at is None:
            self.balance_at = now + BALANCE_EVERY_S

    def _kept_for_actors(self, now: float) -> list[Claim]:
        if not self.claims.by_actor:
            return []
        return self.claims.kept(now, self.resources.available, self._returnable())

    def _returnable(self) -> Resources:
        """What is free, or will be when tasks end: all but what living actors keep."""
        rest = dict(self.resources.total)
        for grant in self.grants.values():
            if grant.keeps:
                resources.subtract(rest, grant.allocation.amounts)
        return rest

    def _grant(self, now: float, request: Request, allocation: Allocation) -> None:
        message = request.message
        grant = self.new_grant(now, message.scheduling_class, allocation, message.depth + 1)
        grant.key = request.key
        grant.holder_node = message.requester.node_id if request.via else b""
        self.by_key[grant.key] = grant.grant_id
        self.find_worker(now, grant)

    def new_grant(self, now: float, cls: common.SchedulingClass, allocation: Allocation, depth: int) -> Grant:
        """Record that resources were taken; the caller then asks for a worker."""
        grant = Grant(self.next_grant, cls, allocation, depth, now)
        self.next_grant += 1
        self.grants[grant.grant_id] = grant
        return grant

    def find_worker(self, now: float, grant: Grant) -> None:
        """Get a worker for the grant, now or when one has started."""
        worker = self.pool.acquire(now, grant.worker_key, grant.grant_id)
        if worker is not None:
            self.worker_found(now, grant.grant_id, worker)
        elif self.starting_at is None and not grant.actor_id:
            self.starting_at = now + REASON_EVERY_S

    def worker_found(self, now: float, grant_id: int, worker: Worker) -> None:
        """The pool gives `worker` to a grant."""
        grant = self.grants[grant_id]
        grant.worker_id = worker.worker_id
        grant.since = now
        worker.depth = grant.depth
        holder = self.pool.workers.get(grant.key[0])
        worker.outlives = holder is not None and holder.outlives
        self.on_worker(now, grant, worker)

    def granted(self, grant: Grant) -> None:
        """The lease's worker knows its job: tell the holder."""
        grant.announced = True
        if grant.holder_node:
            self.relay.listen_from(grant.worker_id, grant.holder_node)
        else:
            self.relay.listen(grant.worker_id, grant.key[0])
        self._reply_granted(grant)

    def _holder(self, grant: Grant) -> common.Address:
        return common.Address(node_id=grant.holder_node or self.node_id, worker_id=grant.key[0])

    def _reply_granted(self, grant: Grant) -> None:
        self.requests.answer(worker_pb2.LeaseReply(
            request_id=grant.key[1], lease_id=grant.grant_id, requester=self._holder(grant),
            worker_pid=self.pool.workers[grant.worker_id].pid,
            worker=common.Address(node_id=self.node_id, worker_id=grant.worker_id),
            slots=slots_of(grant.allocation)))

    def start_refused(self, now: float, grant_id: int, last: common.Failure | None) -> Grant:
        """No process would start for this grant: refuse it. Returns it, already released."""
        grant = self.grants[grant_id]
        self.refuse(grant, start_refusal(grant.worker_key, last))
        self.release(now, grant)
        return grant

    def refuse(self, grant: Grant, failure: common.Failure) -> None:
        """Tell whoever waits for a lease that has not been announced that it will not be."""
        if not grant.actor_id:
            self.requests.answer(worker_pb2.LeaseReply(
                request_id=grant.key[1], requester=self._holder(grant), failure=failure))

    # ---- giving back ----

    def returned(self, now: float, message: worker_pb2.LeaseReturn) -> None:
        """The holder gives a lease back; unknown ones have ended already."""
        grant = self.grants.get(message.lease_id)
        if grant is None or grant.actor_id:
            return
        worker = self.pool.workers.get(grant.worker_id)
        self.release(now, grant, dispatch=False)
        if worker is not None and worker.state == BUSY:
            if message.worker_exits:
                self.pool.retire(worker, message.reason or "its last task asked for it")
            else:
                self._hand_on(now, worker)
        self.dispatch(now)  # after the worker is free, or a process would be started in its place

    def withdraw(self, now: float, grant: Grant) -> None:
        """A grant that nobody knows of is not wanted any more; its worker, if it has one, is free."""
        worker = self.pool.workers.get(grant.worker_id)
        self.release(now, grant)
        if worker is not None and worker.state == BUSY:
            self._hand_on(now, worker)

    def leave_refused(self, now: float, worker: Worker) -> None:
        """An idle worker that was asked to end stays: it may be waited for by now."""
        next_grant = self.pool.leave_refused(now, worker)
        if next_grant:
            self.worker_found(now, next_grant, worker)

    def _hand_on(self, now: float, worker: Worker) -> None:
        """A worker has become free: to the next grant that waits for such a one, or idle."""
        next_grant = self.pool.released(now, worker)
        if next_grant:
            self.worker_found(now, next_grant, worker)

    def release(self, now: float, grant: Grant, dispatch: bool = True) -> None:
        """Give the grant's resources back and forget it; its worker is the caller's concern."""
        del self.grants[grant.grant_id]
        self.by_key.pop(grant.key, None)
        if not grant.worker_id:
            self.pool.withdraw(grant.worker_key, grant.grant_id)
        self.resources.release(grant.allocation)
        if dispatch:
            self.dispatch(now)

    def worker_gone(self, now: float, worker: Worker) -> None:
        """A worker has ended: its grant is released, or gets another worker if nobody knows of this one."""
        grant = self.grants.get(worker.grant_id)
        if grant is None or grant.worker_id != worker.worker_id:
            return
        if grant.announced:
            self.release(now, grant)
        else:
            grant.worker_id = b""
            self.find_worker(now, grant)

    def holder_gone(self, now: float, worker_id: bytes) -> None:
        """A requester (of any node) has ended: its requests go, its leases' workers are ended."""
        self.requests.requester_gone(worker_id)
        why = f"the owner of its task, worker {worker_id.hex()[:8]}, has ended"
        self._end_held(now, why, lambda grant: grant.key[0] == worker_id)
        self.dispatch(now)

    def peer_lost(self, now: float, node_id: bytes) -> None:
        """A node has died: leases its clients held end, requests sent there are placed again."""
        why = f"the owner of its task was on node {node_id.hex()[:8]}, which died"
        self._end_held(now, why, lambda grant: grant.holder_node == node_id)
        self.requests.peer_lost(now, node_id)
        self.dispatch(now)

    def _end_held(self, now: float, reason: str, held: Callable[[Grant], bool]) -> None:
        """End leases whose holders are gone; the caller dispatches once their requests are gone too."""
        for grant in [g for g in self.grants.values() if held(g) and not g.actor_id]:
            worker = self.pool.workers.get(grant.worker_id)
            self.release(now, grant, dispatch=False)
            if worker is not None and worker.state == BUSY:
                worker.grant_id = 0
                self.pool.stop(now, worker, reason, force=True)

    def job_ended(self, now: float, job_id: bytes, keep: dict[bytes, None]) -> None:
        """Requests of the job go, and grants that still wait for a worker, but those of workers in `keep`."""
        self.requests.job_ended(job_id, keep)
        for grant in [g for g in self.grants.values() if g.cls.job_id == job_id]:
            if not grant.announced and not grant.actor_id and grant.key[0] not in keep:
                self.withdraw(now, grant)

    # ---- blocked workers ----

    def blocked(self, now: float, worker: Worker, is_blocked: bool) -> None:
        """A worker waits in `get`, or runs again."""
        grant = self.grants.get(worker.grant_id)
        if grant is None or grant.keeps or worker.blocked == is_blocked:
            return
        worker.blocked = is_blocked
        if is_blocked:
            self.resources.lend(grant.allocation)
            self.dispatch(now)
        else:
            self.resources.reclaim(grant.allocation)
            if self._is_overdrawn() and self.balance_at is None:
                self.balance_at = now + BALANCE_EVERY_S

    def _is_overdrawn(self) -> bool:
        return self.resources.available.get(resources.CPU, 0) < 0

    # ---- time: reasons and shares ----

    def next_deadline(self) -> float | None:
        """When reasons are reported or shares are balanced."""
        reasons_at = self.reasons_at if self.requests.queues else None
        balance_at = self.balance_at if self._has_to_balance() else None
        return min((at for at in (reasons_at, balance_at, self.starting_at) if at is not None), default=None)

    def tick(self, now: float) -> None:
        """Report reasons and ask leases back for those below their share."""
        if self.starting_at is not None and self.starting_at <= now:
            self._report_starting(now)
        if not self._has_to_balance():
            self.reasons_at = self.balance_at = None
            self.shares.nobody_waits()
            return
        if self.requests.queues and self.reasons_at is not None and self.reasons_at <= now:
            self.reasons_at = now + REASON_EVERY_S
            self._report_reasons(now)
        if self.balance_at is not None and self.balance_at <= now:
            self.balance_at = now + BALANCE_EVERY_S
            for surplus in self.shares.overdrawing(self.grants, self.resources.available):
                surplus.is_surplus = True
                self._revoke(surplus)
            victim = self._victim(now)
            if victim is not None:
                victim.revoked = True
                self._revoke(victim)

    def _has_to_balance(self) -> bool:
        return bool(self.requests.queues or self.claims.by_actor) or self._is_overdrawn()

    def _report_reasons(self, now: float) -> None:
        self.requests.refuse_hopeless(now)
        holders: dict[str, int] = {}
        for grant in self.grants.values():
            name = grant.cls.function_name or "?"
            holders[name] = holders.get(name, 0) + 1
        self.requests.report(holders)
        self.requests.view_changed(now)
        self.dispatch(now)

    def _victim(self, now: float) -> Grant | None:
        """The lease to ask back now, for an actor or for tasks that have a better claim to it."""
        claims = self.claims.standing(now)
        returnable = self._returnable() if claims else {}
        for claim in claims:
            fits_now = resources.fits(claim.demand, self.resources.available)
            if not fits_now and resources.fits(claim.demand, returnable):
                victim = self.shares.victim_of_claim(now, claim, self.grants)
                if victim is not None:
                    return victim
        queues = list(self.requests.queues.values())
        return self.shares.balance(now, queues, self.grants, self.resources.total) if queues else None

    def _report_starting(self, now: float) -> None:
        """Those whose leases have their resources but no process yet learn why they wait."""
        late = [grant for grant in self.grants.values() if not grant.worker_id and not grant.actor_id]
        self.starting_at = now + REASON_EVERY_S if late else None
        for grant in late:
            if now - grant.since >= REASON_EVERY_S and not grant.told:
                grant.told = True
                fields = environments.shown(grant.cls.runtime_env)
                env = f", in its runtime_env {fields}," if fields else ""
                self.requests.answer(worker_pb2.LeaseReply(
                    request_id=grant.key[1], requester=self._holder(grant),
                    pending_reason=f"a worker process{env} is starting on node {self.node_id.hex()[:8]}"))

    def _revoke(self, grant: Grant) -> None:
        message = worker_pb2.LeaseRevoked(
            lease_id=grant.grant_id, holder=self._holder(grant),
            worker=common.Address(node_id=self.node_id, worker_id=grant.worker_id))
        if grant.holder_node:
            self.out.append(Send(grant.holder_node, raylet_pb2.PeerMessage(lease_revoked=message)))
        elif grant.key[0] in self.pool.workers:
            self.out.append(to_client(grant.key[0], lease_revoked=message))

    # ---- people and tests ----

    def check(self) -> None:
        """Requests, grants and workers agree."""
        self.resources.check()
        self.requests.check()
        for grant in self.grants.values():
            if grant.worker_id:
                worker = self.pool.workers[grant.worker_id]
                assert worker.grant_id == grant.grant_id, "grant and worker disagree"
        for worker in self.pool.workers.values():
            if worker.state == BUSY:
                assert worker.grant_id in self.grants, "a busy worker has no grant"

    def dump(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "available": dict(self.resources.available),
            "queues": [{"function": q.cls.function_name, "depth": q.depth, "count": len(q.requests),
                        "reason": q.reason} for q in self.requests.queues.values()],
            "leases": [{"lease": g.grant_id, "function": g.cls.function_name, "worker": g.worker_id.hex(),
                        "actor": g.actor_id.hex(), "job": g.cls.job_id.hex()} for g in self.grants.values()],
        }
