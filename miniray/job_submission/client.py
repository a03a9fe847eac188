"""`JobSubmissionClient`: hand the cluster a program, see what becomes of it, end it. Names are Ray's.

The client speaks as a driver: through the session of this process if there is one, else through one of its
own for the time of each call. What it starts does not depend on it. An address is what `init` takes; that of
a dashboard (`http://…`) stands for the cluster on its host.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from miniray import __version__
from miniray.job_submission import records
from miniray.job_submission.records import DriverInfo, JobDetails, JobStatus, JobType, Request

NAMESPACE = "_ray_internal_job_submission"
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
GRACE_S = 3.0
POLL_S = 0.25
EXPLAIN_S = 2.0

_RUNS = {0: JobStatus.RUNNING, 1: JobStatus.SUCCEEDED, 2: JobStatus.FAILED}


class JobSubmissionClient:
    """See the module head."""

    def __init__(
        self,
        address: str | None = None,
        create_cluster_if_needed: bool = False,
        cookies: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
        verify: str | bool | None = True,
    ) -> None:
        """`metadata` is added to that of every job; the other arguments are Ray's and without effect."""
        self._address = _cluster_of(address)
        self._metadata = {str(k): str(v) for k, v in (metadata or {}).items()}
        with self._attached():
            pass  # ConnectionError now rather than later

    # ---- a job's life

    def submit_job(
        self,
        *,
        entrypoint: str,
        job_id: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        submission_id: str | None = None,
        entrypoint_num_cpus: float | None = None,
        entrypoint_num_gpus: float | None = None,
        entrypoint_memory: int | None = None,
        entrypoint_resources: Mapping[str, float] | None = None,
        entrypoint_label_selector: Mapping[str, str] | None = None,
    ) -> str:
        """Have the cluster run a shell command; returns the submission's id at once.

        Raises:
            ValueError: the id is taken, or no id.
            RuntimeEnvSetupError, ValueError: what `runtime_env` names is not there.
        """
        if job_id and submission_id:
            raise ValueError("job_id is the old name of submission_id: give one of them")
        name = records.check_id(submission_id or job_id or records.new_id())
        details = JobDetails(
            JobType.SUBMISSION, name, entrypoint, metadata=self._metadata | dict(metadata or {}),
            message="Job has not started yet. It may be waiting for resources or for its runtime_env.",
            start_time=int(time.time() * 1000), runtime_env=dict(runtime_env or {}),
        )  # fmt: skip
        with self._attached() as request:
            if not records.save(request, details, overwrite=False):
                raise ValueError(
                    f"a job with submission_id {name!r} exists already: take another one, or delete it first"
                )
            try:
                _start(
                    details, num_cpus=entrypoint_num_cpus or 0, num_gpus=entrypoint_num_gpus or 0,
                    memory=entrypoint_memory, resources=dict(entrypoint_resources or {}),
                    label_selector=dict(entrypoint_label_selector or {}),
                )  # fmt: skip
            except BaseException:
                records.forget(request, name)
                raise
        return name

    def stop_job(self, job_id: str) -> bool:
        """Ask for the job's end: SIGTERM to all it has started, SIGKILL after the grace time.

        False when it had ended already. Returns before it has ended.
        """
        with self._attached() as request:
            details = self._details(request, job_id)
            if details.status.is_terminal():
                return False
            records.ask_to_stop(request, job_id)
            if details.status == JobStatus.PENDING:
                self._stop_pending(request, details)
            return True

    def _stop_pending(self, request: Request, details: JobDetails) -> None:
        """Its supervisor has no place yet: it never needs one."""
        from miniray._proto import gcs_pb2 as gcs

        actor = _supervisor(request, str(details.submission_id))
        if actor is not None and not actor.pid:
            request("actor_kill", gcs.ActorKill(actor_id=actor.spec.actor_id, no_restart=True))
            details.status, details.message = JobStatus.STOPPED, "Job was intentionally stopped."
            details.end_time = int(time.time() * 1000)
            records.save(request, details)

    def delete_job(self, job_id: str) -> bool:
        """Forget an ended job and its log. RuntimeError while it runs."""
        with self._attached() as request:
            details = self._details(request, job_id)
            if not details.status.is_terminal():
                raise RuntimeError(f"job {job_id!r} is {details.status}: stop it before it is deleted")
            records.forget(request, job_id)
            return True

    # ---- looking

    def get_job_info(self, job_id: str) -> JobDetails:
        """One submitted job. RuntimeError when there is none of this id."""
        with self._attached() as request:
            details = self._details(request, job_id)
            if details.status == JobStatus.PENDING:
                details.message = _why_pending(request, job_id) or details.message
            return details

    def get_job_status(self, job_id: str) -> JobStatus:
        """How far it is."""
        with self._attached() as request:
            return self._details(request, job_id).status

    def list_jobs(self) -> list[JobDetails]:
        """Submitted jobs, and drivers that people have started, oldest first."""
        with self._attached() as request:
            found = [self._details(request, name) for name in records.all_ids(request)]
            drivers = _drivers(request, {str(details.submission_id): details for details in found})
            return sorted([*found, *drivers], key=lambda details: details.start_time or 0)

    def get_job_logs(self, job_id: str) -> str:
        """What it has written to stdout and stderr, the last 16 MiB."""
        with self._attached() as request:
            self._details(request, job_id)
            return records.LogReader(request, job_id).read().decode("utf-8", "replace")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """What it writes, piece by piece, until it has ended."""
        for text in self.follow(job_id):
            if text:
                yield text
            else:
                await asyncio.sleep(POLL_S)

    def follow(self, job_id: str) -> Iterator[str]:
        """What it writes, until it has ended; "" when there is nothing new: wait a little."""
        with self._attached() as request:
            reader = records.LogReader(request, job_id)
            decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two reads
            while True:
                has_ended = self._details(request, job_id).status.is_terminal()
                text = decoder.decode(reader.read(), final=has_ended)
                if text or not has_ended:
                    yield text
                if has_ended:
                    return

    def get_version(self) -> str:
        """Of this package."""
        return __version__

    def get_address(self) -> str:
        """Where this client goes."""
        return self._address or "auto"

    # ---- inside

    def _details(self, request: Request, job_id: str) -> JobDetails:
        """The record; one whose supervisor is gone has failed."""
        details = records.load(request, job_id)
        if details is None:
            raise RuntimeError(f"Job {job_id!r} does not exist: `miniray job list` shows those that do")
        if details.status.is_terminal():
            return details
        actor = _supervisor(request, job_id)
        if actor is not None and actor.state != _dead():
            return details
        details = records.load(request, job_id) or details  # its last words may have come just now
        if not details.status.is_terminal():
            why = actor.death.message if actor is not None else "it is not in the cluster any more"
            details.status, details.end_time = JobStatus.FAILED, int(time.time() * 1000)
            details.message = f"Job supervisor has ended: {why}"
            details.error_type = "JOB_SUPERVISOR_ACTOR_DIED"
            records.save(request, details)
        return details

    @contextmanager
    def _attached(self) -> Iterator[Request]:
        from miniray import api, session
        from miniray.job_config import JobConfig

        if api.is_initialized():
            yield api.connected_worker().request
            return
        quiet = JobConfig(metadata={"job_submission_client": "1"}, ray_namespace=NAMESPACE)
        session.init(self._address or "auto", job_config=quiet, log_to_driver=False, configure_logging=False)
        try:
            yield api.connected_worker().request
        finally:
            session.shutdown()


