"""Pulls: bringing copies of objects to this node, from memory of another node or from disk.

::

    PullRequest ─▶ queued ─(admitted by priority and bytes)─▶ restoring  (our own copy is on disk)
                                                         └──▶ fetching from one source
        PullReply ◀── done │ next source │ room wanted, then again │ no source left: OBJECT_LOST

Requests for one object share one pull, which runs at its most urgent requester's priority
(GET before WAIT before ARGUMENT). Of the sources known the one with the fewest fetches under way
is taken; a source that is busy names others that have a copy, so a broadcast forms a tree.

Pure; runs inside `core.node.Node`. Limits: `ACTIVE_PULLS` at a time, and their bytes stay under
`ACTIVE_SHARE` of the store unless there is only one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2
from miniray.core.memory import ROOM_WAIT_S, Memory, Owner
from miniray.core.node_effects import DeleteObjects, StartFetch, StopFetch, to_client

ACTIVE_PULLS = 16
ACTIVE_SHARE = 0.5
BUSY_RETRY_S = 0.02

UNREACHED_S = 30.0
"""A node that the GCS takes for alive is asked again for so long when it does not answer us."""
SILENT_RETRY_S = 0.5

ARGUMENT_ROOM_WAIT_S = 2.0
"""Arguments wait less for room than others: their task gives back what it holds and tries again."""

QUEUED = "queued"
FETCHING = "fetching"
RESTORING = "restoring"
MAKING_ROOM = "making room"
BACKING_OFF = "backing off"

Waiter = tuple[bytes, int]


@dataclass(slots=True)
class Pull:
    """One object that clients of this node wait for."""

    object_id: bytes
    order: int
    owner: common.Address
    size: int
    waiters: dict[Waiter, int] = field(default_factory=dict)
    """(client, request id) -> priority."""
    sources: dict[bytes, None] = field(default_factory=dict)
    failed: dict[bytes, str] = field(default_factory=dict)
    unreached: dict[bytes, float] = field(default_factory=dict)
    """Living nodes that did not answer, and since when."""
    state: str = QUEUED
    source: bytes = b""
    retry_at: float = 0.0

    @property
    def priority(self) -> int:
        return min(self.waiters.values(), default=worker_pb2.PullRequest.ARGUMENT)


@dataclass(slots=True)
class Transfer:
    """See the module head."""

    out: list[Any]
    node_id: bytes
    memory: Memory
    peers: dict[bytes, Any] = field(default_factory=dict)
    """Nodes that live, for all that we know."""
    pulls: dict[bytes, Pull] = field(default_factory=dict)
    sources_busy: dict[bytes, int] = field(default_factory=dict)
    """Fetches under way per source node."""
    next_order: int = 0

    # ---- stimuli ----

    def pull_requested(self, now: float, worker_id: bytes, message: worker_pb2.PullRequest) -> None:
        """A client wants a copy of an object in this node's store."""
        pull = self.pulls.get(message.object_id)
        if pull is None:
            pull = Pull(message.object_id, self.next_order, message.owner, message.size)
            self.next_order += 1
            self.pulls[message.object_id] = pull
        pull.waiters[(worker_id, message.request_id)] = message.priority
        for node_id in message.locations:
            pull.failed.pop(node_id, None)  # its owner still lists it: worth another attempt
            pull.sources[node_id] = None
        self._advance(now)

    def pull_cancelled(self, now: float, worker_id: bytes, request_id: int) -> None:
        """The client does not wait any more."""
        for pull in list(self.pulls.values()):
            if pull.waiters.pop((worker_id, request_id), None) is not None and not pull.waiters:
                self._abandon(now, pull)
                return

    def client_gone(self, now: float, worker_id: bytes) -> None:
        """All pulls of a client end."""
        for pull in list(self.pulls.values()):
            for waiter in [w for w in pull.waiters if w[0] == worker_id]:
                del pull.waiters[waiter]
            if not pull.waiters:
                self._abandon(now, pull)

    def _abandon(self, now: float, pull: Pull) -> None:
        del self.pulls[pull.object_id]
        if pull.state == FETCHING:
            self._leave_source(pull)
            self.out.append(StopFetch(pull.object_id))
        self._advance(now)

    def fetch_ended(self, now: float, object_id: bytes, size: int, owner: Owner,
                    failure: common.Failure | None, elsewhere: list[bytes]) -> None:
        """The shell's fetch is over; without `failure` the object is sealed in our store."""
        pull = self.pulls.get(object_id)
        if pull is None or pull.state != FETCHING:
            if failure is None and size > 0:  # nobody waits any more, and its owner knows of no copy here
                self.out.append(DeleteObjects([object_id]))
            return
        if failure is None and size > 0:
            self.memory.copy_arrived(object_id, size, owner)
        source = pull.source
        self._leave_source(pull)
        pull.size = size or pull.size
        if failure is None:
            self._finish(now, pull, None, fetched=source != self.node_id)
        elif failure.kind == common.STORE_FULL:
            self._want_room(now, pull)
        else:
            self._source_failed(now, pull, source, failure, elsewhere)
        self._advance(now)

    def _source_failed(self, now: float, pull: Pull, source: bytes, failure: common.Failure,
                       elsewhere: list[bytes]) -> None:
        silent = failure.kind == common.NODE_DIED and source in self.peers
        if silent and now < pull.unreached.setdefault(source, now) + UNREACHED_S:
            self._ask_again(pull, source, [], now + SILENT_RETRY_S)
        elif failure.kind == common.UNAVAILABLE:  # busy: ask those it served, else ask it again
            self._ask_again(pull, source, elsewhere, now + BUSY_RETRY_S)
        else:
            pull.sources.pop(source, None)
            pull.failed[source] = failure.message
            pull.state = QUEUED

    def _ask_again(self, pull: Pull, source: bytes, elsewhere: list[bytes], at: float) -> None:
        """The source comes last in turn from now on, and not before `at`."""
        fresh = [n for n in elsewhere if n not in pull.failed and n != self.node_id]
        pull.sources.pop(source, None)
        pull.sources.update(dict.fromkeys(fresh))
        pull.sources[source] = None
        pull.state = BACKING_OFF
        pull.retry_at = at

    def _want_room(self, now: float, pull: Pull) -> None:
        pull.state = MAKING_ROOM
        request = worker_pb2.MakeRoom(bytes=pull.size, object_id=pull.object_id)
        object_id = pull.object_id
        patient = pull.priority != worker_pb2.PullRequest.ARGUMENT
        self.memory.room_requested(
            now, request, b"", lambda at, why: self._room_made(at, object_id, why),
            ROOM_WAIT_S if patient else ARGUMENT_ROOM_WAIT_S)

    def _room_made(self, now: float, object_id: bytes, failure: common.Failure | None) -> None:
        pull = self.pulls.get(object_id)
        if pull is None or pull.state != MAKING_ROOM:
            return
        if failure is not None:
            self._finish(now, pull, failure)
        else:
            pull.state = QUEUED
        self._advance(now)

    def _restored(self, now: float, object_id: bytes, failure: common.Failure | None) -> None:
        pull = self.pulls.get(object_id)
        if pull is None or pull.state != RESTORING:
            return
        if failure is None or failure.kind in (common.STORE_FULL, common.OUT_OF_DISK):
            self._finish(now, pull, failure)
        else:
            pull.failed[self.node_id] = failure.message
            pull.sources.pop(self.node_id, None)
            pull.state = QUEUED
        self._advance(now)

    def peer_lost(self, now: float, node_id: bytes) -> None:
        """A node has died: it is no source any more; a fetch under way fails by itself."""
        for pull in self.pulls.values():
            if pull.sources.pop(node_id, "absent") != "absent":
                pull.failed[node_id] = "the node has died"
        self._advance(now)

    def freed(self, now: float, object_ids: list[bytes]) -> None:
        """Nobody can reach these objects: waiting for them makes no sense."""
        for object_id in object_ids:
            pull = self.pulls.get(object_id)
            if pull is None:
                continue
            if pull.state == FETCHING:  # its bytes must not come after the end
                self._leave_source(pull)
                self.out.append(StopFetch(object_id))
            self._finish(now, pull, common.Failure(
                kind=common.OBJECT_LOST, message=f"object {object_id.hex()} was freed by its owner"))
        self._advance(now)

    # ---- decisions ----

    def _advance(self, now: float) -> None:
        """Start what may start, most urgent first."""
        waiting = [p for p in self.pulls.values() if p.state == QUEUED]
        if not waiting:
            return
        waiting.sort(key=lambda pull: (pull.priority, pull.order))
        active = [p for p in self.pulls.values() if p.state in (FETCHING, RESTORING, MAKING_ROOM)]
        count = len(active)
        total = sum(pull.size for pull in active)
        limit = int(ACTIVE_SHARE * self.memory.capacity)
        for pull in waiting:
            if count and (count >= ACTIVE_PULLS or total + pull.size > limit):
                return
            if self._start(now, pull):
                count += 1
                total += pull.size

    def _start(self, now: float, pull: Pull) -> bool:
        """Begin one pull; False when there is nowhere to get it from (then it is answered)."""
        if self.memory.is_spilled(pull.object_id):
            pull.state = RESTORING
            object_id = pull.object_id
            self.memory.restore(now, object_id, lambda at, why: self._restored(at, object_id, why))
            return True
        if not pull.sources:
            self._finish(now, pull, self._lost(pull))
            return False
        # Our own node first: whatever we were told is stale if the copy is here.
        pull.source = self.node_id if self.node_id in pull.sources else min(
            pull.sources, key=lambda node_id: self.sources_busy.get(node_id, 0))
        self.sources_busy[pull.source] = self.sources_busy.get(pull.source, 0) + 1
        pull.state = FETCHING
        self.out.append(StartFetch(pull.object_id, pull.source))
        return True

    def _leave_source(self, pull: Pull) -> None:
        left = self.sources_busy[pull.source] - 1
        if left:
            self.sources_busy[pull.source] = left
        else:
            del self.sources_busy[pull.source]
        pull.source = b""

    def _finish(self, now: float, pull: Pull, failure: common.Failure | None, fetched: bool = False) -> None:
        del self.pulls[pull.object_id]
        for worker_id, request_id in pull.waiters:
            reply = worker_pb2.PullReply(request_id=request_id, object_id=pull.object_id, failure=failure,
                                         failed_nodes=list(pull.failed))
            self.out.append(to_client(worker_id, pull=reply))
        if fetched and pull.owner.worker_id:
            self.memory.relay.location_changed(worker_pb2.LocationUpdate(
                object_id=pull.object_id, node_id=self.node_id, size=pull.size, owner=pull.owner))

    def _lost(self, pull: Pull) -> common.Failure:
        tried = "; ".join(f"node {n.hex()[:8]}: {why}" for n, why in pull.failed.items())
        return common.Failure(kind=common.OBJECT_LOST, message=(
            f"no node has a copy of object {pull.object_id.hex()} (any more)"
            + (f" (tried {tried})" if tried else "")))

    # ---- time, people, tests ----

    def next_deadline(self) -> float | None:
        """When a busy source is asked again."""
        return min((p.retry_at for p in self.pulls.values() if p.state == BACKING_OFF), default=None)

    def tick(self, now: float) -> None:
        """Ask busy sources again."""
        for pull in self.pulls.values():
            if pull.state == BACKING_OFF and pull.retry_at <= now:
                pull.state = QUEUED
        self._advance(now)

    def check(self) -> None:
        """Every pull has a waiter and a next step; source counts are right."""
        counts: dict[bytes, int] = {}
        for pull in self.pulls.values():
            assert pull.waiters, "a pull nobody waits for"
            if pull.state == FETCHING:
                counts[pull.source] = counts.get(pull.source, 0) + 1
        assert counts == self.sources_busy, "fetches per source miscounted"
        queued = [p for p in self.pulls.values() if p.state == QUEUED]
        active = [p for p in self.pulls.values() if p.state in (FETCHING, RESTORING, MAKING_ROOM)]
        assert active or not queued, "pulls wait although nothing is under way"

    def dump(self) -> dict[str, Any]:
        """The state as plain values."""
        return {p.object_id.hex(): {"state": p.state, "from": p.source.hex(), "size": p.size,
                                    "waiters": len(p.waiters)} for p in self.pulls.values()}
