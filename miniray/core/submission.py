"""Stateless tasks at their owner: from a ready task to a leased worker.

Tasks with the same resources, strategy and runtime_env share a *lane*: one queue, and the leases
that serve it. A lease is used as long as work lasts and given back after a short idle time, so
the raylet is not on the path of a task.

::

    ready ──▶ lane.queue ──▶ least loaded lease with room ──▶ pushed ──▶ replied
                  │                      ▲                       │
                  └── LeaseWanted ──▶ raylet grants              └─ bounced, worker gone ──▶ queue

A lease takes the oldest task, unless what that one needs lies on another node and one of the next
`LOOK_AHEAD` has its bytes here: fetching costs more than waiting in line does. Each lease is asked for
with the places of the arguments of a task of its own.

A worker takes several tasks at a time only while they are short: the expected time of what is
in flight on one lease stays under `WINDOW_US`, by the mean that workers report. A task that
nobody has run yet travels alone. A worker that blocks, or that is held up by one task, *bounces*
what it has not started; that is no attempt of the task.

Pure. Effects: the `TaskRecord` itself (push it to `record.remote`), `LeaseWanted`,
`LeaseUnwanted`, `LeaseDone`, `Paused`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .directory import Address
from .tasks import PUSHED, READY, UNKNOWN_COST_US, TaskRecord

WINDOW_US = 2000.0
"""Expected work in flight on one lease, at most, beyond the first task."""

DEPTH = 512
"""Tasks in flight on one lease, at most."""

LOOK_AHEAD = 32
"""So many tasks are looked at for one whose arguments are near; so often the oldest is passed over."""

ARGUMENTS_LOOKED_AT = 32
NEAR_LEAST = 100_000
"""Bytes of arguments for which a place is chosen."""

REQUESTS = 10
"""Lease requests of one lane that may be under way at once."""

RETRY_PAUSE_S = 0.05
RETRY_PAUSE_MAX_S = 1.0
"""What raised runs again at once, then after a pause that doubles: what it needs may be back by then."""

IDLE_S = 0.025
"""A lease is given back when it was idle this long."""


@dataclass(slots=True)
class LeaseWanted:
    """Ask the raylet for a lease for `lane`, best where the arguments of `record` are."""

    request_id: int
    lane: Lane
    record: TaskRecord


@dataclass(slots=True)
class LeaseUnwanted:
    """The request is no longer needed."""

    request_id: int


@dataclass(slots=True)
class LeaseDone:
    """Give the lease back; `remote` is idle, or gone, or about to go, when `failed`."""

    lease_id: int
    remote: Remote
    failed: bool = False


@dataclass(slots=True)
class Paused:
    """A task runs again at `until`: `next_deadline` is earlier than it may have been."""

    until: float


class Remote:
    """Another worker as this owner sees it: calls in flight, by call number, oldest first."""

    __slots__ = (
        "address", "next_call", "inflight", "load_us", "lease_id", "lane", "idle_since", "channel",
        "reclaimed", "retiring",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.next_call = 0
        self.inflight: dict[int, TaskRecord] = {}
        self.load_us = 0.0
        self.lease_id = 0
        self.lane: Lane | None = None
        self.idle_since = 0.0
        self.channel: Any = None        # the shell's
        self.reclaimed = False          # the raylet wants the lease back
        self.retiring = False           # the worker has done its last task (max_calls)

    def take(self, record: TaskRecord) -> None:
        """`record` is about to be pushed here."""
        self.next_call = call = self.next_call + 1
        record.call = call
        record.remote = self
        record.state = PUSHED
        self.inflight[call] = record


class Lane:
    """The tasks of one scheduling class and the leases they use."""

    __slots__ = ("key", "spec", "queue", "leases", "requests", "reason", "spreads", "passed_over")

    def __init__(self, key: Any, spec: Any) -> None:
        self.key = key
        self.spec = spec                # what the shell needs to ask for a lease; opaque here
        self.queue: deque[TaskRecord] = deque()
        self.leases: dict[Address, Remote] = {}
        self.requests: dict[int, None] = {}
        self.reason = ""                # why nothing is granted, as the raylet says
        self.spreads = False            # the next task shall go elsewhere: an idle lease is not kept
        self.passed_over = 0            # tasks that went before the oldest, being nearer

    @property
    def idle(self) -> bool:
        return not self.queue and not self.leases and not self.requests


def places(record: TaskRecord) -> dict[bytes, int]:
    """Bytes of the task's stored arguments by the node that has them; a sample when there are many."""
    found: dict[bytes, int] = {}
    for entry in (record.dependencies or ())[:ARGUMENTS_LOOKED_AT]:
        if entry.rare is not None:
            for node_id in entry.rare.locations:
                found[node_id] = found.get(node_id, 0) + entry.size
    return found


