"""One node of the cluster: the machine behind a raylet, composed of the smaller ones.

::

                    ┌────────────────────────── Node ──────────────────────────┐
    clients ──────▶ │ pool    leases ── hosting    relay    bridge              │ ──▶ out
    (workers,       │ who is  who runs  actors,    who      requests to the GCS │  ToClient, Send,
     drivers)       │ there   what      bundles    talks                        │  StartWorker,
    GCS, raylets ─▶ │ memory ── transfer ── serving                             │  SpillObjects, …
    shell's answers │ room      pulls       readers                             │
                    └────────────────────────────────────────────────────────────┘

The shell (`runtime.raylet`, or the simulator) feeds messages and facts, drains `out` in order,
and keeps the times: `next_deadline`, `tick`. Messages to the GCS are `Send(HEAD, NodeMessage)`,
to other raylets `Send(node_id, PeerMessage)`; both travel over `core.link`. Deterministic: the
same stimuli with the same generator give the same effects.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, raylet_pb2, worker_pb2
from miniray.core import resources
from miniray.core.bridge import Bridge
from miniray.core.census import NodeCensus
from miniray.core.contract import HEAD, Send, Stories
from miniray.core.evacuation import Evacuation
from miniray.core.guard import Guard
from miniray.core.hosting import Hosting
from miniray.core.ids import OBJECT_ID_SIZE
from miniray.core.inbox import Inbox
from miniray.core.inquiries import Inquiries
from miniray.core.lease_queue import LeaseQueue
from miniray.core.leases import Leases
from miniray.core.memory import Memory, Owner
from miniray.core.neighbours import Neighbours
from miniray.core.node_effects import CloseFd, ForgetPeer, Notice, StopNode, Survey, to_client
from miniray.core.packing import unpacked_publications
from miniray.core.policy import NodeView
from miniray.core.pool import DRIVER, Pool
from miniray.core.relay import Relay, node_died
from miniray.core.residents import Residents
from miniray.core.resources import NodeResources
from miniray.core.serving import Serving
from miniray.core.transfer import Transfer

HEARTBEAT_S = 0.5
UNSAVED_S = 10.0
"""What was reported so long before the GCS fell silent may be lost with it."""

HEARTBEAT_SOON_S = 0.1
"""A heartbeat goes earlier than due, but not more often than this, when resources changed."""


class Node:
    """See the module head. `info` describes this node as the GCS shall know it."""

    def __init__(self, info: common.NodeInfo, rng: random.Random, *, store_bytes: int,
                 session_dir: str = "", config: str = "") -> None:
        self.info = info
        self.node_id = info.node_id
        self.session_dir = session_dir
        self.config = config
        self.out: list[Any] = []
        self.stories = Stories()
        self.residents = Residents(self)
        self.census = NodeCensus(self)
        self.resources = NodeResources(resources.from_map(info.total))
        total, available = self.resources.total, self.resources.available
        self.view: dict[bytes, NodeView] = {
            self.node_id: NodeView(self.node_id, info.node_name, total, available, dict(info.labels))}
        if info.takes_no_work:
            self.view[self.node_id].state = common.NODE_DRAINING
        self.neighbours = Neighbours(self.node_id, self.view)
        self.peers = self.neighbours.peers
        """The other nodes that live, as the GCS published them: where to dial them."""
        cpus = -(-self.resources.total.get(resources.CPU, 0) // resources.UNIT)
        self.pool = Pool(self.out, rng, 0 if info.takes_no_work else cpus)
        self.relay = Relay(self.out, self.node_id, self.pool.workers)
        self.bridge = Bridge(self.out, self.node_id)
        self.memory = Memory(
            self.out, self.stories, self.relay, store_bytes, client_name=self.residents.name_of)
        self.transfer = Transfer(self.out, self.node_id, self.memory, self.peers)
        self.serving = Serving()
        self.evacuation = Evacuation(self)
        self.requests = LeaseQueue(
            self.out, self.node_id, self.pool, self.relay, self.view, rng, self.stories, self.bridge.ask)
        self.leases = Leases(self.out, self.node_id, self.pool, self.relay, self.resources, self.requests,
                             on_worker=self.residents.worker_found)
        self.hosting = Hosting(self.out, self.node_id, self.leases, self.pool, self.stories)
        self.guard = Guard(self.out, self.pool, self.leases, self.hosting.restartable)
        self.inbox = Inbox(self)
        self.inquiries = Inquiries(self)
        self.epoch = 0
        self.placements_seen = 0
        """CreateActor and BundleRequest messages of this epoch: what `available` reflects."""
        self.accepted = False
        self.cluster_id = b""
        self.head_heard_at = 0.0
        self.store_bytes_used = 0
        self.drain_at: float | None = None
        self.drain_reason = ""
        self.leaving = False
        self.heartbeat_at = 0.0
        self.heartbeat_sent = float("-inf")
        self.heartbeat_version = self.resources.version

    # ---- life of the node ----

    def started(self, now: float) -> None:
        """The shell runs: introduce the node to the GCS and make workers ready."""
        self._register()
        self.bridge.subscribe("worker", b"")
        self.pool.prestart(now)
        self.heartbeat_at = now + HEARTBEAT_S

    def _register(self) -> None:
        register = gcs_pb2.NodeRegister(
            info=self.info, actors=self.hosting.live_actors(), bundles=self.hosting.held_bundles(),
            jobs=list(self.residents.jobs), workers=list(self.pool.workers), workers_listed=True,
            ended=self.residents.ended_since(self.head_heard_at - UNSAVED_S), cluster_id=self.cluster_id)
        register.info.available.CopyFrom(resources.to_map(self.resources.available))
        self.tell_head(register=register)

    def head_restarted(self, now: float, undelivered: Iterable[gcs_pb2.NodeMessage] = ()) -> None:
        """The GCS has started afresh (its link has a new incarnation): tell it what runs here.

        `undelivered` is what the old one never acknowledged; deaths and task events among it are
        told again (both are safe to repeat), the rest is covered by the registration.
        """
        self._register()
        for message in undelivered:
            if message.WhichOneof("body") in ("worker_failed", "task_events"):
                self.out.append(Send(HEAD, message))
        self.bridge.gcs_restarted()
        self._heartbeat(now)

    def _registered(self, now: float, message: gcs_pb2.NodeRegistered) -> None:
        if not message.accepted:
            if self.leaving:
                return
            self.out.append(StopNode(f"the GCS refused this node: {message.refusal}", failed=True))
            return
        self.accepted = True
        self.cluster_id = message.cluster_id
        if message.epoch != self.epoch:
            self.epoch = message.epoch
            self.placements_seen = 0
        self.config = message.config or self.config

    def drain_requested(self, now: float, deadline_s: float, reason: str) -> None:
        """No new work; leave when what runs has ended and what is here for others has gone to other nodes,
        or after `deadline_s` seconds."""
        if self.drain_at is not None:
            return
        self.leases.draining = True
        self.view[self.node_id].state = common.NODE_DRAINING
        self.info.state = common.NODE_DRAINING
        self.drain_at = now + deadline_s
        self.drain_reason = reason or "drained"
        self.requests.view_changed(now)
        self._heartbeat(now)
        self.evacuation.begun()
        self.leave_if_empty(now)

    def end_requested(self, now: float, reason: str, drained: bool = False) -> None:
        """Leave at once, whatever runs; the GCS need not find out by itself."""
        if not self.leaving:
            self.leaving = True
            running = bool(self.leases.grants)
            left_behind = self.evacuation.left_behind()
            if left_behind:
                self.out.append(Notice(left_behind))
            self.tell_head(leaving=gcs_pb2.NodeLeaving(reason=reason, abrupt=running and not drained))
            self.out.append(StopNode(reason))

    def leave_if_empty(self, now: float) -> None:
        """A draining node leaves when nothing runs any more, or its time is up."""
        if self.drain_at is None or self.leaving:
            return
        if now < self.drain_at and (self.leases.grants or not self.evacuation.is_over()):
            return
        self.end_requested(now, self.drain_reason, drained=True)

    # ---- clients come and go (see `core.residents`) ----

    def worker_registered(self, now: float, worker_id: bytes, pid: int, client_slot: int,
                          register: worker_pb2.Register) -> None:
        """A process with a valid token introduced itself; it gets its answer and the store."""
        self.residents.registered(now, worker_id, pid, client_slot, register)

    def worker_start_failed(self, now: float, startup_token: bytes, failure: common.Failure) -> None:
        """A process ended, or could not be made, before it registered."""
        self.residents.start_failed(now, startup_token, failure)

    def worker_exited(self, now: float, worker_id: bytes, failure: common.Failure) -> None:
        """A client's process has ended; `failure` says how. Its store record is reaped already."""
        self.residents.exited(now, worker_id, failure)
        self.leave_if_empty(now)

    # ---- messages of clients ----

    def worker_message(self, now: float, worker_id: bytes, message: worker_pb2.ToRaylet,
                       fd: int | None = None) -> None:
        """One message of a registered client; `fd` came with it."""
        worker = self.pool.workers.get(worker_id)
        if worker is not None:
            self.inbox.receive(now, worker, message, fd)
        elif fd is not None:
            self.out.append(CloseFd(fd))

    # ---- messages of the GCS ----

    def head_message(self, now: float, message: gcs_pb2.NodeMessage) -> None:
        """One message of the GCS, in order."""
        self.head_heard_at = now
        kind = message.WhichOneof("body")
        if kind == "registered":
            self._registered(now, message.registered)
        elif kind == "reply":
            self.bridge.reply_arrived(now, message.reply)
        elif kind == "publication":
            self._published(now, message.publication)
        elif kind == "publications":
            for publication in unpacked_publications(message.publications):
                self._published(now, publication)
        elif kind == "view":
            self._view_arrived(now, message.view)
        elif kind == "create_actor":
            self.placements_seen += 1
            self.hosting.create_requested(now, message.create_actor)
        elif kind == "actor_waits":
            waits = message.actor_waits
            demand = resources.demand_from_map(waits.demand)
            self.leases.actor_waits(now, waits.actor_id, demand, waits.priority)
        elif kind == "kill_worker":
            self.hosting.kill_requested(now, message.kill_worker)
        elif kind == "bundle_request":
            self.placements_seen += 1
            self.hosting.bundle_requested(now, message.bundle_request)
        elif kind == "drain":
            self.drain_requested(now, message.drain.deadline_s, message.drain.reason)
        elif kind == "job_ended":
            self.residents.job_ended(now, message.job_ended.job_id)
        elif kind == "census":
            self.census.asked(now, message.census)
        elif kind == "inquiry":
            self.inquiries.asked(now, message.inquiry)

    def _published(self, now: float, publication: gcs_pb2.Publication) -> None:
        mine = self.bridge.published(publication)
        if mine and publication.WhichOneof("body") == "worker":
            gone = publication.worker.address
            if gone.node_id != self.node_id:
                self.memory.owner_gone(now, gone.node_id, gone.worker_id)

    def _view_arrived(self, now: float, view: gcs_pb2.ClusterView) -> None:
        for node_id, failure in self.neighbours.view_arrived(now, view):
            self.peer_lost(now, node_id, failure)
        self.requests.view_changed(now)

    def _ask_about_strangers(self, now: float) -> None:
        """No view has named these nodes, for longer than one takes: the GCS knows."""
        strangers = self.neighbours.doubtful(now)
        if strangers:
            def answered(at: float, reply: gcs_pb2.ControlReply) -> None:
                for node_id, failure in self.neighbours.named(strangers, reply.nodes.nodes):
                    self.peer_lost(at, node_id, failure)

            self.bridge.ask(answered, node_list=gcs_pb2.NodeList(node_ids=strangers))

    # ---- messages of other raylets ----

    def peer_message(self, now: float, node_id: bytes, message: raylet_pb2.PeerMessage) -> None:
        """One message of another raylet, in order."""
        if not self.neighbours.reached(now, node_id):
            return
        kind = message.WhichOneof("body")
        if kind == "relay":
            self.relay.relay_arrived(node_id, message.relay)
        elif kind == "lease_request":
            if message.lease_request.requester.node_id not in self.neighbours.lost:
                self.leases.requested(now, message.lease_request, node_id)
        elif kind == "lease_reply":
            self.requests.reply_arrived(now, node_id, message.lease_reply)
            self.leases.dispatch(now)
        elif kind == "lease_return":
            self.lease_returned(now, message.lease_return)
        elif kind == "lease_cancel":
            self.leases.cancelled(now, message.lease_cancel)
        elif kind == "free_objects":
            self.free(now, message.free_objects.object_ids)
        elif kind == "worker_gone":
            self.relay.peer_worker_gone(message.worker_gone)
            self.leases.holder_gone(now, message.worker_gone.address.worker_id)
        elif kind == "relay_hold":
            self.relay.peer_worker_congested(message.relay_hold)
        elif kind == "location":
            self.relay.location_changed(message.location)
        elif kind == "watch":
            self.relay.peer_watches(node_id, message.watch)
        elif kind == "watch_copies" and len(message.watch_copies.object_id) == OBJECT_ID_SIZE:
            self.relay.peer_watches_copies(node_id, message.watch_copies)
        elif kind == "copies_news":
            self.copies_news(now, node_id, message.copies_news)
        elif kind == "kill":
            self.kill(now, message.kill)
        elif kind == "lease_revoked" and message.lease_revoked.holder.worker_id in self.pool.workers:
            self.out.append(to_client(message.lease_revoked.holder.worker_id,
                                      lease_revoked=message.lease_revoked))
        elif kind == "take_over" and len(message.take_over.object_id) == OBJECT_ID_SIZE:
            self._take_over_requested(now, node_id, message.take_over)
        elif kind == "taken_over":
            self.evacuation.taken_over(now, node_id, message.taken_over)
            self.leave_if_empty(now)

    def _take_over_requested(self, now: float, node_id: bytes, message: raylet_pb2.TakeOver) -> None:
        if self.drain_at is None:
            self.transfer.take_over_requested(now, node_id, message)
            return
        failure = common.Failure(kind=common.UNAVAILABLE, message="it is leaving, too")
        self.transfer.tell_taken_over(node_id, message.object_id, failure)

    def peer_lost(self, now: float, node_id: bytes, failure: common.Failure) -> None:
        """Another node has died."""
        if self.neighbours.died(node_id):
            self.out.append(ForgetPeer(node_id))
            self._forget(now, node_id, failure)
            self.memory.owner_gone(now, node_id, b"")

    def peer_restarted(self, now: float, node_id: bytes) -> None:
        """Another raylet has lost what it knew of us: nothing that was between us is left."""
        self._forget(now, node_id, common.Failure())
        self.memory.free_owned(now, node_id, b"")
        self.transfer.peer_restarted(node_id)

    def _forget(self, now: float, node_id: bytes, failure: common.Failure) -> None:
        failure = failure if failure.kind else node_died(node_id)
        self.relay.peer_lost(node_id, failure)
        self.leases.peer_lost(now, node_id)
        self.transfer.peer_lost(now, node_id)
        self.evacuation.peer_lost(node_id)
        self.leave_if_empty(now)

    def connection_came(
        self, now: float, hello: raylet_pb2.ChannelHello, fd: int, encrypted: bool = False
    ) -> None:
        """A worker of another node has connected to one of ours; `fd` is this end."""
        if self.neighbours.reached(now, hello.source.node_id):
            self.relay.connection_came(hello, fd, encrypted)
        else:
            self.out.append(CloseFd(fd))

    # ---- asked for by clients of any node ----

    def lease_returned(self, now: float, message: worker_pb2.LeaseReturn) -> None:
        """A holder gives a lease back; its raylet is asked by name, for numbers are its own."""
        if message.node_id in (b"", self.node_id):
            self.leases.returned(now, message)
            self.leave_if_empty(now)
        elif self.neighbours.reached(now, message.node_id):
            self.requests.abroad.pop((message.node_id, message.lease_id), None)
            self.out.append(Send(message.node_id, raylet_pb2.PeerMessage(lease_return=message)))

    def free(self, now: float, object_ids: Iterable[bytes]) -> None:
        """No process can reach these objects any more. What is no id is nobody's."""
        object_ids = [object_id for object_id in object_ids if len(object_id) == OBJECT_ID_SIZE]
        self.transfer.freed(now, object_ids)
        self.memory.objects_freed(now, object_ids)
        self.evacuation.freed(object_ids)
        self.leave_if_empty(now)

    def copies_news(self, now: float, node_id: bytes, message: worker_pb2.CopiesNews) -> None:
        """An owner, a worker of `node_id`, tells where copies of an object are."""
        places = [place for place in message.added if self.neighbours.reached(now, place)]
        del message.added[:]
        message.added.extend(places)
        self.transfer.copies_news(now, node_id, message)

    def kill(self, now: float, message: worker_pb2.KillRequest) -> None:
        """A task's owner cancels it by force: end its worker here; drivers are not ours to end."""
        victim = self.pool.workers.get(message.worker.worker_id)
        if victim is not None and victim.state != DRIVER:
            victim.ended_by = common.BY_USER
            self.hosting.end_worker(now, victim, message.reason, message.graceful)

    def tell_head(self, **body: Any) -> None:
        """Send one NodeMessage, given as its field by name."""
        self.out.append(Send(HEAD, gcs_pb2.NodeMessage(**body)))

    # ---- answers of the shell ----

    def store_surveyed(self, now: float, survey: Survey) -> None:
        """Answer to `SurveyStore`."""
        self.memory.store_surveyed(now, survey)
        self.evacuation.surveyed(survey)
        self.leave_if_empty(now)

    def store_used(self, now: float, used: int) -> None:
        """How many bytes of the store are taken, from time to time: heartbeats tell."""
        self.store_bytes_used = used
        if self.memory.garbage_due(now, used):
            for worker_id in self.pool.workers:
                self.out.append(to_client(worker_id, collect_garbage=worker_pb2.CollectGarbage()))
        self.memory.usage_seen(used)

    def memory_measured(self, now: float, used: int, total: int, limit: float,
                        sizes: dict[bytes, int]) -> bool:
        """The machine's memory, from time to time; see `core.guard`."""
        return self.guard.memory_measured(now, used, total, limit, sizes)

    def lines_read(self, job_id: bytes, batch: bytes) -> None:
        """Something a worker of this job has printed: to its driver, here or elsewhere."""
        publication = gcs_pb2.Publication(channel="log", key=job_id, data=batch)
        job = self.residents.jobs.get(job_id)
        if job is not None and job.driver.node_id == self.node_id:
            self.bridge.published(publication)
        elif job is not None:
            self.bridge.ask(None, publish=gcs_pb2.Publish(publication=publication))

    def objects_spilled(self, now: float, batch: int, object_ids: list[bytes],
                        failure: common.Failure | None) -> None:
        """Answer to `SpillObjects`."""
        self.memory.objects_spilled(now, batch, object_ids, failure)

    def object_restored(self, now: float, object_id: bytes, failure: common.Failure | None) -> None:
        """Answer to `RestoreObject`."""
        self.memory.object_restored(now, object_id, failure)

    def copy_damaged(self, now: float, object_id: bytes, why: str) -> None:
        """A copy on disk could not be read for another node."""
        self.memory.copy_damaged(now, object_id, why)

    def fetch_ended(self, now: float, object_id: bytes, size: int, owner: Owner,
                    failure: common.Failure | None, elsewhere: list[bytes]) -> None:
        """Answer to `StartFetch`."""
        self.transfer.fetch_ended(now, object_id, size, owner, failure, elsewhere)

    def process_seen(self, ticket: bytes, worker_id: bytes, state: str, stack: str) -> None:
        """Answer to `LookAtProcess`."""
        self.inquiries.process_seen(ticket, worker_id, state, stack)

    # ---- time ----

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        beat = self.heartbeat_at
        if self.resources.version != self.heartbeat_version:
            beat = min(beat, self.heartbeat_sent + HEARTBEAT_SOON_S)
        times = [beat]
        for part in (self.pool, self.leases, self.memory, self.transfer, self.neighbours, self.inquiries):
            due = part.next_deadline()
            if due is not None:
                times.append(due)
        if self.drain_at is not None and not self.leaving:
            times.append(self.drain_at)
        return min(times)

    def tick(self, now: float) -> None:
        """Time has reached `now`."""
        self.pool.tick(now)
        self.leases.tick(now)
        self.memory.tick(now)
        self.transfer.tick(now)
        self.inquiries.tick(now)
        self.leave_if_empty(now)
        self._ask_about_strangers(now)
        changed = self.resources.version != self.heartbeat_version
        if now >= self.heartbeat_at or (changed and now >= self.heartbeat_sent + HEARTBEAT_SOON_S):
            self._heartbeat(now)

    def _heartbeat(self, now: float) -> None:
        if self.leaving:
            self.heartbeat_at = now + HEARTBEAT_S
            self.heartbeat_version = self.resources.version
            return
        self.heartbeat_at = now + HEARTBEAT_S
        self.heartbeat_sent = now
        self.heartbeat_version = self.resources.version
        demand = [gcs_pb2.Demand(resources=resources.to_map(shape), count=count, reason=reason)
                  for shape, count, reason in self.requests.demand_summary()]
        self.tell_head(heartbeat=gcs_pb2.Heartbeat(
            version=self.resources.version, available=self._available(),
            total=resources.to_map(self.resources.total), demand=demand, state=self.info.state,
            placements_seen=self.placements_seen))

    def _available(self) -> common.ResourceMap:
        """What is free, with the store's room as it is rather than as a resource to be asked for."""
        free = resources.to_map(self.resources.available)
        name = resources.OBJECT_STORE_MEMORY
        if name in free.amounts:
            free.amounts[name] = max(0, free.amounts[name] - self.store_bytes_used * resources.UNIT)
        return free

    # ---- people and tests ----

    def check(self) -> None:
        """Every invariant of every part."""
        for part in (self.pool, self.leases, self.hosting, self.relay, self.memory, self.transfer,
                     self.serving, self.evacuation, self.inquiries):
            part.check()
        if not self.leases.grants and not self.hosting.bundles:
            assert self.resources.available == self.resources.total, "resources were not given back"

    def dump(self) -> dict[str, Any]:
        """The state as plain values."""
        return {"node_id": self.node_id.hex(), "pool": self.pool.dump(), "leases": self.leases.dump(),
                "memory": self.memory.dump(), "pulls": self.transfer.dump(),
                "peers": [node_id.hex() for node_id in self.peers], "unanswered": len(self.bridge.pending)}

    def story(self, key: bytes) -> list[str]:
        """The bounded history of one worker, actor or object here."""
        return self.stories.of(key)
