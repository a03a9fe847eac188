"""Lease requests before they are granted: queued here, sent to another node, or told why they wait.

::

    LeaseRequest ─▶ place ─▶ other node: forwarded (hops + 1), which answers the requester's raylet
                      └────▶ here, or nowhere yet: queued; a reason goes to the requester at once
                             when nothing in the cluster could ever serve it, else every half second

A queue holds the requests of one scheduling class and nesting depth, first in first out. A change
of the cluster's view sends on what has room elsewhere now; a request that was sent here by another
raylet stays as long as this node can serve it.

Pure; the front half of `core.leases`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, raylet_pb2, worker_pb2
from miniray.core import policy, resources
from miniray.core.contract import Send, Stories
from miniray.core.node_effects import to_client
from miniray.core.pool import Pool
from miniray.core.relay import Relay
from miniray.core.resources import Resources

HOPS = 3
"""A request is forwarded at most so often; then it waits where it is."""

STUCK_S = 2.0
"""So long one waits where it may not be forwarded; then it goes a step back if there is room elsewhere."""

HOPELESS_S = 1.0
"""A request that no view of the cluster could serve is refused after so long."""

DEBIT_S = 1.0
"""A node's report arrives within this time if its figures have changed."""

DOUBT_EVERY_S = 2.0
"""How often the GCS is asked about a placement group that no node has a bundle of."""

RequestKey = tuple[bytes, int]
"""(worker id of the requester, its request id)."""

QueueKey = tuple[bytes, int]


@dataclass(slots=True)
class Request:
    """A lease request that is queued here or was forwarded."""

    key: RequestKey
    message: worker_pb2.LeaseRequest
    demand: Resources
    via: bytes
    """The node that forwarded it; b"" for a client of this node."""
    since: float
    forwarded: bytes = b""
    reason: str = ""


@dataclass(slots=True)
class Queue:
    """Requests of one scheduling class and depth."""

    cls: common.SchedulingClass
    depth: int
    demand: Resources
    allowed_here: bool
    """Whether affinity and labels let this node serve it."""
    requests: dict[RequestKey, Request] = field(default_factory=dict)
    reason: str = ""


