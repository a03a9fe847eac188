"""What the GCS places on this node: actors and the bundles of placement groups.

::

    CreateActor ─▶ resources (or ActorCreated UNAVAILABLE) ─▶ worker ─▶ StartActor
                       ActorCreated ◀── ActorReady ◀── constructor ran ──┘
    BundleRequest PREPARE ─▶ all or none taken ─▶ COMMIT opens their pools ─▶ RETURN ends their users

Every message may come twice (the GCS asks again after a restart): answers are by (actor,
attempt) and (group, index), never by count. Pure; runs inside `core.node.Node`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, worker_pb2
from miniray.core import environments, policy, resources
from miniray.core.contract import HEAD, Send, Stories
from miniray.core.leases import Grant, Leases
from miniray.core.node_effects import slots_of, to_client
from miniray.core.pool import BUSY, Pool, Worker
from miniray.core.resources import Allocation

GRACEFUL_EXIT_S = 30.0

BundleKey = tuple[bytes, int]


@dataclass(slots=True)
class Hosted:
    """One actor of this node, from the request to create it until its worker's end."""

    spec: common.ActorSpec
    attempt: int
    grant_id: int
    worker_id: bytes = b""
    ready: bool = False


@dataclass(slots=True)
class HeldBundle:
    """One bundle whose resources are taken; open once it is committed."""

    allocation: Allocation
    attempt: int
    committed: bool = False