def _cluster_of(address: str | None) -> str | None:
    """What `init` is to be given."""
    if address is None:
        return None
    scheme, found, rest = address.partition("://")
    if not found or scheme in ("ray", "miniray"):
        return address
    if scheme not in ("http", "https"):
        raise ValueError(f"address {address!r}: HOST:PORT of the head, 'auto' or a session directory")
    host = rest.partition("/")[0].rpartition(":")[0].strip("[]")
    return "auto" if host in ("127.0.0.1", "localhost", "::1") else rest.rstrip("/")


def _start(details: JobDetails, **needs: Any) -> None:
    """Make the supervisor, which belongs to the cluster from now on."""
    import os

    import miniray
    from miniray.job_submission.supervisor import Supervisor

    submission_id = str(details.submission_id)
    options: dict[str, Any] = {name: value for name, value in needs.items() if value is not None}
    if not options["label_selector"]:
        del options["label_selector"]
    if details.runtime_env:
        options["runtime_env"] = _uploaded(details.runtime_env)
    variables = details.runtime_env.get("env_vars") or {}
    grace_s = float(variables.get(GRACE_VARIABLE) or os.environ.get(GRACE_VARIABLE) or GRACE_S)
    actor = miniray.remote(Supervisor).options(
        name=_name(submission_id), namespace=NAMESPACE, lifetime="detached", **options
    )
    actor.remote(submission_id, grace_s)


def _uploaded(env: dict[str, Any]) -> dict[str, Any]:
    """The environment with what it names on this machine in the cluster, among this job's packages."""
    import json

    from miniray import api, driver_job
    from miniray.runtime_env.runtime_env import localized

    text, packages = localized(env)
    driver_job.upload(api.connected_worker(), packages)
    found: dict[str, Any] = json.loads(text)
    return found


def _name(submission_id: str) -> str:
    return f"_ray_internal_job_actor_{submission_id}"


def _supervisor(request: Request, submission_id: str) -> Any:
    """The supervisor's row; a dead one has lost its name and is found in the list. None: nowhere."""
    from miniray._proto import gcs_pb2 as gcs

    listed = request("actor_list", gcs.ActorList(namespace=NAMESPACE)).actors.actors
    name = _name(submission_id)
    return next((actor for actor in reversed(listed) if actor.spec.name == name), None)


def _why_pending(request: Request, submission_id: str) -> str:
    """What the supervisor waits for, "" when that is not known."""
    from miniray.runtime import explaining

    actor = _supervisor(request, submission_id)
    if actor is None:
        return ""
    actor_id = actor.spec.actor_id
    found = explaining.ask(lambda query: request("explain", query).explanation, actor_id, EXPLAIN_S)
    return "\n  because ".join(["Job has not started yet", *found.chain]) if found.chain else ""


def _dead() -> int:
    from miniray._proto import common_pb2 as pb

    return pb.DEAD


def _drivers(request: Request, submitted: dict[str, JobDetails]) -> list[JobDetails]:
    """Jobs of drivers; those of submitted programs lend their job id to the submission."""
    from miniray._proto import gcs_pb2 as gcs

    found = []
    for job in request("job_list", gcs.JobList()).jobs.jobs:
        mine = submitted.get(job.metadata.get("job_submission_id", ""))
        if mine is not None:
            mine.job_id = mine.job_id or job.job_id.hex()
        elif "job_submission_client" not in job.metadata:
            found.append(JobDetails(
                JobType.DRIVER, None, job.entrypoint, _RUNS[job.state], job.job_id.hex(),
                start_time=int(job.started_at * 1000), metadata=dict(job.metadata),
                end_time=int(job.ended_at * 1000) or None, driver_node_id=job.driver.node_id.hex(),
                driver_info=DriverInfo(job.job_id.hex(), "", str(job.driver_pid)),
            ))  # fmt: skip
    return found
