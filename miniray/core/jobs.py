"""Jobs: one per driver, numbered by the GCS, ended by the driver, by its death or its node's.

A job's number is given once, for ever: the counter is saved with the job. A driver is known by
its address, so asking twice gives the same job. When a job ends, `Head` ends what belongs to it.
Pure; part of `Head`.
"""

from __future__ import annotations

from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.desk import Desk
from miniray.core.pubsub import PubSub

TABLE = "job"

ENDED_KEPT = 1_000
"""Ended jobs remembered; the oldest are forgotten first."""


class Jobs:
    """All running jobs and the latest ended ones."""

    def __init__(self, desk: Desk, pubsub: PubSub) -> None:
        self._desk = desk
        self._pubsub = pubsub
        self._next = 1
        self.running: dict[bytes, pb.JobInfo] = {}
        self.ended: dict[bytes, pb.JobInfo] = {}
        self._by_driver: dict[bytes, bytes] = {}

    def restore_next(self, value: bytes) -> None:
        """The saved counter."""
        self._next = int.from_bytes(value, "little")

    def restore(self, info: pb.JobInfo) -> None:
        """One saved row."""
        if info.state == pb.JOB_RUNNING:
            self.running[info.job_id] = info
            self._by_driver[info.driver.worker_id] = info.job_id
        else:
            self.ended[info.job_id] = info

    def started(self, now: float, request: gcs.JobStart) -> pb.JobInfo:
        """A driver starts a job, or asks again for the one it has."""
        known = self._by_driver.get(request.driver.worker_id)
        if known is not None:
            return self.running[known]
        job_id = ids.job_id(self._next)
        self._next += 1
        info = pb.JobInfo(
            job_id=job_id,
            driver=request.driver,
            driver_pid=request.driver_pid,
            entrypoint=request.entrypoint,
            # a job that names none gets a namespace that nobody else can guess or meet
            namespace=request.namespace or f"{self._desk.rng.getrandbits(128):032x}",
            runtime_env=request.runtime_env,
            metadata=dict(request.metadata),
            sys_path=request.sys_path,
            aliases=request.aliases,
            actors_outlive=request.actors_outlive,
            logging=request.logging,
            started_at=self._desk.wall(now),
        )
        self.running[job_id] = info
        self._by_driver[request.driver.worker_id] = job_id
        self._desk.persist("meta", b"next_job", self._next.to_bytes(8, "little"))
        self._save(info)
        self._desk.note(now, job_id, f"started by pid {request.driver_pid}: {request.entrypoint}")
        self._pubsub.published("job", job_id, job=info)
        return info

    def finished(self, now: float, job_id: bytes, failed: bool) -> bool:
        """The job is over. False when it was not running."""
        info = self.running.pop(job_id, None)
        if info is None:
            return False
        self._by_driver.pop(info.driver.worker_id, None)
        info.state = pb.JOB_FAILED if failed else pb.JOB_FINISHED
        info.ended_at = self._desk.wall(now)
        self.ended[job_id] = info
        self._save(info)
        while len(self.ended) > ENDED_KEPT:
            oldest = next(iter(self.ended))
            del self.ended[oldest]
            self._desk.persist(TABLE, oldest, None)
        self._desk.note(now, job_id, "failed" if failed else "finished")
        self._pubsub.published("job", job_id, job=info)
        return True

    def of_driver(self, worker_id: bytes) -> bytes | None:
        """The running job of this driver."""
        return self._by_driver.get(worker_id)

    def of_node(self, node_id: bytes) -> list[bytes]:
        """Running jobs whose driver is on this node."""
        return [job_id for job_id, info in self.running.items() if info.driver.node_id == node_id]

    def _save(self, info: pb.JobInfo) -> None:
        self._desk.persist(TABLE, info.job_id, info.SerializeToString())

    def all(self) -> list[pb.JobInfo]:
        """Rows of all jobs, oldest first."""
        return sorted((*self.ended.values(), *self.running.values()), key=lambda info: info.job_id[::-1])

    def check(self) -> None:
        """Assert every invariant."""
        assert not self.running.keys() & self.ended.keys()
        assert sorted(self._by_driver.values()) == sorted(self.running), "a driver has one job"
        assert all(int.from_bytes(j, "little") < self._next for j in (*self.running, *self.ended))

    def dump(self) -> dict[str, Any]:
        """One line per running job."""
        return {job_id.hex(): info.entrypoint for job_id, info in self.running.items()}