@dataclass(slots=True)
class Hosting:
    """See the module head."""

    out: list[Any]
    node_id: bytes
    leases: Leases
    pool: Pool
    stories: Stories
    actors: dict[bytes, Hosted] = field(default_factory=dict)
    bundles: dict[BundleKey, HeldBundle] = field(default_factory=dict)
    restartable: dict[bytes, bool] = field(default_factory=dict)
    """Actor id -> whether it may start again: for the memory guard."""

    # ---- actors ----

    def create_requested(self, now: float, message: gcs_pb2.CreateActor) -> None:
        """The GCS wants an actor here."""
        actor_id = message.spec.actor_id
        known = self.actors.get(actor_id)
        if known is not None and known.attempt == message.attempt:
            if known.ready:
                self._created(known, None)
            return
        cls = message.spec.creation_class
        allocation = None
        if known is None and not self.leases.draining:
            allocation = self.leases.acquire_for_actor(
                now, actor_id, policy.demand_of(cls), message.spec.priority)
        if allocation is None:
            why = "its former worker has not ended" if known is not None else "it has no room now"
            failure = common.Failure(kind=common.UNAVAILABLE, node_id=self.node_id,
                                     message=f"node {self.node_id.hex()[:8]}: {why}")
            self._send_created(gcs_pb2.ActorCreated(
                actor_id=actor_id, attempt=message.attempt, failure=failure))
            return
        grant = self.leases.new_grant(now, cls, allocation, depth=0)
        grant.actor_id = actor_id
        self.actors[actor_id] = Hosted(message.spec, message.attempt, grant.grant_id)
        self.restartable[actor_id] = message.spec.max_restarts != 0
        self.stories.note(now, actor_id, f"creation starts here (attempt {message.attempt})")
        self.leases.find_worker(now, grant)

    def worker_found(self, now: float, grant: Grant, worker: Worker) -> None:
        """The actor's worker is there: hand it the constructor call."""
        hosted = self.actors[grant.actor_id]
        hosted.worker_id = worker.worker_id
        worker.outlives = hosted.spec.detached
        grant.announced = True
        start = worker_pb2.StartActor(spec=hosted.spec, attempt=hosted.attempt,
                                      slots=slots_of(grant.allocation))
        self.out.append(to_client(worker.worker_id, start_actor=start))

    def told(self, now: float, actor_id: bytes) -> list[str]:
        """How the creation of an actor stands here, for people."""
        hosted = self.actors.get(actor_id)
        if hosted is None or hosted.ready:
            return []
        grant = self.leases.grants[hosted.grant_id]
        here = f"node {self.node_id.hex()[:12]}"
        worker = self.pool.workers.get(hosted.worker_id)
        if worker is not None:
            return [f"{here} runs its constructor since {now - grant.since:.1f} s, in process {worker.pid}"]
        fields = environments.shown(grant.cls.runtime_env)
        env = f", in its runtime_env {fields}" if fields else ""
        return [f"{here} starts a worker process for it{env}, since {now - grant.since:.1f} s"]

    def ready(self, now: float, worker: Worker, message: worker_pb2.ActorReady) -> None:
        """The constructor has returned or raised."""
        hosted = self.actors.get(message.actor_id)
        if hosted is None or hosted.worker_id != worker.worker_id or hosted.attempt != message.attempt:
            return
        if hosted.grant_id not in self.leases.grants:
            return  # its placement group was removed meanwhile, and its process is ending
        if message.HasField("failure") and message.failure.kind != common.ERROR_NONE:
            self._created(hosted, message.failure)
            del self.actors[message.actor_id]
            self.leases.release(now, self.leases.grants[hosted.grant_id])
            worker.grant_id = 0
            self.pool.expect_exit(now, worker, "the actor's constructor raised", 5.0)
            return
        hosted.ready = True
        self.stories.note(now, message.actor_id, "constructor has run")
        self._keep_lifetime(hosted)
        self._created(hosted, None)
        self.leases.dispatch(now)

    def _keep_lifetime(self, hosted: Hosted) -> None:
        """Give back what only the creation needed."""
        allocation = self.leases.grants[hosted.grant_id].allocation
        lifetime = resources.demand_from_map(hosted.spec.lifetime_resources)
        keep = {}
        for name, amount in allocation.amounts.items():
            base = resources.base_name(name)
            keep[name] = amount if base == "bundle" else min(amount, lifetime.get(base, 0))
        self.leases.resources.reduce(allocation, keep)
        self.leases.grants[hosted.grant_id].keeps = True

    def _created(self, hosted: Hosted, failure: common.Failure | None) -> None:
        worker = self.pool.workers.get(hosted.worker_id)
        message = gcs_pb2.ActorCreated(
            actor_id=hosted.spec.actor_id, attempt=hosted.attempt, failure=failure,
            pid=worker.pid if worker is not None else 0)
        if failure is None:
            message.address.node_id = self.node_id
            message.address.worker_id = hosted.worker_id
        self._send_created(message)

    def _send_created(self, message: gcs_pb2.ActorCreated) -> None:
        self.out.append(Send(HEAD, gcs_pb2.NodeMessage(actor_created=message)))

    def start_refused(self, grant: Grant, failure: common.Failure) -> None:
        """No worker process would start for the actor."""
        hosted = self.actors.pop(grant.actor_id)
        self._created(hosted, failure)

    def worker_gone(self, worker_id: bytes) -> bytes:
        """A worker has ended. Returns the actor it hosted, b"" when it hosted none."""
        for actor_id, hosted in self.actors.items():
            if hosted.worker_id == worker_id:
                del self.actors[actor_id]
                self.restartable.pop(actor_id, None)
                return actor_id
        return b""

    def kill_requested(self, now: float, message: gcs_pb2.KillWorker) -> None:
        """The GCS wants an actor, or any worker, to end."""
        worker_id = message.worker_id
        hosted = self.actors.get(message.actor_id)
        if hosted is not None:
            if not hosted.worker_id:  # it waits for a process: there is nothing to kill
                del self.actors[message.actor_id]
                self.leases.withdraw(now, self.leases.grants[hosted.grant_id])
                return
            worker_id = hosted.worker_id
        worker = self.pool.workers.get(worker_id)
        if worker is not None:
            self.end_worker(now, worker, message.reason, message.graceful)

    def end_worker(self, now: float, worker: Worker, reason: str, graceful: bool) -> None:
        """End a worker: at once, or after what it has queued, `GRACEFUL_EXIT_S` at most."""
        if graceful:
            self.out.append(to_client(worker.worker_id, exit=worker_pb2.Exit(graceful=True, reason=reason)))
            self.pool.expect_exit(now, worker, reason, GRACEFUL_EXIT_S)
        else:
            self.pool.stop(now, worker, reason, force=True)

    def detached_workers(self, job_id: bytes) -> dict[bytes, None]:
        """Workers of the job that outlive it."""
        hosted = (h for h in self.actors.values() if h.spec.creation_class.job_id == job_id)
        return {h.worker_id: None for h in hosted if h.spec.detached and h.worker_id}

    def job_ended(self, now: float, job_id: bytes) -> None:
        """Actors of the job that have no worker yet will not get one."""
        for actor_id, hosted in list(self.actors.items()):
            mine = hosted.spec.creation_class.job_id == job_id and not hosted.spec.detached
            if mine and not hosted.worker_id:
                del self.actors[actor_id]
                self.leases.withdraw(now, self.leases.grants[hosted.grant_id])

    # ---- bundles ----

    def bundle_requested(self, now: float, message: gcs_pb2.BundleRequest) -> None:
        """One step of the two-phase placement of a group."""
        steps = {gcs_pb2.BundleRequest.PREPARE: self._prepare, gcs_pb2.BundleRequest.COMMIT: self._commit,
                 gcs_pb2.BundleRequest.RETURN: self._return, gcs_pb2.BundleRequest.GRANT: self._grant}
        reason = steps[message.step](now, message)
        reply = gcs_pb2.BundleReply(
            step=message.step, placement_group_id=message.placement_group_id, attempt=message.attempt,
            ok=not reason, indices=[bundle.index for bundle in message.bundles], reason=reason)
        self.out.append(Send(HEAD, gcs_pb2.NodeMessage(bundle_reply=reply)))
        self.leases.dispatch(now)

    def _grant(self, now: float, message: gcs_pb2.BundleRequest) -> str:
        return self._prepare(now, message) or self._commit(now, message)

    def _prepare(self, now: float, message: gcs_pb2.BundleRequest) -> str:
        pool = self.leases.resources
        taken: list[BundleKey] = []
        for bundle in message.bundles:
            key = (message.placement_group_id, bundle.index)
            if key in self.bundles:
                self.bundles[key].attempt = message.attempt
                continue
            demand = resources.demand_from_map(bundle.resources)
            allocation = None if self.leases.draining else pool.acquire(demand)
            if allocation is None:
                for undo in taken:
                    pool.release(self.bundles.pop(undo).allocation)
                return (f"node {self.node_id.hex()[:8]} has no room for bundle {bundle.index} "
                        f"{resources.render(demand)}")
            self.bundles[key] = HeldBundle(allocation, message.attempt)
            taken.append(key)
        return ""

    def _commit(self, now: float, message: gcs_pb2.BundleRequest) -> str:
        for bundle in message.bundles:
            held = self.bundles.get((message.placement_group_id, bundle.index))
            if held is None:
                return f"bundle {bundle.index} is not prepared on node {self.node_id.hex()[:8]}"
            if not held.committed:
                held.committed = True
                self.leases.resources.open_bundle(
                    message.placement_group_id, bundle.index, held.allocation)
        return ""

    def _return(self, now: float, message: gcs_pb2.BundleRequest) -> str:
        pool = self.leases.resources
        for bundle in message.bundles:
            key = (message.placement_group_id, bundle.index)
            held = self.bundles.pop(key, None)
            if held is None:
                continue
            if held.committed:
                self._end_users(now, key)
                pool.close_bundle(*key)
            pool.release(held.allocation)
        return ""

    def _end_users(self, now: float, key: BundleKey) -> None:
        """Whoever runs inside a bundle ends with it."""
        marker = resources.group_name("bundle", key[0], key[1])
        for grant in list(self.leases.grants.values()):
            if marker not in grant.allocation.amounts:
                continue
            worker = self.pool.workers.get(grant.worker_id)
            if worker is not None:
                worker.grant_id = 0
                self.pool.stop(now, worker, "its placement group was removed", force=True)
            if not grant.announced:
                self.actors.pop(grant.actor_id, None)
                self.leases.refuse(grant, common.Failure(
                    kind=common.PLACEMENT_GROUP_REMOVED,
                    message=f"placement group {key[0].hex()} was removed"))
            # Before the bundle's pools close: afterwards there is nothing to give back to.
            self.leases.release(now, grant, dispatch=False)

    # ---- for the GCS after its restart, and for tests ----

    def live_actors(self) -> list[gcs_pb2.LiveActor]:
        """Actors whose constructor has run."""
        return [gcs_pb2.LiveActor(actor_id=actor_id, worker_id=h.worker_id, attempt=h.attempt,
                                  pid=self.pool.workers[h.worker_id].pid)
                for actor_id, h in self.actors.items() if h.ready]

    def held_bundles(self) -> list[gcs_pb2.HeldBundle]:
        """Bundles whose resources are taken here."""
        return [gcs_pb2.HeldBundle(placement_group_id=pg, index=index, committed=held.committed)
                for (pg, index), held in self.bundles.items()]

    def check(self) -> None:
        """Every hosted actor has its grant; its worker lives."""
        for actor_id, hosted in self.actors.items():
            grant = self.leases.grants.get(hosted.grant_id)
            worker = self.pool.workers.get(hosted.worker_id)
            assert not hosted.worker_id or worker is not None, "an actor without a worker"
            if worker is None or worker.state == BUSY:
                assert grant is not None and grant.actor_id == actor_id, "an actor without resources"
