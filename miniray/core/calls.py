"""Actor calls at their caller: one queue per actor, sent in submission order.

::

    PENDING ──alive──▶ ALIVE ──worker gone──▶ RESTARTING ──alive──▶ ALIVE
       └──────────────── dead ───────────────────┴────────▶ DEAD (with its cause)

Calls wait here until the actor has an address and their arguments have values; the head of the
queue holds the rest back, so one caller's calls start in the order they were made (unless the
actor allows out-of-order execution). A call in flight when the actor dies fails, unless it may
be retried (`max_task_retries`): then it goes back to its place and is sent again after the
restart. Pure. Effects: the `TaskRecord` itself (push it), `HandleGone` once per actor, `ActorInDoubt`.

The raylets may say that an actor's process is gone when only the way to it is lost. If the GCS does
not tell of its end within `DOUBT_S`, it is asked; an actor that is alive where it was is reached anew,
and calls that were in flight fail as unavailable, or are made again if they may be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .directory import FREED, Address, ObjectEntry, attempt_ended
from .submission import Remote
from .tasks import PUSHED, READY, WAITING, TaskRecord

PENDING, ALIVE, RESTARTING, DEAD = "PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD"


DOUBT_S = 15.0
"""Longer than the GCS takes to notice that a node is silent."""


@dataclass(slots=True)
class ActorInDoubt:
    """Its process is said to be gone, and nobody says what became of it: look the actor up."""

    actor_id: bytes


@dataclass(slots=True)
class HandleGone:
    """No handle is left anywhere and every call is answered: the actor may end."""

    actor_id: bytes


class ActorClient:
    """One actor as this process sees it.

    `handles` is False, at the creator, once no process has one; `owned` is True at the creator.
    Elsewhere `token` is the object that handles carry, which is `held` while calls are under way.
    `failure` is the cause once it is DEAD, or known to be RESTARTING; `spec` whatever the shell wants
    to keep.
    """

    __slots__ = (
        "id", "state", "remote", "queue", "handles", "owned", "detached", "failure", "max_task_retries",
        "max_pending_calls", "out_of_order", "spec", "restarts", "reason", "told", "subscribed", "asked",
        "token", "held",
    )  # fmt: skip

    def __init__(self, actor_id: bytes) -> None:
        self.id = actor_id
        self.state = PENDING
        self.remote: Remote | None = None
        self.queue: deque[TaskRecord] = deque()
        self.handles = True
        self.owned = False
        self.detached = False
        self.failure: Any = None
        self.max_task_retries = 0
        self.max_pending_calls = -1
        self.out_of_order = False
        self.spec: Any = None
        self.restarts = 0
        self.reason = ""
        self.told = False
        self.subscribed = False
        self.asked = False              # in doubt, and looked up
        self.token: ObjectEntry | None = None
        self.held: ObjectEntry | None = None

    def is_unreachable(self, state: str, address: Address | None) -> bool:
        """These news mean that the actor lives on in the process that was said to be gone."""
        return self.asked and state == ALIVE and self.remote is not None and self.remote.address == address

    @property
    def pending_calls(self) -> int:
        """Calls submitted and not yet answered."""
        return len(self.queue) + (len(self.remote.inflight) if self.remote is not None else 0)


class ActorCalls:
    """All actors that one process talks to."""

    def __init__(self, out: list[Any], remotes: dict[Address, Remote]) -> None:
        self.out = out
        self.remotes = remotes
        self.clients: dict[bytes, ActorClient] = {}
        self._doubts: dict[bytes, float] = {}   # actor id -> when to ask what became of it
        self.still_ready: Callable[[TaskRecord], bool] = lambda record: True
        """Asked before a push; makes a call unresolved again whose argument was lost meanwhile."""
        self.let_go: Callable[[ObjectEntry], None] = lambda entry: None
        """Takes a pin off an object."""

    def client(self, actor_id: bytes) -> ActorClient:
        """The client of an actor; made at first use."""
        client = self.clients.get(actor_id)
        if client is None:
            client = self.clients[actor_id] = ActorClient(actor_id)
        return client

    def submitted(self, now: float, record: TaskRecord) -> None:
        """A call was made; `record.unresolved` says how many arguments are still missing."""
        client: ActorClient = record.client
        may_go = client.state == ALIVE and not client.queue and record.dependencies is None
        remote = client.remote if may_go else None
        if remote is None:
            client.queue.append(record)
        token = client.token
        if token is not None and client.held is None and token.state != FREED:
            token.pins += 1
            client.held = token
        if remote is not None:      # nothing waits, and it waits for nothing
            self._push(now, record, remote)
        elif client.state == ALIVE:
            self.flush(now, client)

    def answered(self, client: ActorClient) -> None:
        """A call made where the actor was not created has ended: after the last one its handles decide."""
        held = client.held
        if held is not None and not client.pending_calls:
            client.held = None
            self.let_go(held)

    def again(self, now: float, record: TaskRecord) -> None:
        """An earlier call runs once more, in its old place: later ones may wait for its result."""
        client: ActorClient = record.client
        queue = client.queue
        later = (place for place, other in enumerate(queue) if other.submitted_at > record.submitted_at)
        queue.insert(next(later, len(queue)), record)
        if client.state == ALIVE:
            self.flush(now, client)

    def flush(self, now: float, client: ActorClient) -> None:
        """Push what may go."""
        if client.state != ALIVE or client.remote is None:
            return
        queue = client.queue
        if client.out_of_order and any(r.unresolved for r in queue):
            ready = [r for r in queue if self._may_go(r)]
            client.queue = deque(r for r in queue if r.unresolved)
        else:
            ready = []
            while queue and self._may_go(queue[0]):
                ready.append(queue.popleft())
        for record in ready:
            self._push(now, record, client.remote)

    def _push(self, now: float, record: TaskRecord, remote: Remote) -> None:
        record.pushed_at = now
        remote.take(record)
        self.out.append(record)

    def _may_go(self, record: TaskRecord) -> bool:
        return not record.unresolved and (record.dependencies is None or self.still_ready(record))

    def updated(
        self, now: float, actor_id: bytes, state: str, address: Address | None, restarts: int, failure: Any
    ) -> list[TaskRecord]:
        """News of an actor from the GCS. Returns the calls that can never be answered."""
        client = self.clients.get(actor_id)
        if client is None or client.state == DEAD or restarts < client.restarts:
            return []
        client.restarts = restarts
        lost: list[TaskRecord] = []
        if state == ALIVE:
            assert address is not None
            if client.remote is not None and client.remote.address == address and address not in self.remotes:
                if not client.asked:
                    return []   # late news: that process is known to have died
                lost = self._reach_anew(client, client.remote)
            elif client.remote is None or client.remote.address != address:
                lost = self._detach(client)
                client.remote = self.remotes.get(address)
                if client.remote is None:
                    client.remote = self.remotes[address] = Remote(address)
            client.state = ALIVE
            self._settled(client)
            self.flush(now, client)
        elif state == DEAD:
            self._settled(client)
            client.state = DEAD
            client.failure = failure
            lost = self._detach(client, retry=False)
            lost += client.queue
            client.queue = deque()
        else:
            has_lived = client.state in (ALIVE, RESTARTING)
            client.state = state
            self._settled(client)
            if state == RESTARTING:
                client.failure = failure
                if has_lived:   # calls made since it died: they wait only if they may be retried
                    lost = [record for record in client.queue if not self._waits(record)]
                    client.queue = deque(record for record in client.queue if self._waits(record))
                lost = self._detach(client) + lost
        return lost

    @staticmethod
    def _waits(record: TaskRecord) -> bool:
        """Whether a call is for the actor's next life too: it may be retried, or is being retried."""
        return record.retries_left != 0 or record.attempt > 0

    def remote_gone(self, now: float, client: ActorClient) -> None:
        """The actor's process died: nothing more is sent; the GCS will say what becomes of it."""
        if client.state == ALIVE:
            client.state = RESTARTING
            client.failure = None
            self._doubts[client.id] = now + DOUBT_S

    def _settled(self, client: ActorClient) -> None:
        """It is known again what became of the actor."""
        self._doubts.pop(client.id, None)
        client.asked = False

    def _reach_anew(self, client: ActorClient, former: Remote) -> list[TaskRecord]:
        """The process lives: open another way to it. Calls are numbered on, as old answers may come."""
        lost = self._detach(client)
        client.remote = self.remotes[former.address] = Remote(former.address)
        client.remote.next_call = former.next_call
        return lost

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        return min(self._doubts.values()) if self._doubts else None

    def tick(self, now: float) -> None:
        """Ask for actors of which nobody has told anything for too long."""
        for actor_id in [actor_id for actor_id, due in self._doubts.items() if due <= now]:
            self._doubts[actor_id] = now + DOUBT_S
            self.clients[actor_id].asked = True
            self.out.append(ActorInDoubt(actor_id))

    def _detach(self, client: ActorClient, retry: bool = True) -> list[TaskRecord]:
        """Leave the old process: calls that may be retried go back to the queue's head."""
        remote, client.remote = client.remote, None
        if remote is None:
            return []
        lost, again = [], []
        for record in list(remote.inflight.values()):
            if record.client is not client:
                continue
            del remote.inflight[record.call]
            record.remote = None
            attempt_ended(record.returns, remote.address[0])
            if retry and record.retries_left != 0 and not record.cancel_requested:
                record.retries_left -= record.retries_left > 0
                record.attempt += 1
                record.state = READY
                again.append(record)
            else:
                lost.append(record)
        client.queue.extendleft(reversed(again))
        return lost

    def withdrawn(self, now: float, record: TaskRecord) -> None:
        """A call that was not pushed leaves the queue: cancelled, or an argument failed.

        Those behind it need not wait for it any more.
        """
        client: ActorClient = record.client
        assert record.state != PUSHED, record
        try:
            client.queue.remove(record)
        except ValueError:      # given up already, together with the call whose result it takes
            return
        self.flush(now, client)

    def handles_gone(self, client: ActorClient) -> None:
        """No process has a handle any more (the object that handles carry was freed)."""
        client.handles = False
        self.consider(client)

    def consider(self, client: ActorClient) -> None:
        """Tell the GCS when the last handle is gone and every call is answered."""
        if client.handles or not client.owned or client.detached or client.told or client.state == DEAD:
            return
        if client.queue or (client.remote is not None and client.remote.inflight):
            return
        client.told = True
        self.out.append(HandleGone(client.id))

    def check(self) -> None:
        """Each queued call belongs to its client and is not in flight."""
        for client in self.clients.values():
            for record in client.queue:
                assert record.client is client and record.state in (WAITING, READY), record
            if client.state == DEAD:
                assert not client.queue and client.remote is None
