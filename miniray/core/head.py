"""The GCS as one machine: members, jobs, actors, groups, keys, subscriptions, task events.

::

                       ┌───────────────────────── Head ──────────────────────────┐
    node_message ────▶ │ members ── actors ── placement      jobs   kv   events   │ ──▶ out
    node_connected,    │     └───────── policy ─────┘        pubsub ◀── everybody │  Persist, Send,
    …disconnected,     │                                                          │  Answer
    …congested,        │  desk: outbox, stories, clock offset, seeded generator   │
    request, tick ───▶ └──────────────────────────────────────────────────────────┘

`Send.peer` is a node id. All messages of one node come in order and once per pair of
incarnations (`core.link`). What clients ask for is in `core.requests`; here is what nodes report
and what ends with what.

The shell drains `out` once per turn: all `Persist` rows up to an effect are durable before the
effect is carried out. `restore` comes first, with every saved row; the raylets then register
again and say what runs (`NodeRegister`). Deterministic: same stimuli, same generator, same out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.actors import Actors
from miniray.core.census import HeadCensus
from miniray.core.desk import Answer, Desk, WrongTables, short
from miniray.core.events import TYPICAL_ROW_BYTES, EventStore
from miniray.core.jobs import Jobs
from miniray.core.kv import KeyValues
from miniray.core.members import Member, Members, Timing
from miniray.core.placement import Placement
from miniray.core.pubsub import PubSub
from miniray.core.questions import Questions
from miniray.core.requests import Requests

__all__ = ["Answer", "Head", "HeadOptions", "WrongTables"]


@dataclass(slots=True, frozen=True)
class HeadOptions:
    """What a start of the GCS is given."""

    epoch: int = 1
    """Fencing: grows with every start on the same storage."""
    wall_offset: float = 0.0
    """Seconds since the epoch, minus `now`."""
    timing: Timing = field(default_factory=Timing)
    task_events_kept: int = 100_000
    """Finished tasks remembered per job, about."""
    config: str = ""
    """JSON of the cluster-wide knobs, handed to every raylet."""
    version: str = ""
    tables_are_kept: bool = False
    """Somebody has chosen where they are: a node of another cluster means that they are the wrong ones."""


REUNION_S = 60.0
"""Nodes come back within this time after a restart of the GCS."""


class Head:
    """See the module head."""

    def __init__(self, rng: Random, options: HeadOptions | None = None) -> None:
        options = self.options = options or HeadOptions()
        desk = self.desk = Desk(rng, options.wall_offset)
        self.cluster_id = b""
        """Empty while the tables are salvaged ones that have lost it: the first node tells."""
        self.has_given_up = False
        self.pubsub = PubSub(desk, options.epoch)
        self.members = Members(desk, self.pubsub, options.timing)
        self.jobs = Jobs(desk, self.pubsub)
        self.actors = Actors(desk, self.pubsub, self.members, self._actor_dead)
        self.placement = Placement(desk, self.pubsub, self.members, self.actors.group_removed)
        self.kv = KeyValues(desk)
        self.events = EventStore(options.task_events_kept * TYPICAL_ROW_BYTES)
        self.requests = Requests(self)
        self.questions = Questions(self)
        self.census = HeadCensus(self)
        self.started_at = 0.0
        self.early_failures: dict[bytes, gcs.WorkerFailed] = {}
        """Ends of workers in the first `REUNION_S`, kept for as long again: who has not subscribed anew by
        then holds nothing that they owned."""

    @property
    def out(self) -> list[Any]:
        """Effects since they were last taken, in order."""
        return self.desk.out

    @out.setter
    def out(self, effects: list[Any]) -> None:
        self.desk.out = effects

    # ---- start

    def restore(self, now: float, rows: Iterable[tuple[str, bytes, bytes]]) -> None:
        """All saved rows as (table, key, value), in any order. Must come first, also when empty."""
        self.started_at = now
        tables: dict[str, dict[bytes, bytes]] = {}
        for table, key, value in rows:
            tables.setdefault(table, {})[key] = value
        meta = tables.get("meta", {})
        self.cluster_id = meta.get(b"cluster_id", b"")
        if not tables:
            self._belong_to(self.desk.rng.randbytes(16))
        if b"next_job" in meta:
            self.jobs.restore_next(meta[b"next_job"])
        for value in tables.get("node", {}).values():
            self.members.restore(now, pb.NodeInfo.FromString(value))
        for value in tables.get("job", {}).values():
            self.jobs.restore(pb.JobInfo.FromString(value))
        tasks = tables.get("actor_task", {})
        for key, value in tables.get("actor", {}).items():
            self.actors.restore(pb.ActorInfo.FromString(value), tasks.get(key, b""))
        for value in tables.get("group", {}).values():
            self.placement.restore(pb.PlacementGroupInfo.FromString(value))
        for key, value in tables.get("kv", {}).items():
            self.kv.restore(key, value)
        self.requests.restore(tables.get("reply", {}))

    def _belong_to(self, cluster_id: bytes) -> None:
        self.cluster_id = cluster_id
        self.desk.persist("meta", b"cluster_id", cluster_id)

    # ---- nodes

    def node_connected(self, now: float, node_id: bytes) -> None:
        """A connection from this node works (again)."""
        self.members.connected(now, node_id)

    def node_disconnected(self, now: float, node_id: bytes, refused: bool) -> None:
        """The connection broke; `refused`: the node's address refuses new ones, its raylet is gone."""
        self.members.disconnected(now, node_id, refused)

    def node_congested(self, now: float, node_id: bytes, congested: bool) -> None:
        """Too much is queued for this node (or no more): publications wait for it."""
        if congested:
            self.pubsub.held(node_id)
        else:
            self.pubsub.released(node_id)

    def node_message(self, now: float, node_id: bytes, message: gcs.NodeMessage) -> None:
        """One message of a raylet, in order."""
        if self.has_given_up:
            return
        kind = message.WhichOneof("body")
        refusal = self.members.refusal(node_id)
        if refusal:
            # fenced: its work runs elsewhere by now, so not even its requests count
            answer = gcs.NodeRegistered(accepted=False, refusal=refusal, epoch=self.options.epoch)
            self.desk.send(node_id, gcs.NodeMessage(registered=answer))
            return
        if kind == "request":
            self.members.heard(now, node_id)
            reply = self.requests.reply(now, message.request, node_id)
            self.desk.send(node_id, gcs.NodeMessage(reply=reply))
            return
        if kind == "register":
            self._node_registered(now, node_id, message.register)
            return
        member = self.members.heard(now, node_id)
        if member is None:
            return
        handler = _NODE_HANDLERS.get(kind or "")
        if handler is not None:
            handler(self, now, member, getattr(message, kind))

    def _node_registered(self, now: float, node_id: bytes, message: gcs.NodeRegister) -> None:
        if not self.cluster_id:
            self._belong_to(message.cluster_id or self.desk.rng.randbytes(16))
        refusal = ""
        if message.info.node_id != node_id:
            refusal = f"node {short(node_id)} registers as {short(message.info.node_id)}"
        elif self._is_stranger(message):
            if not any(member.registered for member in self.members.living.values()):
                self.has_given_up = True
                self.desk.out.append(WrongTables(node_id, message.info.hostname))
                return
            refusal = "it belongs to another cluster: end it, and start it again to let it join this one"
        answer = gcs.NodeRegistered(
            accepted=not refusal,
            refusal=refusal,
            epoch=self.options.epoch,
            cluster_id=self.cluster_id,
            config=self.options.config,
        )
        if refusal:
            self.desk.send(node_id, gcs.NodeMessage(registered=answer))
            return
        self.members.registered(now, message.info)
        self.desk.send(node_id, gcs.NodeMessage(registered=answer))
        self.desk.send(node_id, self.members.full_view())
        running = dict.fromkeys(message.jobs)
        for job_id in self.jobs.of_node(node_id):
            if job_id not in running:
                self.end_job(now, job_id, failed=True)  # its driver ended while the head was away
        for job_id in message.jobs:
            if job_id in self.jobs.ended:
                self.desk.send(node_id, gcs.NodeMessage(job_ended=gcs.JobEnded(job_id=job_id)))
        for failed in message.ended:
            self._worker_failed(now, failed)
        self.actors.node_registered(now, node_id, message.actors)
        if message.workers_listed:
            alive = dict.fromkeys(message.workers)
            for owner in self.actors.registry.owned_from(node_id):
                if owner not in alive:
                    self.actors.owner_died(now, owner, "it ended while the head was away")
        self.placement.node_registered(now, node_id, message.bundles)

    def _is_stranger(self, message: gcs.NodeRegister) -> bool:
        """A node that knows other tables than these, where those should be here."""
        return self.options.tables_are_kept and message.cluster_id not in (b"", self.cluster_id)

    def _on_heartbeat(self, now: float, member: Member, message: gcs.Heartbeat) -> None:
        freed = self.members.heartbeat(now, member, message)
        self.actors.queue.beat(member.info.node_id)
        self.placement.beat(member.info.node_id)
        if freed:
            self._freed()

    def _on_worker_failed(self, now: float, member: Member, message: gcs.WorkerFailed) -> None:
        self._worker_failed(now, message)

    def _worker_failed(self, now: float, message: gcs.WorkerFailed) -> None:
        job_id = self.jobs.of_driver(message.address.worker_id) if message.is_driver else None
        if now < self.started_at + REUNION_S:
            self.early_failures[message.address.worker_id] = message
        self.pubsub.gathered(now, "worker", message.address.worker_id, worker=message)
        self.actors.worker_failed(now, message)
        if job_id is not None:
            self.end_job(now, job_id, failed=not message.intended)

    def _on_actor_created(self, now: float, member: Member, message: gcs.ActorCreated) -> None:
        self.actors.created(now, member.info.node_id, message)
        self.placement.freed()

    def _on_task_events(self, now: float, member: Member, message: gcs.TaskEventBatch) -> None:
        self.events.arrived(message)

    def _on_counted(self, now: float, member: Member, message: gcs.CensusPart) -> None:
        self.census.counted(member.info.node_id, message)

    def _on_bundle_reply(self, now: float, member: Member, message: gcs.BundleReply) -> None:
        self.placement.replied(now, member.info.node_id, message)
        self.actors.queue.freed()

    def _on_findings(self, now: float, member: Member, message: gcs.Findings) -> None:
        self.questions.found(member.info.node_id, message)

    def _on_leaving(self, now: float, member: Member, message: gcs.NodeLeaving) -> None:
        self._node_died(now, member.info.node_id, message.reason or "it was drained", left=not message.abrupt)

    def _node_died(self, now: float, node_id: bytes, reason: str, *, left: bool = False) -> None:
        """Everything that was on the node is lost, or moves."""
        cause = self.members.died(now, node_id, reason, left=left)
        if cause is None:
            return
        self.questions.node_died(node_id)
        for job_id in self.jobs.of_node(node_id):
            self.end_job(now, job_id, failed=True)
        self.actors.node_died(now, node_id, cause, drained=left)
        self.placement.node_died(now, node_id)
        self._freed()

    def _freed(self) -> None:
        self.actors.queue.freed()
        self.placement.freed()

    def _actor_dead(self, now: float, actor_id: bytes) -> None:
        self.placement.actor_died(now, actor_id)
        self._forget_job(actor_id[-4:])

    # ---- jobs

    def end_job(self, now: float, job_id: bytes, failed: bool) -> None:
        """The job is over: so are its actors and groups, but for detached ones."""
        if not self.jobs.finished(now, job_id, failed):
            return
        for node_id, member in self.members.living.items():
            if member.registered:
                self.desk.send(node_id, gcs.NodeMessage(job_ended=gcs.JobEnded(job_id=job_id)))
        self.actors.job_ended(now, job_id)
        self.placement.job_ended(now, job_id)
        self._forget_job(job_id)

    def _forget_job(self, job_id: bytes) -> None:
        """Drop the job's keys once nothing of it can run any more."""
        if job_id in self.jobs.ended and not self.actors.registry.by_job.of(job_id):
            self.kv.job_forgotten(job_id)

    # ---- requests

    def request(self, now: float, request: gcs.ControlRequest, ticket: int) -> None:
        """A request that came by itself (unary); answered by `Answer` with this ticket."""
        self.desk.out.append(Answer(ticket, self.requests.reply(now, request, b"")))

    # ---- machine

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        due = None
        for part in (self.members, self.actors.queue, self.placement, self.pubsub):
            time = part.next_deadline()
            if time is not None and (due is None or time < due):
                due = time
        return due

    def tick(self, now: float) -> None:
        """Time has reached `now`: dead nodes first, then groups, then actors (some wait for groups)."""
        if self.early_failures and now >= self.started_at + 2 * REUNION_S:
            self.early_failures.clear()
        for node_id, reason in self.members.tick(now):
            self._node_died(now, node_id, reason)
        self.placement.tick(now)
        self.actors.queue.tick(now)
        self.pubsub.tick(now)

    def check(self) -> None:
        """Assert every invariant of every part."""
        parts = (self.members, self.jobs, self.actors, self.placement, self.kv, self.events, self.pubsub)
        for part in parts:
            part.check()
        self.requests.check()
        self.questions.check()

    def dump(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "epoch": self.options.epoch,
            "nodes": self.members.dump(),
            "jobs": self.jobs.dump(),
            "actors": self.actors.dump(),
            "groups": self.placement.dump(),
            "kv": self.kv.dump(),
            "events": self.events.dump(),
            "pubsub": self.pubsub.dump(),
        }

    def story(self, key: bytes) -> list[str]:
        """The bounded history of one node, job, actor or group."""
        return self.desk.stories.of(key)


_NODE_HANDLERS: dict[str, Callable[[Head, float, Member, Any], None]] = {
    "heartbeat": Head._on_heartbeat,
    "worker_failed": Head._on_worker_failed,
    "actor_created": Head._on_actor_created,
    "task_events": Head._on_task_events,
    "bundle_reply": Head._on_bundle_reply,
    "leaving": Head._on_leaving,
    "counted": Head._on_counted,
    "findings": Head._on_findings,
}
