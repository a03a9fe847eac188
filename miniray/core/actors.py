"""Actors at the GCS: made, placed, restarted, ended.

::

    registered ──▶ (DEPENDENCIES_UNREADY while arguments are made)
                        │
                        ▼
                   PENDING_CREATION ──CreateActor/ActorCreated──▶ ALIVE ──worker or node lost──┐
                        ▲    │ constructor raised, or nothing to live for                      │
                        │    ▼                                                                 ▼
                        │   DEAD ◀── killed, owner or job gone, no restart left ────── restart left?
                        └────────────────────── RESTARTING ◀───────────────────────────────────┘

Records are in `core.actor_registry`, waiting for a node is in `core.actor_queue`. The chosen
node is saved before `CreateActor` is sent, so a restarted GCS knows where to look; the raylet is
the truth about what runs on it (`node_registered`). `attempt` is the number of restarts. A node
that refuses (UNAVAILABLE) or dies during the constructor costs none; a drained node's actors
move without cost to `max_restarts`.

An ended actor is DEAD at once, except for a graceful end: then it stays ALIVE without its name
until its process has gone. Pure; part of `Head`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.actor_queue import ActorQueue
from miniray.core.actor_registry import ActorRecord, ActorRegistry
from miniray.core.desk import Desk, Refusal, failure, short
from miniray.core.members import Members
from miniray.core.pubsub import PubSub

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
"""Pause before a restart when an actor dies young again and again; the first restart has none."""

YOUNG_S = 10.0
"""An actor that lived longer than this starts its back-off anew."""


class Actors:
    """The life cycle of all actors of the cluster."""

    def __init__(
        self, desk: Desk, pubsub: PubSub, members: Members, on_dead: Callable[[float, bytes], None]
    ) -> None:
        """`on_dead(now, actor_id)` is called when an actor will never run again."""
        self._desk = desk
        self._members = members
        self._on_dead = on_dead
        self.registry = ActorRegistry(desk, pubsub)
        self.queue = ActorQueue(desk, members, self.registry, self._hopeless)

    # ---- requests

    def restore(self, info: pb.ActorInfo, creation_task: bytes) -> None:
        """One saved actor. Its node, if it has one, will say whether it still lives."""
        record = ActorRecord(info, creation_task)
        self.registry.add(record)
        if record.is_dead:
            return
        if info.address.node_id:
            self.registry.assign(record, info.address.node_id)
        elif info.state != pb.DEPENDENCIES_UNREADY:
            self.queue.enqueue(record)

    def registered(self, now: float, request: gcs.ActorRegister, job_running: bool) -> pb.ActorInfo:
        """A new actor, or the one that has the name already. Raises Refusal."""
        spec = request.spec
        known = self.registry.records.get(spec.actor_id)
        if known is None and spec.name:
            known = self.registry.named(spec.namespace, spec.name)
            if known is not None and not request.get_if_exists:
                raise Refusal(
                    pb.ALREADY_EXISTS,
                    f"an actor named {spec.name!r} exists in namespace {spec.namespace!r} already: take "
                    "another name, or get the existing one with get_actor() or get_if_exists=True",
                )
        if known is not None:
            mine = known.info.spec.actor_id == spec.actor_id
            if mine and known.info.state == pb.DEPENDENCIES_UNREADY and not request.incomplete:
                known.creation_task = spec.creation_task
                self._complete(now, known, request)
            return self.shown(known)
        info = pb.ActorInfo(state=pb.DEPENDENCIES_UNREADY)
        info.spec.CopyFrom(spec)
        info.spec.ClearField("creation_task")
        record = ActorRecord(info, spec.creation_task)
        if not job_running:
            raise Refusal(pb.INVALID_ARGUMENT, f"no actor can be made: job {record.job_id.hex()} has ended")
        self.registry.add(record)
        self._desk.note(now, spec.actor_id, f"registered: {spec.class_name} {spec.name}".rstrip())
        if request.incomplete:
            self.registry.save_new(record)
        else:
            self._complete(now, record, request)
        return self.shown(record)

    def _complete(self, now: float, record: ActorRecord, request: gcs.ActorRegister) -> None:
        """The constructor's arguments are there, or will never be."""
        if request.HasField("failure"):
            self._die(now, record, request.failure)
            return
        record.info.state = pb.PENDING_CREATION
        self.registry.save_new(record)
        self.queue.enqueue(record)
        self.queue.place(now)

    def killed(self, now: float, request: gcs.ActorKill, by: str = "") -> None:
        """`kill()`: at once; without `no_restart` it starts again if it may. `by` says who asked."""
        record = self.registry.records.get(request.actor_id)
        if record is None or record.is_dead:
            return
        if not request.no_restart:
            if record.info.state == pb.ALIVE:
                record.info.ending = "restart"
                self.registry.save(record)
                self._send_ending(record)
        elif request.graceful:
            self._end_gently(now, record, "ended by request")
        else:
            text = "the actor is dead because it was killed by `ray.kill`" + (f" in {by}" if by else "")
            self._end_now(now, record, failure(pb.ACTOR_DIED, text))

    def handle_gone(self, now: float, actor_id: bytes) -> None:
        """Nobody can call the actor any more: it may finish what it has, then it ends."""
        record = self.registry.records.get(actor_id)
        if record is not None and not record.is_dead and not record.info.spec.detached:
            self._end_gently(now, record, "all handles of the actor went out of scope")

    # ---- what nodes report

    def created(self, now: float, node_id: bytes, message: gcs.ActorCreated) -> None:
        """A node's answer to CreateActor."""
        record = self.registry.records.get(message.actor_id)
        kind = message.failure.kind
        if (
            record is None
            or not record.is_starting
            or record.node_id != node_id
            or record.info.restarts != message.attempt
        ):
            came_twice = record is not None and record.info.address.worker_id == message.address.worker_id
            if kind == pb.ERROR_NONE and not came_twice:
                self._end_worker(node_id, message.address.worker_id, "its actor is not wanted here any more")
            return
        kept = record.keep if kind == pb.ERROR_NONE else {}
        self._members.settled(node_id, record.placement, record.demand, kept)
        if kind == pb.ERROR_NONE:
            self._now_alive(now, record, message.address, message.pid)
        elif kind in (pb.UNAVAILABLE, pb.INFEASIBLE):
            self._desk.note(now, record.id, f"refused: {message.failure.message}")
            self._unplace(record)
            self.queue.refused(record, node_id)
        elif kind in (pb.USER_ERROR, pb.RUNTIME_ENV_FAILED, pb.INVALID_ARGUMENT):
            self._die(now, record, message.failure)
        else:
            self._lost(now, record, message.failure)
        self.queue.freed()

    def _now_alive(self, now: float, record: ActorRecord, address: pb.Address, pid: int) -> None:
        info = record.info
        info.state = pb.ALIVE
        info.address.CopyFrom(address)
        info.pid = pid
        info.pending_reason = ""
        info.started_at = self._desk.wall(now)
        record.alive_at = now
        self._desk.note(now, record.id, f"ALIVE on {short(address.node_id)}, pid {pid}")
        self.registry.save(record)
        self.registry.publish(record)

    def worker_failed(self, now: float, message: gcs.WorkerFailed) -> None:
        """A worker has ended: its actor may restart, the actors it owned end."""
        record = self.registry.records.get(message.actor_id) if message.actor_id else None
        if record is not None and record.hosted_by(message.address):
            if record.is_starting:
                self._members.settled(record.node_id, record.placement, record.demand, {})
            self._lost(now, record, message.failure, intended=message.intended)
            self.queue.freed()
        self.owner_died(now, message.address.worker_id, message.failure.message)

    def owner_died(self, now: float, worker_id: bytes, why: str) -> None:
        """What this worker created ends with it, unless it is detached."""
        for actor_id in self.registry.by_owner.of(worker_id):
            cause = failure(pb.OWNER_DIED, f"the process that created the actor has ended: {why}")
            self._end_now(now, self.registry.records[actor_id], cause)

    def node_died(self, now: float, node_id: bytes, cause: pb.Failure, drained: bool) -> None:
        """Actors there start elsewhere if they may; those owned from there end."""
        for actor_id in self.registry.by_node.of(node_id):
            record = self.registry.records[actor_id]
            if record.is_starting:
                self._desk.note(now, actor_id, cause.message)
                self._unplace(record)
                self.queue.enqueue(record)
            else:
                self._lost(now, record, cause, charged=not drained)
        for worker_id in self.registry.owned_from(node_id):
            self.owner_died(now, worker_id, cause.message)

    def node_registered(self, now: float, node_id: bytes, live: Iterable[gcs.LiveActor]) -> None:
        """A raylet says which actors run on it: compare with what is known here."""
        strays = {actor.worker_id: actor for actor in live}
        listed = {actor.actor_id: actor for actor in strays.values()}
        for actor_id in self.registry.by_node.of(node_id):
            record = self.registry.records[actor_id]
            actor = listed.get(actor_id)
            address = pb.Address(node_id=node_id, worker_id=actor.worker_id if actor is not None else b"")
            if actor is not None and record.hosted_by(address):
                del strays[actor.worker_id]
                if record.is_starting:
                    self._now_alive(now, record, address, actor.pid)
                elif record.info.ending:
                    self._send_ending(record)
            elif record.is_starting:
                self.queue.send_create(record, node_id)  # harmless if its constructor is running
            else:
                text = "the actor's process ended while the head was away"
                self._lost(now, record, failure(pb.WORKER_DIED, text, node_id=node_id))
        for worker_id in strays:
            self._end_worker(node_id, worker_id, "its actor is not wanted here any more")
        self.queue.freed()

    # ---- what ends with something else

    def job_ended(self, now: float, job_id: bytes) -> None:
        """The job's actors end, unless they are detached."""
        for actor_id in self.registry.by_job.of(job_id):
            record = self.registry.records[actor_id]
            if not record.info.spec.detached:
                self._end_now(now, record, failure(pb.ACTOR_DIED, f"its job {job_id.hex()} has ended"))

    def group_removed(self, now: float, pg_id: bytes) -> None:
        """Actors bound to the placement group end with it."""
        for actor_id in self.registry.by_group.of(pg_id):
            record = self.registry.records[actor_id]
            has_lived = record.info.state in (pb.ALIVE, pb.RESTARTING)
            kind = pb.ACTOR_DIED if has_lived else pb.PLACEMENT_GROUP_REMOVED
            self._end_now(now, record, failure(kind, f"its placement group {short(pg_id)} was removed"))

    def _hopeless(self, now: float, record: ActorRecord, reason: str) -> None:
        self._die(now, record, failure(pb.ACTOR_UNSCHEDULABLE, f"the actor can never be placed: {reason}"))

    # ---- ends and restarts

    def _end_gently(self, now: float, record: ActorRecord, reason: str) -> None:
        if record.info.state != pb.ALIVE:
            self._end_now(now, record, failure(pb.ACTOR_DIED, reason))
            return
        record.info.ending = "final"
        self.registry.free_name(record)
        self.registry.save(record)
        self._desk.note(now, record.id, reason)
        self._send_ending(record)

    def _send_ending(self, record: ActorRecord) -> None:
        """Tell the node what is to become of a living actor."""
        is_final = record.info.ending == "final"
        kill = gcs.KillWorker(
            worker_id=record.info.address.worker_id,
            graceful=is_final,
            reason="the actor is not needed any more" if is_final else "killed by `ray.kill`",
        )
        self._desk.send(record.node_id, gcs.NodeMessage(kill_worker=kill))

    def _end_now(self, now: float, record: ActorRecord, cause: pb.Failure) -> None:
        """Dead from this moment; whatever still runs of it is killed."""
        if record.is_dead:
            return  # by what another one's end has brought about
        node_id = record.node_id
        if record.is_starting:
            self._members.settled(node_id, record.placement, record.demand, {})
            self.queue.freed()
        worker_id, actor_id = record.info.address.worker_id, record.id
        self._die(now, record, cause)
        if node_id in self._members.living:
            kill = gcs.KillWorker(worker_id=worker_id, actor_id=actor_id, reason=cause.message)
            self._desk.send(node_id, gcs.NodeMessage(kill_worker=kill))

    def _end_worker(self, node_id: bytes, worker_id: bytes, reason: str) -> None:
        kill = gcs.KillWorker(worker_id=worker_id, reason=reason)
        self._desk.send(node_id, gcs.NodeMessage(kill_worker=kill))

    def _unplace(self, record: ActorRecord) -> None:
        self.registry.unassign(record)
        self.registry.save(record)

    def _lost(
        self,
        now: float,
        record: ActorRecord,
        cause: pb.Failure,
        *,
        intended: bool = False,
        charged: bool = True,
    ) -> None:
        """The actor's process is gone: restart if that was wanted or may be, else it is dead."""
        if record.is_dead:
            return
        info = record.info
        limit = info.spec.max_restarts
        may = not charged or limit < 0 or info.restarts - info.uncharged_restarts < limit
        if not may or info.ending == "final" or (intended and info.ending != "restart"):
            self._die(now, record, cause)
            return
        info.ending = ""
        record.young_deaths = record.young_deaths + 1 if now - record.alive_at < YOUNG_S else 0
        if record.young_deaths > 1:
            pause = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(record.young_deaths - 2, 20))
            record.not_before = now + pause
        info.restarts += 1
        info.uncharged_restarts += 0 if charged else 1
        info.state = pb.RESTARTING
        info.death.CopyFrom(cause)
        self._desk.note(now, record.id, f"RESTARTING ({info.restarts}): {cause.message}")
        self._unplace(record)
        self.registry.publish(record)
        self.queue.enqueue(record)

    def _die(self, now: float, record: ActorRecord, cause: pb.Failure) -> None:
        info = record.info
        self.queue.dequeue(record)
        info.state = pb.DEAD
        info.death.CopyFrom(cause)
        info.pending_reason = ""
        info.ended_at = self._desk.wall(now)
        self._desk.note(now, record.id, f"DEAD: {cause.message}")
        self.registry.retire(record)
        self._on_dead(now, record.id)

    # ---- looking in

    def shown(self, record: ActorRecord) -> pb.ActorInfo:
        """The row with its latest pending reason."""
        self.queue.explain(record)
        return record.info

    def has_detached(self, job_id: bytes) -> bool:
        """Whether an actor lives on after its job."""
        records = self.registry.records
        return any(records[actor_id].info.spec.detached for actor_id in self.registry.by_job.of(job_id))

    def count(self) -> tuple[int, int]:
        """(alive, pending or restarting)."""
        alive = sum(record.info.state == pb.ALIVE for record in self.registry.records.values())
        return alive, len(self.registry.records) - len(self.registry.dead) - alive

    def check(self) -> None:
        """Assert every invariant."""
        self.registry.check()
        for record in self.registry.records.values():
            if record.info.state == pb.DEPENDENCIES_UNREADY:
                assert not record.node_id and not self.queue.holds(record), "waits for its arguments"
            elif record.is_dead or record.info.state == pb.ALIVE:
                assert not self.queue.holds(record) and bool(record.node_id) != record.is_dead
            else:
                assert bool(record.node_id) != self.queue.holds(record), "starts and waits, or neither"

    def dump(self) -> dict[str, Any]:
        """State and place of the actors that are not dead."""
        return {
            f"{record.info.spec.class_name} {short(actor_id)}": {
                "state": pb.ActorState.Name(record.info.state),
                "node": short(record.node_id),
                "reason": self.shown(record).pending_reason,
            }
            for actor_id, record in self.registry.records.items()
            if not record.is_dead
        }
