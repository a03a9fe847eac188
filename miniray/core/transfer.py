"""Pulls: bringing copies of objects to this node, from memory of another node or from disk.

::

    PullRequest ─▶ queued ─(admitted by priority and bytes)─▶ restoring  (our own copy is on disk)
                                                         └──▶ fetching from one source
        PullReply ◀── done │ next source │ room wanted, then again │ no source left: OBJECT_LOST

Requests for one object share one pull, which runs at its most urgent requester's priority
(GET before WAIT before ARGUMENT). Of the sources known the one with the fewest fetches under way
is taken; a source that is busy names others that have a copy, so a broadcast forms a tree.

When a source fails half-way another one is asked at once for the rest. Bytes of two sources are put
together only if somebody who has a copy named both of them at one time (`Pull.kin`): an object that its
task has made anew may differ from what was lost.

A pull that does not get on has its object's owner tell where copies come and go (`core.lookout`).

Pure; runs inside `core.node.Node`. Limits: `ACTIVE_PULLS` at a time, `PULLS_PER_SOURCE` of them from one
node, and their bytes stay under `ACTIVE_SHARE` of the store unless there is only one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2, worker_pb2
from miniray.core.contract import Send
from miniray.core.lookout import Lookout
from miniray.core.memory import ROOM_WAIT_S, Memory, Owner
from miniray.core.node_effects import DeleteObjects, StartFetch, StopFetch, to_client
from miniray.core.pulls import (
    BACKING_OFF,
    FETCHING,
    MAKING_ROOM,
    QUEUED,
    RESTORING,
    TAKE_OVER,
    Pull,
    Waiter,
)

ACTIVE_PULLS = 16
PULLS_PER_SOURCE = 8
"""So that a source that has fallen silent holds up what comes from others only in part."""
ACTIVE_SHARE = 0.5
BUSY_RETRY_S = 0.02
BUSY_RETRY_MAX_S = 0.64
"""A busy source is asked again after the first, and after twice as long each time, up to the second."""

PATIENT_REFUSALS = 4
"""A pull that has met so many busy sources asks the owner for news of others."""

UNREACHED_S = 30.0
"""A node that the GCS takes for alive is asked again for so long when it does not answer us."""
SILENT_RETRY_S = 0.5

ARGUMENT_ROOM_WAIT_S = 2.0
"""Arguments wait less for room than others: their task gives back what it holds and tries again."""

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
    arrived: Callable[[bytes], int] = lambda object_id: 0
    """Bytes of a fetch that have come so far; the shell's."""
    lookout: Lookout = field(init=False)

    def __post_init__(self) -> None:
        self.lookout = Lookout(self.node_id, self.memory.relay, self.peers)

    # ---- stimuli ----

    def pull_requested(self, now: float, worker_id: bytes, message: worker_pb2.PullRequest) -> None:
        """A client wants a copy of an object in this node's store."""
        self._want(now, (worker_id, message.request_id), message)

    def take_over_requested(self, now: float, node_id: bytes, message: raylet_pb2.TakeOver) -> None:
        """A node leaves: its copy comes here, to stay. Answered with `TakenOver`."""
        self._want(now, (node_id, TAKE_OVER), worker_pb2.PullRequest(
            object_id=message.object_id, owner=message.owner, locations=[node_id], size=message.size,
            priority=worker_pb2.PullRequest.WAIT))

    def _want(self, now: float, waiter: Waiter, message: worker_pb2.PullRequest) -> None:
        pull = self.pulls.get(message.object_id)
        if pull is None:
            pull = Pull(message.object_id, self.next_order, message.owner, message.size)
            self.next_order += 1
            self.pulls[message.object_id] = pull
        pull.waiters[waiter] = message.priority
        for node_id in message.locations:
            pull.failed.pop(node_id, None)  # its owner still lists it: worth another attempt
        pull.name(message.locations)
        if pull.state == BACKING_OFF:
            self._next_source(now, pull)
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
        self._end(pull)
        self.lookout.leave(pull)
        self._advance(now)

    def _end(self, pull: Pull) -> None:
        """The pull is over, and what has come of it is dropped."""
        del self.pulls[pull.object_id]
        if pull.state == FETCHING:
            self._leave_source(pull)
            self.out.append(StopFetch(pull.object_id))
        elif pull.kept is not None:
            self.out.append(StopFetch(pull.object_id))

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
            pull.kept, pull.state = None, QUEUED
            self._finish(now, pull, None, fetched=source != self.node_id)
        elif failure.kind == common.STORE_FULL:
            self._want_room(now, pull)
        else:
            self._source_failed(now, pull, source, failure, elsewhere)
        self._advance(now)

    def _source_failed(self, now: float, pull: Pull, source: bytes, failure: common.Failure,
                       elsewhere: list[bytes]) -> None:
        if failure.kind == common.NODE_DIED:  # half-way, perhaps
            pull.kept = pull.kin[source]
        silent = failure.kind == common.NODE_DIED and source in self.peers
        if silent and now < pull.unreached.setdefault(source, now) + UNREACHED_S:
            self._give_time(pull, source, now + SILENT_RETRY_S)
            self.lookout.watch(pull)
        elif failure.kind == common.UNAVAILABLE:  # busy: ask those it served, else ask it again
            pull.name([source, *(n for n in elsewhere if n not in pull.failed and n != self.node_id)])
            pause = min(BUSY_RETRY_S * 2**min(pull.refusals, 10), BUSY_RETRY_MAX_S)
            pull.refusals += 1
            self._give_time(pull, source, now + pause)
            if pull.refusals >= PATIENT_REFUSALS:
                self.lookout.watch(pull)
            if self.lookout.is_stranded(now, pull, self.arrived(pull.object_id)):
                pull.state = QUEUED
                self._finish(now, pull, self._lost(pull))
                return
        else:
            pull.drop(source, failure.message)
        self._next_source(now, pull)

    def _give_time(self, pull: Pull, source: bytes, until: float) -> None:
        """The source comes last in turn from now on, and not before `until`."""
        pull.not_before[source] = until
        del pull.sources[source]
        pull.sources[source] = None

    def _next_source(self, now: float, pull: Pull) -> None:
        """Wait only if every source is to be given time."""
        pull.state = BACKING_OFF if pull.sources and not pull.ready(now) else QUEUED

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
            self._next_source(now, pull)
        self._advance(now)

    def _restored(self, now: float, object_id: bytes, failure: common.Failure | None) -> None:
        pull = self.pulls.get(object_id)
        if pull is None or pull.state != RESTORING:
            return
        if failure is None or failure.kind in (common.STORE_FULL, common.OUT_OF_DISK):
            self._finish(now, pull, failure)
        else:
            pull.drop(self.node_id, failure.message)
            self._next_source(now, pull)
        self._advance(now)

    def peer_lost(self, now: float, node_id: bytes) -> None:
        """A node has died: it is no source any more, and the rest comes from another one."""
        self.client_gone(now, node_id)  # what it had us take over
        for pull in self.pulls.values():
            if node_id not in pull.sources:
                continue
            if pull.state == FETCHING and pull.source == node_id:
                pull.kept = pull.kin[node_id]
                self._leave_source(pull)
                self.out.append(StopFetch(pull.object_id, keep=True))
                pull.state = QUEUED
            pull.drop(node_id, "the node has died")
            if pull.state in (QUEUED, BACKING_OFF):
                self._next_source(now, pull)
        self._advance(now)

    def copies_news(self, now: float, node_id: bytes, message: worker_pb2.CopiesNews) -> None:
        """The owner of an object, a worker of `node_id`, tells where copies of it are."""
        pull = self.pulls.get(message.object_id)
        if pull is None or not pull.is_watching or pull.owner.node_id != node_id:
            return
        if message.over and pull.state == FETCHING:
            pull.is_watching = False    # what is read comes to its end, or does not, by itself
            for other in [one for one in pull.sources if one != pull.source]:
                pull.drop(other, message.over)
        elif message.over:
            pull.is_watching = False
            self._finish(now, pull, common.Failure(kind=common.OBJECT_LOST, message=(
                f"object {pull.object_id.hex()} will have no copy: {message.over}")))
        else:
            self.lookout.heard(pull, message)
            if pull.state in (QUEUED, BACKING_OFF):
                self._next_source(now, pull)
            elif pull.state == FETCHING:
                self._leave_stalled(now, pull)
        self._advance(now)

    def peer_restarted(self, node_id: bytes) -> None:
        """It has forgotten that owners there were to tell us."""
        for pull in self.pulls.values():
            if pull.is_watching and pull.owner.node_id == node_id:
                pull.is_watching = False
                self.lookout.watch(pull)

    def freed(self, now: float, object_ids: list[bytes]) -> None:
        """Nobody can reach these objects: waiting for them makes no sense."""
        for object_id in object_ids:
            pull = self.pulls.get(object_id)
            if pull is None:
                continue
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
        total = sum(pull.size for pull in self.pulls.values()
                    if pull.state in (FETCHING, RESTORING, MAKING_ROOM) or pull.kept is not None)
        limit = int(ACTIVE_SHARE * self.memory.capacity)
        for pull in waiting:
            taken = 0 if pull.kept is not None else pull.size
            if count and (count >= ACTIVE_PULLS or total + taken > limit):
                return
            if self._start(now, pull):
                count += 1
                total += taken

    def _start(self, now: float, pull: Pull) -> bool:
        """Begin one pull. False when it waits for its turn at a source, or has none and is answered."""
        if self.memory.is_spilled(pull.object_id):
            pull.state = RESTORING
            object_id = pull.object_id
            self.memory.restore(now, object_id, lambda at, why: self._restored(at, object_id, why))
            return True
        if not pull.sources:
            self._finish(now, pull, self._lost(pull))
            return False
        source = self._choose(now, pull)
        if self.sources_busy.get(source, 0) >= PULLS_PER_SOURCE:
            return False
        pull.source = source
        self.sources_busy[source] = self.sources_busy.get(source, 0) + 1
        pull.state = FETCHING
        self.lookout.fetch_began(now, pull, self.arrived(pull.object_id))
        fresh = pull.kept is not None and pull.kin[source] != pull.kept
        if fresh:
            pull.kept = None
        self.out.append(StartFetch(pull.object_id, source, fresh))
        return True

    def _choose(self, now: float, pull: Pull) -> bytes:
        """Our own node first: whatever we were told is stale if the copy is here. Then those that can go
        on where another stopped, then the one that we ask for least."""
        ready = pull.ready(now)
        if self.node_id in ready:
            return self.node_id
        return min(ready, key=lambda node_id: (pull.kept not in (None, pull.kin[node_id]),
                                               self.sources_busy.get(node_id, 0)))

    def _leave_stalled(self, now: float, pull: Pull) -> None:
        """Go on from another node that has all of it, when nothing comes from one that should have."""
        if not self.lookout.has_stalled(now, pull):
            return
        source = pull.source
        pull.kept = pull.kin[source]
        self._leave_source(pull)
        self.out.append(StopFetch(pull.object_id, keep=True))
        self._give_time(pull, source, now + SILENT_RETRY_S)
        self._next_source(now, pull)

    def _leave_source(self, pull: Pull) -> None:
        left = self.sources_busy[pull.source] - 1
        if left:
            self.sources_busy[pull.source] = left
        else:
            del self.sources_busy[pull.source]
        pull.source = b""

    def _finish(self, now: float, pull: Pull, failure: common.Failure | None, fetched: bool = False) -> None:
        self._end(pull)
        if not fetched:     # else the owner hears of the copy
            self.lookout.leave(pull)
        if fetched and pull.owner.worker_id:
            self.memory.relay.location_changed(worker_pb2.LocationUpdate(
                object_id=pull.object_id, node_id=self.node_id, size=pull.size, owner=pull.owner))
        for worker_id, request_id in pull.waiters:
            if request_id == TAKE_OVER:
                self.tell_taken_over(worker_id, pull.object_id, failure)
                continue
            reply = worker_pb2.PullReply(request_id=request_id, object_id=pull.object_id, failure=failure,
                                         failed_nodes=list(pull.failed))
            self.out.append(to_client(worker_id, pull=reply))

    def tell_taken_over(self, node_id: bytes, object_id: bytes, failure: common.Failure | None) -> None:
        """Answer a node that leaves: its copy is kept here now, or it is not."""
        if failure is None:
            self.memory.copy_adopted(object_id)
        self.out.append(Send(node_id, raylet_pb2.PeerMessage(
            taken_over=raylet_pb2.TakenOver(object_id=object_id, failure=failure))))

    def _lost(self, pull: Pull) -> common.Failure:
        tried = "; ".join(f"node {n.hex()[:8]}: {why}" for n, why in pull.failed.items())
        return common.Failure(kind=common.OBJECT_LOST, message=(
            f"no node has a copy of object {pull.object_id.hex()} (any more)"
            + (f" (tried {tried})" if tried else "")))

    # ---- time, people, tests ----

    def told(self, now: float, object_id: bytes) -> list[str]:
        """How a pull of this object stands, for people."""
        pull = self.pulls.get(object_id)
        if pull is None:
            return []
        here = f"node {self.node_id.hex()[:12]}"
        if pull.state == FETCHING:
            source = f"node {pull.source.hex()[:12]}"
            come = self.arrived(object_id)
            return [f"{here} fetches it from {source}: {come} of {pull.size} bytes are there"]
        if pull.state == RESTORING:
            return [f"{here} restores it from disk: {pull.size} bytes"]
        if pull.state == MAKING_ROOM:
            return [f"{here} has no room for its {pull.size} bytes yet: the store is full"]
        if pull.state == BACKING_OFF:
            wait = max(0.0, pull.retry_at - now)
            return [f"{here} asks its source again in {wait:.1f} s: it is busy or does not answer"]
        before = sum(other.state != QUEUED or (other.priority, other.order) < (pull.priority, pull.order)
                     for other in self.pulls.values())
        return [f"{here} fetches it after {before} others: {ACTIVE_PULLS} at a time"]

    def next_deadline(self) -> float | None:
        """When a busy source is asked again, or a fetch is looked at."""
        return min((p.retry_at if p.state == BACKING_OFF else p.look_at for p in self.pulls.values()
                    if p.state in (BACKING_OFF, FETCHING)), default=None)

    def tick(self, now: float) -> None:
        """Ask busy sources again; look whether fetches get on."""
        for pull in self.pulls.values():
            if pull.state == BACKING_OFF:
                self._next_source(now, pull)
            elif pull.state == FETCHING and now >= pull.look_at:
                self.lookout.look(now, pull, self.arrived(pull.object_id))
                self._leave_stalled(now, pull)
        self._advance(now)

    def check(self) -> None:
        """Every pull has a waiter and a next step; source counts are right."""
        counts: dict[bytes, int] = {}
        for pull in self.pulls.values():
            assert pull.waiters, "a pull nobody waits for"
            assert pull.kin.keys() == pull.sources.keys() >= pull.not_before.keys(), "sources miscounted"
            assert pull.state != BACKING_OFF or pull.sources, "a pull without a source waits for one"
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
