"""Who lives on this node: workers and drivers from registration to their end, and their jobs.

::

    Register ─▶ Registered (+ store) ─▶ AssignJob at the first grant ─▶ … ─▶ exit
                                                                             │
      everything a client had or waited for goes, in one place: `exited` ◀───┘

A driver's job is started at the GCS before the driver gets its answer; its end is the job's end.
Pure; part of `core.node.Node`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, worker_pb2
from miniray.core.leases import Grant
from miniray.core.node_effects import STORE_FD, DropClient, to_client
from miniray.core.pool import BUSY, DRIVER, Key, Worker

if TYPE_CHECKING:
    from miniray.core.node import Node

ENDED_KEPT = 512


class Ended(NamedTuple):
    """The end of a worker or driver that was reported to the GCS."""

    at: float
    started_at: float
    ended_by: common.EndedBy
    failed: gcs_pb2.WorkerFailed


class Residents:
    """See the module head."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.jobs: dict[bytes, common.JobInfo] = {}
        self.job_waiting: dict[bytes, dict[int, None]] = {}
        """Grants that have a worker but whose job nobody has told us about yet."""
        self.lingering: dict[bytes, None] = {}
        """Jobs that have ended, with detached actors that live on here."""
        self.ended: deque[Ended] = deque(maxlen=ENDED_KEPT)
        """The last ends that were reported: a GCS that starts afresh may not know of them."""

    def ended_since(self, since: float) -> list[gcs_pb2.WorkerFailed]:
        """Ends of workers that were reported after the given time."""
        return [end.failed for end in self.ended if end.at >= since]

    def registered(self, now: float, worker_id: bytes, pid: int, client_slot: int,
                   register: worker_pb2.Register) -> None:
        """A process with a valid token introduced itself; it gets its answer and the store."""
        if register.is_driver:
            self._driver_registered(now, worker_id, pid, client_slot, register)
            return
        if not self.node.pool.token_known(register.startup_token):
            self._refuse(worker_id, common.INVALID_ARGUMENT, "this worker was not started by this raylet")
            return
        grant_id = self.node.pool.worker_registered(now, worker_id, register.startup_token, pid, client_slot)
        worker = self.node.pool.workers[worker_id]
        self._welcome(worker, self.jobs.get(worker.job_id))
        if grant_id:
            self.node.leases.worker_found(now, grant_id, worker)

    def _welcome(self, worker: Worker, job: common.JobInfo | None) -> None:
        welcome = worker_pb2.Registered(
            address=common.Address(node_id=self.node.node_id, worker_id=worker.worker_id),
            client_slot=worker.client_slot, config=self.node.config, node=self.node.info,
            session_dir=self.node.session_dir)
        if job is not None:
            welcome.job_id = job.job_id
            welcome.job.CopyFrom(job)
            worker.assigned_job = job.job_id
        self.node.out.append(to_client(worker.worker_id, STORE_FD, registered=welcome))

    def _refuse(self, worker_id: bytes, kind: common.ErrorKind, message: str) -> None:
        failure = common.Failure(kind=kind, message=message)
        self.node.out.append(to_client(worker_id, registered=worker_pb2.Registered(failure=failure)))
        self.node.out.append(DropClient(worker_id))

    def _driver_registered(self, now: float, worker_id: bytes, pid: int, client_slot: int,
                           register: worker_pb2.Register) -> None:
        worker = self.node.pool.driver_registered(now, worker_id, pid, client_slot)
        start = gcs_pb2.JobStart()
        start.CopyFrom(register.job)
        start.driver.node_id, start.driver.worker_id = self.node.node_id, worker_id
        start.driver_pid = pid

        def job_started(at: float, reply: gcs_pb2.ControlReply) -> None:
            if worker_id not in self.node.pool.workers:
                if reply.HasField("job"):
                    self._finish_job(reply.job.job_id, failed=True)
                return
            if not reply.HasField("job"):
                self._refuse(worker_id, reply.failure.kind, reply.failure.message)
                return
            self.jobs[reply.job.job_id] = reply.job
            worker.key = Key(reply.job.job_id)
            self._welcome(worker, reply.job)

        self.node.bridge.ask(job_started, sender=worker_id, job_start=start)

    def start_failed(self, now: float, startup_token: bytes, failure: common.Failure) -> None:
        """A process ended, or could not be made, before it registered."""
        fatal = failure.kind == common.RUNTIME_ENV_FAILED
        grant_id = self.node.pool.worker_start_failed(now, startup_token, fatal)
        if grant_id:
            grant = self.node.leases.start_refused(now, grant_id, failure)
            if grant.actor_id:
                self.node.hosting.start_refused(grant, failure)

    def exited(self, now: float, worker_id: bytes, failure: common.Failure) -> None:
        """A client's process has ended; `failure` says how. Its store record is reaped already."""
        worker = self.node.pool.worker_exited(now, worker_id)
        if worker is None:
            return
        self._complete(worker, failure)
        self.node.stories.note(now, worker_id, failure.message)
        actor_id = self.node.hosting.worker_gone(worker_id)
        self.node.leases.holder_gone(now, worker_id)    # first, or it would be granted what it has had
        self.node.leases.worker_gone(now, worker)
        self.node.transfer.client_gone(now, worker_id)
        self.node.memory.client_gone(worker_id)
        self.node.bridge.client_gone(worker_id)
        self.node.census.client_gone(worker_id)
        self.node.inquiries.client_gone(worker_id)
        self.node.relay.client_gone(worker_id, failure, worker.intended)
        self.node.memory.owner_gone(now, self.node.node_id, worker_id)
        address = common.Address(node_id=self.node.node_id, worker_id=worker_id)
        is_driver = worker.state == DRIVER
        if is_driver or worker.assigned_job:
            failed = gcs_pb2.WorkerFailed(
                address=address, job_id=worker.job_id, actor_id=actor_id, failure=failure,
                is_driver=is_driver, intended=worker.intended)
            self.ended.append(Ended(now, worker.registered_at, worker.ended_by, failed))
            self.node.tell_head(worker_failed=failed)
        if actor_id and worker.job_id in self.lingering:
            self.job_ended(now, worker.job_id)
        if is_driver and worker.job_id:
            self._finish_job(worker.job_id, failed=not worker.intended)
            self.job_ended(now, worker.job_id)

    def _complete(self, worker: Worker, failure: common.Failure) -> None:
        """Add to a failure what only the node knows."""
        failure.kind = common.OUT_OF_MEMORY if worker.out_of_memory else failure.kind or common.WORKER_DIED
        failure.node_id, failure.worker_id, failure.pid = self.node.node_id, worker.worker_id, worker.pid
        if worker.reason:
            failure.message = f"{failure.message}: {worker.reason}"
        if worker.current_task and not worker.intended:
            failure.message = f"{failure.message} while it ran {worker.current_task}"

    def name_of(self, worker_id: bytes) -> str:
        """A client in words, for messages to people."""
        if not worker_id:
            return "the raylet"
        worker = self.node.pool.workers.get(worker_id)
        if worker is None:
            return f"worker {worker_id.hex()[:8]} (ended)"
        kind = "driver" if worker.state == DRIVER else worker.current_task or "worker"
        return f"{kind} (pid {worker.pid})"

    # ---- jobs ----

    def _finish_job(self, job_id: bytes, failed: bool) -> None:
        self.node.bridge.ask(None, job_finish=gcs_pb2.JobFinish(job_id=job_id, failed=failed))

    def job_ended(self, now: float, job_id: bytes) -> None:
        """A job is over, here or elsewhere: its workers, requests and objects go."""
        keep = self.node.hosting.detached_workers(job_id)
        if keep:
            workers = self.node.pool.workers.values()
            keep.update({w.worker_id: None for w in workers if w.outlives and w.job_id == job_id})
            self.lingering[job_id] = None
        else:
            self.lingering.pop(job_id, None)
        self.node.leases.job_ended(now, job_id, keep)
        self.node.hosting.job_ended(now, job_id)
        self.node.pool.job_ended(now, job_id, keep)
        self.node.memory.job_ended(job_id, keep)
        if not keep:
            self.jobs.pop(job_id, None)

    def worker_found(self, now: float, grant: Grant, worker: Worker) -> None:
        """A grant has its worker: see to it that the worker knows the job, then start."""
        job_id = grant.cls.job_id
        if worker.assigned_job != job_id:
            job = self.jobs.get(job_id)
            if job is None:
                self._ask_for_job(job_id, grant.grant_id)
                return
            worker.assigned_job = job_id
            self.node.out.append(to_client(worker.worker_id, assign_job=worker_pb2.AssignJob(job=job)))
        if grant.actor_id:
            self.node.hosting.worker_found(now, grant, worker)
        else:
            self.node.leases.granted(grant)

    def _ask_for_job(self, job_id: bytes, grant_id: int) -> None:
        is_asked = job_id in self.job_waiting
        self.job_waiting.setdefault(job_id, {})[grant_id] = None
        if is_asked:
            return

        def jobs_listed(at: float, reply: gcs_pb2.ControlReply) -> None:
            known = {job.job_id: job for job in reply.jobs.jobs}
            self.jobs[job_id] = known.get(job_id, common.JobInfo(job_id=job_id))
            for waiting_id in self.job_waiting.pop(job_id, {}):
                grant = self.node.leases.grants.get(waiting_id)
                worker = self.node.pool.workers.get(grant.worker_id) if grant is not None else None
                if grant is not None and worker is not None and worker.state == BUSY:
                    self.worker_found(at, grant, worker)

        self.node.bridge.ask(jobs_listed, job_list=gcs_pb2.JobList())