def _is_far(record: TaskRecord, node_id: bytes) -> bool:
    """Another node has more of the task's arguments, and so much that it counts."""
    found = places(record)
    most = max(found.values(), default=0)
    return most >= NEAR_LEAST and found.get(node_id, 0) < most


class Submission:
    """All lanes of one owner."""

    def __init__(self, out: list[Any], remotes: dict[Address, Remote]) -> None:
        self.out = out
        self.remotes = remotes
        self.lanes: dict[Any, Lane] = {}
        self.still_ready: Callable[[TaskRecord], bool] = lambda record: True
        """Asked before a push: False when an argument was lost meanwhile; `ready` comes again then."""
        self._requests: dict[int, Lane] = {}
        self._next_request = 0
        self._later: list[tuple[float, int, TaskRecord]] = []
        """A heap of what raised and runs again: (when, a number that orders, the task)."""
        self._delayed = 0

    def lane(self, key: Any, spec: Any) -> Lane:
        """The lane of a scheduling class; `key` is hashable, `spec` goes to the raylet."""
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key, spec)
        return lane

    def lane_of(self, request_id: int) -> Lane | None:
        """The lane that a lease request was made for, while it is wanted."""
        return self._requests.get(request_id)

    # ---- stimuli

    def ready(self, now: float, record: TaskRecord) -> None:
        """All arguments of `record` have values."""
        record.state = READY
        lane: Lane = record.lane
        lane.queue.append(record)
        self.dispatch(now, lane)

    def ready_later(self, now: float, record: TaskRecord) -> None:
        """It has raised more than once and runs again: `ready`, after a pause."""
        pause_s = min(RETRY_PAUSE_MAX_S, RETRY_PAUSE_S * 2 ** min(record.attempt - 2, 10))
        self._delayed += 1
        heapq.heappush(self._later, (now + pause_s, self._delayed, record))
        self.out.append(Paused(now + pause_s))

    def lease_granted(self, now: float, request_id: int, lease_id: int, address: Address) -> None:
        """A worker is ours. A grant nobody waits for goes straight back."""
        lane = self._requests.pop(request_id, None)
        remote = self.remotes.get(address)
        if remote is None:
            remote = self.remotes[address] = Remote(address)
        if lane is None and remote.lane is not None and remote.lease_id == lease_id:
            return      # told twice
        if lane is None or remote.lease_id:
            self.out.append(LeaseDone(lease_id, remote))
            return
        del lane.requests[request_id]
        remote.lease_id = lease_id
        remote.lane = lane
        remote.idle_since = now
        lane.leases[address] = remote
        lane.reason = ""
        self.dispatch(now, lane)
        if not remote.inflight and not lane.queue:
            self._give_back(remote)

    def lease_reclaimed(self, lease_id: int, address: Address) -> None:
        """Others wait for their share: push nothing more there, give it back when it is idle."""
        remote = self.remotes.get(address)
        if remote is None or remote.lease_id != lease_id or remote.lane is None:
            return
        if not remote.inflight:
            self._give_back(remote)
        else:
            remote.reclaimed = True

    def lease_refused(self, request_id: int) -> list[TaskRecord]:
        """The raylet will never grant this: the tasks that hoped for it come back to be failed."""
        lane = self._requests.pop(request_id, None)
        if lane is None:
            return []
        lane.requests.pop(request_id, None)
        refused = list(lane.queue)
        lane.queue.clear()
        return refused

    def lease_pending(self, request_id: int, reason: str) -> None:
        """Still queued at the raylet, and this is why."""
        lane = self._requests.get(request_id)
        if lane is not None:
            lane.reason = reason

    def replied(self, now: float, remote: Remote, call: int, spent_us: float) -> TaskRecord | None:
        """A pushed task has ended; None if it is not (any more) in flight there."""
        record = remote.inflight.pop(call, None)
        if record is None or record.client is not None:
            return record
        template = record.template
        known = template.cost_us
        cost = spent_us if known == UNKNOWN_COST_US else known + 0.2 * (spent_us - known)
        template.cost_us = cost if cost > 1.0 else 1.0
        lane = remote.lane
        inflight = remote.inflight
        if not inflight:
            remote.load_us = 0.0
            remote.idle_since = now
            if lane is not None and (remote.reclaimed or (lane.spreads and not lane.queue)):
                self._give_back(remote)
        else:
            remote.load_us = max(0.0, remote.load_us - known)
        if lane is not None and lane.queue:
            self.dispatch(now, lane)
        return record

    def bounced(self, now: float, remote: Remote, calls: list[int], retiring: bool = False) -> None:
        """The worker sends back tasks that it has not started; `retiring`: and will start none any more."""
        if retiring:
            remote.reclaimed = remote.retiring = True
        records = [r for c in calls if (r := remote.inflight.pop(c, None)) is not None]
        lane = remote.lane
        for record in reversed(records):
            remote.load_us = max(0.0, remote.load_us - record.template.cost_us)
            record.state = READY
            record.remote = None
            record.lane.queue.appendleft(record)
        # Whatever holds the worker up is not short: nothing joins it until it replies.
        remote.load_us = max(remote.load_us, UNKNOWN_COST_US) if remote.inflight else 0.0
        if lane is not None:
            if remote.reclaimed and not remote.inflight:
                self._give_back(remote)
            self.dispatch(now, lane)

    def remote_gone(self, now: float, remote: Remote) -> list[TaskRecord]:
        """A leased worker died. Returns its tasks in flight, the one that ran first."""
        lane = remote.lane
        if lane is not None:
            lane.leases.pop(remote.address, None)
            remote.lane = None
        remote.lease_id = 0
        records = [r for r in remote.inflight.values() if r.client is None]
        for record in records:
            del remote.inflight[record.call]
        return records

    def cancelled(self, record: TaskRecord) -> bool:
        """Take a task that was not pushed out of its queue; False if it is not there."""
        try:
            record.lane.queue.remove(record)
        except ValueError:
            return False
        self._trim(record.lane)
        return True

    # ---- decisions

    def dispatch(self, now: float, lane: Lane) -> None:
        """Push what fits on the leases there are; ask for more if work is left."""
        queue = lane.queue
        while queue:
            cost = queue[0].template.cost_us
            remote = self._least_loaded(lane, cost)
            if remote is None:
                break
            record = queue.popleft() if queue[0].dependencies is None else self._nearest(lane, remote)
            if record.dependencies is not None and not self.still_ready(record):
                continue
            remote.load_us += cost
            record.pushed_at = now
            remote.take(record)
            self.out.append(record)
        if queue:
            self._want_leases(now, lane)
        elif lane.requests:
            self._trim(lane)

    def _least_loaded(self, lane: Lane, cost: float) -> Remote | None:
        best = None
        for remote in lane.leases.values():
            load = remote.load_us
            if remote.reclaimed:
                continue
            if not remote.inflight:
                return remote
            has_room = load + cost <= WINDOW_US and len(remote.inflight) < DEPTH
            if has_room and (best is None or load < best.load_us):
                best = remote
        return best

    def _nearest(self, lane: Lane, remote: Remote) -> TaskRecord:
        """Take from the queue what is to run on this lease."""
        queue, node_id = lane.queue, remote.address[0]
        if not lane.spreads and lane.passed_over < LOOK_AHEAD and _is_far(queue[0], node_id):
            for position in range(1, min(LOOK_AHEAD, len(queue))):
                record = queue[position]
                if record.template.cost_us == queue[0].template.cost_us and not _is_far(record, node_id):
                    lane.passed_over += 1
                    del queue[position]
                    return record
        lane.passed_over = 0
        return queue.popleft()

    def _want_leases(self, now: float, lane: Lane) -> None:
        queued = len(lane.queue)
        cost = lane.queue[0].template.cost_us
        if cost > WINDOW_US:
            wanted = queued
        else:
            # Only leases that will soon have room count. One that is held up may wait for this very queue;
            # that is known only of one with a second task, which would be bounced.
            serving = sum(
                r.load_us <= WINDOW_US and not r.reclaimed and len(r.inflight) > 1
                for r in lane.leases.values()
            )
            if serving and queued * cost < WINDOW_US:
                return
            wanted = int(queued * cost / WINDOW_US) + 1 - serving
        wanted = min(wanted, REQUESTS) - len(lane.requests)
        if wanted <= 0:
            return
        for other in self.lanes.values():       # what we hold idle may be what we are waiting for
            if other is not lane and other.leases and not other.queue:
                self._give_back_idle(other)
        for _ in range(wanted):
            record = lane.queue[min(len(lane.requests), queued - 1)]
            self._next_request += 1
            lane.requests[self._next_request] = None
            self._requests[self._next_request] = lane
            self.out.append(LeaseWanted(self._next_request, lane, record))

    def _trim(self, lane: Lane) -> None:
        """Requests beyond what is queued are withdrawn."""
        while len(lane.requests) > len(lane.queue):
            request_id, _ = lane.requests.popitem()
            del self._requests[request_id]
            self.out.append(LeaseUnwanted(request_id))

    def give_back_idle(self) -> None:
        """Leases without work go back at once, whatever will be asked for next."""
        for lane in self.lanes.values():
            self._give_back_idle(lane)

    def _give_back_idle(self, lane: Lane) -> None:
        for remote in list(lane.leases.values()):
            if not remote.inflight:
                self._give_back(remote)

    def _give_back(self, remote: Remote) -> None:
        assert remote.lane is not None and not remote.inflight
        del remote.lane.leases[remote.address]
        self.out.append(LeaseDone(remote.lease_id, remote, remote.retiring))
        remote.lane = None
        remote.lease_id = 0
        remote.load_us = 0.0
        remote.reclaimed = False

    # ---- time

    def next_deadline(self) -> float | None:
        """When the first idle lease is to be given back, or a task runs again."""
        first = None
        for lane in self.lanes.values():
            for remote in lane.leases.values():
                if not remote.inflight and (first is None or remote.idle_since < first):
                    first = remote.idle_since
        due = self._later[0][0] if self._later else None
        if first is None:
            return due
        return first + IDLE_S if due is None else min(due, first + IDLE_S)

    def tick(self, now: float) -> None:
        """Run again what has paused, give back what has been idle long enough."""
        while self._later and self._later[0][0] <= now:
            record = heapq.heappop(self._later)[2]
            if not record.done:     # it may have been cancelled
                self.ready(now, record)
        for key, lane in list(self.lanes.items()):
            for remote in list(lane.leases.values()):
                if not remote.inflight and now >= remote.idle_since + IDLE_S:
                    self._give_back(remote)
            if lane.idle and len(self.lanes) > 256:
                del self.lanes[key]

    def check(self) -> None:
        """Leases and lanes agree; nothing is queued without a lease or a request."""
        for lane in self.lanes.values():
            for address, remote in lane.leases.items():
                assert remote.lane is lane and remote.lease_id, address
                assert self.remotes.get(address) is remote, address
                assert len(remote.inflight) <= DEPTH
            for request_id in lane.requests:
                assert self._requests.get(request_id) is lane
            if lane.queue:
                assert lane.leases or lane.requests, f"{len(lane.queue)} tasks wait for nothing"