@dataclass(slots=True)
class LeaseQueue:
    """See the module head. `view` holds this node first, sharing the amounts of its resources."""

    out: list[Any]
    node_id: bytes
    pool: Pool
    relay: Relay
    view: dict[bytes, policy.NodeView]
    rng: random.Random
    stories: Stories
    ask: Callable[..., None] | None = None
    """Asks the GCS: `Bridge.ask`."""
    doubts: dict[bytes, float] = field(default_factory=dict)
    """Placement groups that no node has a bundle of, and when to ask the GCS about them again."""
    queues: dict[QueueKey, Queue] = field(default_factory=dict)
    known: dict[RequestKey, Request] = field(default_factory=dict)
    """Queued and forwarded ones."""
    abroad: dict[tuple[bytes, int], RequestKey] = field(default_factory=dict)
    """Leases that clients of this node hold on others: (node, lease id)."""
    debits: deque[tuple[float, policy.NodeView, Resources]] = field(default_factory=deque)
    """What was taken off the views of others when requests went there, and until when."""
    turn: int = 0
    """SPREAD choices made so far."""

    # ---- coming and going ----

    def arrived(self, now: float, message: worker_pb2.LeaseRequest, via: bytes) -> None:
        """A new request; one that is known already only has its backlog updated."""
        key = (message.requester.worker_id, message.request_id)
        known = self.known.get(key)
        if known is not None:
            known.message.backlog = message.backlog
            return
        if not via:
            requester = self.pool.workers.get(message.requester.worker_id)
            message.depth = requester.depth if requester is not None else 0
        request = Request(key, message, policy.demand_of(message.scheduling_class), via, now)
        self.known[key] = request
        self.stories.note(now, key[0], f"asks for a lease of {message.scheduling_class.function_name}")
        self.place(now, request)

    def cancelled(self, message: worker_pb2.LeaseCancel) -> bool:
        """The requester does not need it any more. False: it is not (or no longer) a request."""
        request = self.known.get((message.requester.worker_id, message.request_id))
        if request is not None:
            self._end(request)
        return request is not None

    def requester_gone(self, worker_id: bytes) -> None:
        """A requester, of any node, has ended."""
        self.abroad = {lease: key for lease, key in self.abroad.items() if key[0] != worker_id}
        for key, request in list(self.known.items()):
            if key[0] == worker_id:
                self._end(request)

    def job_ended(self, job_id: bytes, keep: dict[bytes, None]) -> None:
        """Nobody needs leases of this job, but for the workers in `keep`."""
        for request in list(self.known.values()):
            message = request.message
            if message.scheduling_class.job_id == job_id and message.requester.worker_id not in keep:
                self._end(request)

    def peer_lost(self, now: float, node_id: bytes) -> None:
        """A node has died: what came from there goes, what was sent there is placed again.

        What its clients asked for by way of another node goes back there, which ends it as well.
        """
        self.abroad = {lease: key for lease, key in self.abroad.items() if lease[0] != node_id}
        for request in list(self.known.values()):
            if request.via == node_id:
                self._end(request)
            elif request.forwarded == node_id:
                request.forwarded = b""
                self.place(now, request)
            elif request.via and not request.forwarded and request.message.requester.node_id == node_id:
                self._leave(request)
                self._give_back(request)

    def _end(self, request: Request) -> None:
        del self.known[request.key]
        if request.forwarded:
            cancel = worker_pb2.LeaseCancel(request_id=request.key[1], requester=request.message.requester)
            self.out.append(Send(request.forwarded, raylet_pb2.PeerMessage(lease_cancel=cancel)))
        else:
            self._leave(request)

    def taken(self, request: Request) -> None:
        """The head of a queue has its resources: it is a grant from now on."""
        del self.known[request.key]
        self._leave(request)

    # ---- placing ----

    def place(self, now: float, request: Request) -> None:
        """Queue the request here, or forward it; say so when nobody could ever serve it."""
        self._settle(now)
        choice = self._choose(request)
        if choice.node_id not in (None, self.node_id) and request.message.hops < HOPS:
            assert choice.node_id is not None
            self._send_on(now, request, choice.node_id)
            return
        self._queue_for(request).requests[request.key] = request
        if choice.node_id is None and not choice.feasible:
            self._report(request, choice.reason)

    def _choose(self, request: Request) -> policy.Choice:
        """Where there is room now; else, when this node can never serve it, one that can."""
        message = request.message
        strategy = message.scheduling_class.strategy
        here = self.view[self.node_id]
        if message.hops and here.state == common.NODE_ALIVE and policy.has_room(here, request.demand):
            return policy.Choice(self.node_id)  # its first raylet chose us: no second opinion
        if strategy.spread:
            self.turn += 1
        arguments = {entry.node_id: entry.bytes for entry in message.arguments}
        choice = policy.choose(self.view, request.demand, strategy, local=self.node_id,
                               arguments=arguments, rng=self.rng, turn=self.turn)
        if choice.node_id is not None or not choice.feasible or self._fits_empty_here(request):
            return choice
        others = {node_id: replace(node, available=node.total) for node_id, node in self.view.items()
                  if node_id != self.node_id}
        return policy.choose(others, request.demand, strategy, rng=self.rng, turn=self.turn)

    def _fits_empty_here(self, request: Request) -> bool:
        """Whether this node could serve the request when it is empty, strategy included."""
        here = self.view[self.node_id]
        alone = {self.node_id: replace(here, available=here.total)}
        strategy = request.message.scheduling_class.strategy
        return policy.choose(alone, request.demand, strategy).node_id is not None

    def _queue_for(self, request: Request) -> Queue:
        cls, depth = request.message.scheduling_class, request.message.depth
        key = (cls.SerializeToString(deterministic=True), depth)
        queue = self.queues.get(key)
        if queue is None:
            alone = {self.node_id: replace(self.view[self.node_id], state=common.NODE_ALIVE)}
            allowed = policy.choose(alone, {}, cls.strategy).node_id is not None
            queue = self.queues[key] = Queue(cls, depth, request.demand, allowed)
        return queue

    def _leave(self, request: Request) -> None:
        key = (request.message.scheduling_class.SerializeToString(deterministic=True), request.message.depth)
        queue = self.queues.get(key)
        if queue is not None and queue.requests.pop(request.key, None) is not None and not queue.requests:
            del self.queues[key]

    def view_changed(self, now: float) -> None:
        """Other nodes have more or less: queued requests may be better off there."""
        self._settle(now)
        for queue in list(self.queues.values()):
            for request in list(queue.requests.values()):
                choice = self._choose(request)
                is_last = request.message.hops >= HOPS
                if choice.node_id in (None, self.node_id) or (is_last and now - request.since < STUCK_S):
                    break  # those behind it would fare no better
                assert choice.node_id is not None
                self._leave(request)
                if is_last:
                    self._give_back(request)
                else:
                    self._send_on(now, request, choice.node_id)

    def _settle(self, now: float) -> None:
        """Give back what was taken off the views of nodes that have not reported since.

        A lease that came and went between two reports changes no figure, so nobody is told.
        """
        while self.debits and self.debits[0][0] <= now:
            _, other, demand = self.debits.popleft()
            resources.add(other.available, demand)  # in vain if a report has replaced it

    def _send_on(self, now: float, request: Request, node_id: bytes) -> None:
        """Forward, but never to where it came from: that raylet still has it, and places it anew."""
        if request.via and node_id in (request.via, request.message.requester.node_id):
            self._give_back(request)
        else:
            self._forward(now, request, node_id)

    def _give_back(self, request: Request) -> None:
        """Let the raylet that sent it here place it anew."""
        del self.known[request.key]
        failure = common.Failure(kind=common.UNAVAILABLE, message="there is more room elsewhere")
        back = worker_pb2.LeaseReply(
            request_id=request.key[1], requester=request.message.requester, failure=failure)
        self.out.append(Send(request.via, raylet_pb2.PeerMessage(lease_reply=back)))

    def _forward(self, now: float, request: Request, node_id: bytes) -> None:
        request.forwarded = node_id
        copy = worker_pb2.LeaseRequest()
        copy.CopyFrom(request.message)
        copy.hops += 1
        if not request.via:  # its raylet must hear of the requester's end, to take the lease back
            self.relay.listen_from(request.key[0], node_id)
        self.stories.note(now, request.key[0], f"lease request sent on to node {node_id.hex()[:8]}")
        other = self.view[node_id]
        resources.subtract(other.available, request.demand)  # until its next report
        self.debits.append((now + DEBIT_S, other, request.demand))
        self.out.append(Send(node_id, raylet_pb2.PeerMessage(lease_request=copy)))

    # ---- answers ----

    def reply_arrived(self, now: float, node_id: bytes, reply: worker_pb2.LeaseReply) -> None:
        """A raylet answers a client of this node, or gives back what was forwarded to it.

        Answers come straight from whoever decides, however many hops the request has made: a
        raylet on the way may be dead by now. Those that live forget it by a cancel.
        """
        key = (reply.requester.worker_id, reply.request_id)
        request = self.known.get(key)
        if reply.failure.kind == common.UNAVAILABLE:
            if request is not None and request.forwarded == node_id:
                request.forwarded = b""
                self.place(now, request)
            return
        lease = (node_id, reply.lease_id)
        granted = bool(reply.worker.worker_id)
        if request is None:
            if granted and lease not in self.abroad:  # too late: nobody waits for it
                back = worker_pb2.LeaseReturn(lease_id=reply.lease_id, node_id=node_id)
                self.out.append(Send(node_id, raylet_pb2.PeerMessage(lease_return=back)))
            return
        if granted:
            self.abroad[lease] = key
            self.relay.contact(key[0], node_id, reply.worker.worker_id)
            self.relay.listen_from(key[0], node_id)
        if granted or reply.HasField("failure"):
            if request.forwarded == node_id:
                del self.known[key]
            else:
                self._end(request)
        self.answer(reply)

    def answer(self, reply: worker_pb2.LeaseReply) -> None:
        """Send a reply to the requester: our client, or through the raylet of its node."""
        requester = reply.requester
        if requester.node_id != self.node_id:
            self.out.append(Send(requester.node_id, raylet_pb2.PeerMessage(lease_reply=reply)))
        elif requester.worker_id in self.pool.workers:
            self.out.append(to_client(requester.worker_id, lease_reply=reply))

    def _report(self, request: Request, reason: str) -> None:
        """Tell the requester why it waits, when the reason is new."""
        if request.reason == reason:
            return
        request.reason = reason
        self.answer(worker_pb2.LeaseReply(
            request_id=request.key[1], requester=request.message.requester, pending_reason=reason))

    def report(self, holders: dict[str, int]) -> None:
        """Tell every queued request why it waits; `holders` counts the leases here by function."""
        for queue in self.queues.values():
            queue.reason = self._reason_for(queue, holders)
            for request in queue.requests.values():
                self._report(request, queue.reason)

    def _reason_for(self, queue: Queue, holders: dict[str, int]) -> str:
        choice = policy.choose(self.view, queue.demand, queue.cls.strategy, local=self.node_id)
        if choice.node_id is None and not (choice.feasible and len(self.view) == 1):
            return choice.reason
        available = self.view[self.node_id].available
        free = {name: available.get(name, 0) for name in queue.demand}
        by = ", ".join(f"{count} x {name}" for name, count in holders.items())
        if choice.reason and any(resources.group_of(name) for name in queue.demand):
            return choice.reason + (f"; held by {by}" if by else "")
        return (f"waits for {resources.render(queue.demand)} on node {self.node_id.hex()[:8]}, which has "
                f"{resources.render(free)} free" + (f"; held by {by}" if by else ""))

    def refuse_hopeless(self, now: float) -> None:
        """Refuse what is bound to a node that is dead or too small; the view had time to catch up."""
        doubtful: dict[bytes, None] = {}
        for queue in list(self.queues.values()):
            choice = policy.choose(self.view, queue.demand, queue.cls.strategy, local=self.node_id)
            late = [request for request in queue.requests.values() if now - request.since >= HOPELESS_S]
            if choice.hopeless:
                failure = common.Failure(kind=common.INFEASIBLE, message=choice.reason)
                for request in late:
                    self._refuse(request, failure)
            elif late and not choice.feasible and queue.cls.strategy.HasField("bundle"):
                doubtful[queue.cls.strategy.bundle.placement_group_id] = None
        self.doubts = {group_id: due for group_id, due in self.doubts.items() if group_id in doubtful}
        for group_id in doubtful:
            if now >= self.doubts.get(group_id, now):
                self.doubts[group_id] = now + DOUBT_EVERY_S
                self._doubt(group_id)

    def _refuse(self, request: Request, failure: common.Failure) -> None:
        self.taken(request)
        self.answer(worker_pb2.LeaseReply(
            request_id=request.key[1], requester=request.message.requester, failure=failure))

    def _doubt(self, group_id: bytes) -> None:
        """A placement group without a bundle may be on its way, or gone: the GCS knows."""
        if self.ask is None:
            return

        def looked_up(at: float, reply: gcs_pb2.ControlReply) -> None:
            if reply.failure.kind == common.NOT_FOUND or reply.group.state == common.GROUP_REMOVED:
                self.group_removed(group_id)

        self.ask(looked_up, group_lookup=gcs_pb2.GroupLookup(placement_group_id=group_id))

    def group_removed(self, group_id: bytes) -> None:
        """What waits for a bundle of this group will never get it."""
        failure = common.Failure(kind=common.PLACEMENT_GROUP_REMOVED,
                                 message=f"placement group {group_id.hex()} was removed")
        for queue in list(self.queues.values()):
            if queue.cls.strategy.bundle.placement_group_id == group_id:
                for request in list(queue.requests.values()):
                    self._refuse(request, failure)

    # ---- people and tests ----

    def demand_summary(self) -> list[tuple[Resources, int, str]]:
        """Pending requests by shape: (resources, count, reason)."""
        return [(queue.demand, len(queue.requests), queue.reason) for queue in self.queues.values()]

    def check(self) -> None:
        """Queues and known requests agree."""
        queued = [key for queue in self.queues.values() for key in queue.requests]
        waiting = [key for key, request in self.known.items() if not request.forwarded]
        assert sorted(queued) == sorted(waiting), "queues and requests disagree"
        for queue in self.queues.values():
            assert queue.requests, "empty queue kept"
