"""Whose turn it is: the order of waiting queues, and which lease is asked back for whom.

Queues go by priority, then the job that holds least CPU now, then the job that has used least
lately, then depth (children of running tasks before new roots, so that nested fork-join ends with
few blocked workers), then whoever was served longest ago.

While queues wait, leases do not stay with whoever came first. One at a time is asked back
(`LeaseRevoked` without a failure; its holder returns it when what is in flight is done):
- from work of lower priority, at once;
- from a job that holds more than the waiting one, by at least what is waited for;
- within a job, from another class of tasks, or another caller, that has had its `SAME_JOB_SLICE_S`;
- for an actor that waits for this node (`core.claims`), from the oldest lease, after the same time.

Tasks that wake from a `get` together may hold more CPUs than there are: as many leases are asked back.

Two jobs that ask for more than there is get equal CPU time, in slices of about `SLICE_S`. Pure;
part of `core.leases`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from miniray.core import resources
from miniray.core.claims import Claim
from miniray.core.lease_queue import Queue, Request
from miniray.core.resources import Resources

if TYPE_CHECKING:
    from miniray.core.leases import Grant

BALANCE_EVERY_S = 0.1
SLICE_S = 0.1
"""A lease of another job may be asked back when it is this old."""
SAME_JOB_SLICE_S = 0.5
"""The same for a lease of another class, or another caller, of the same job."""
DECAY = 0.93
"""What a balance leaves of the use so far: half of it counts a second later."""
TURNS_KEPT = 4096

ClassKey = tuple[bytes, str, int]


@dataclass(slots=True)
class Shares:
    """See the module head."""

    used: dict[bytes, float] = field(default_factory=dict)
    """CPU time by job while somebody waited, fading."""
    turns: dict[ClassKey, int] = field(default_factory=dict)
    """When a class was served last, by count."""
    turn: int = 0

    @staticmethod
    def held(grants: Mapping[int, Grant]) -> dict[bytes, int]:
        """CPU units that each job's leases hold now; what blocked workers lent does not count."""
        held: dict[bytes, int] = {}
        for grant in grants.values():
            if not grant.actor_id:
                units = grant.allocation.amounts.get(resources.CPU, 0)
                units -= grant.allocation.lent.get(resources.CPU, 0)
                held[grant.cls.job_id] = held.get(grant.cls.job_id, 0) + units
        return held

    def ordered(self, queues: list[Queue], grants: Mapping[int, Grant]) -> list[Queue]:
        """The queues in the order of the module head."""
        if len(queues) > 1:
            held = self.held(grants)
            queues.sort(key=lambda q: (
                -q.cls.priority, held.get(q.cls.job_id, 0), self.used.get(q.cls.job_id, 0.0), -q.depth,
                self.turns.get(_class_of(q), 0)))
        return queues

    def served(self, queue: Queue) -> None:
        """The head of this queue was granted."""
        self.turn += 1
        self.turns[_class_of(queue)] = self.turn
        if len(self.turns) > TURNS_KEPT:
            del self.turns[next(iter(self.turns))]

    def nobody_waits(self) -> None:
        """What was used before does not count when somebody waits again."""
        self.used.clear()

    def balance(self, now: float, queues: list[Queue], grants: Mapping[int, Grant],
                total: Resources) -> Grant | None:
        """Called every `BALANCE_EVERY_S` while queues wait: the lease to ask back, if any."""
        held = self.held(grants)
        for job_id, units in held.items():
            self.used[job_id] = self.used.get(job_id, 0.0) + units * BALANCE_EVERY_S
        for job_id in list(self.used):
            self.used[job_id] *= DECAY
        if any(grant.revoked for grant in grants.values()):
            return None
        for queue in self.ordered(queues, grants):
            head = next(iter(queue.requests.values()))
            if queue.allowed_here and now - head.since >= SLICE_S and resources.fits(head.demand, total):
                victim = self._victim(now, queue, head, grants, held)
                if victim is not None:
                    return victim
        return None

    @staticmethod
    def victim_of_claim(now: float, claim: Claim, grants: Mapping[int, Grant]) -> Grant | None:
        """The oldest lease that has had its time and holds what a waiting actor asks for."""
        if now - claim.since < SAME_JOB_SLICE_S or any(grant.revoked for grant in grants.values()):
            return None
        candidates = [
            grant for grant in grants.values()
            if not grant.actor_id and grant.worker_id and grant.cls.priority <= claim.priority
            and now - grant.since >= SAME_JOB_SLICE_S
            and any(grant.allocation.amounts.get(name, 0) > grant.allocation.lent.get(name, 0)
                    for name in claim.demand)
        ]
        return min(candidates, key=lambda grant: grant.since, default=None)

    @staticmethod
    def overdrawing(grants: Mapping[int, Grant], available: Resources) -> list[Grant]:
        """The oldest of the leases that hold more CPUs together than there are; none is named twice."""
        excess = -available.get(resources.CPU, 0)
        victims = []
        for grant in sorted(grants.values(), key=lambda grant: (not grant.is_surplus, grant.since)):
            allocation = grant.allocation
            units = allocation.amounts.get(resources.CPU, 0) - allocation.lent.get(resources.CPU, 0)
            if excess <= 0:
                break
            if units > 0 and not grant.actor_id and grant.worker_id:
                excess -= units
                if not grant.is_surplus:
                    victims.append(grant)
        return victims

    def _victim(self, now: float, queue: Queue, head: Request, grants: Mapping[int, Grant],
                held: dict[bytes, int]) -> Grant | None:
        """The lease that the head of this queue has a better claim to, of the job that holds most."""
        mine = held.get(queue.cls.job_id, 0)
        need = head.demand.get(resources.CPU, 0)
        best: Grant | None = None
        for grant in grants.values():
            if grant.actor_id or not grant.worker_id or grant.cls.priority > queue.cls.priority:
                continue
            if not any(grant.allocation.amounts.get(name, 0) for name in head.demand):
                continue
            age = now - grant.since
            theirs = held.get(grant.cls.job_id, 0)
            if grant.cls.priority < queue.cls.priority:
                claim = True
            elif grant.cls.job_id != queue.cls.job_id:
                claim = age >= SLICE_S and theirs - mine >= need
            else:  # deeper work of a job goes first
                waiting = head if grant.cls != queue.cls else _of_another(queue, grant)
                claim = (waiting is not None and min(age, now - waiting.since) >= SAME_JOB_SLICE_S
                         and grant.depth <= queue.depth + 1)
            if claim and (best is None or theirs > held.get(best.cls.job_id, 0)):
                best = grant
        return best


def _of_another(queue: Queue, grant: Grant) -> Request | None:
    """The first request in the queue that is not of the lease's own holder."""
    return next((request for request in queue.requests.values() if request.key[0] != grant.key[0]), None)


def _class_of(queue: Queue) -> ClassKey:
    return (queue.cls.job_id, queue.cls.function_name, queue.depth)
