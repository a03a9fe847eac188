"""The actor that runs a submitted program as a process of its node, and writes down what becomes of it.

::

    client ── detached actor ──▶ supervisor ── fork ──▶ sh -c ENTRYPOINT ── whatever it starts
                                   │ records, log pieces ▶ GCS's key-value store ◀ stop flags ─ client

It depends on nobody but its node: not on the client, and a head that is away is waited for. Everything
the program started is below the supervisor, whose process adopts orphans, so it ends with it: by SIGTERM,
by SIGKILL after the grace time, and when the supervisor itself is killed, by the node. When the program
has ended the supervisor ends, too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from miniray.job_submission import records
from miniray.job_submission.records import DriverInfo, JobDetails, JobStatus

LOOK_EVERY_S = 0.5
"""How often the log is stored and stop flags are looked for."""

MESSAGE_BYTES = 20_000
"""Of the end of the log, in the message of a failed job."""


class Supervisor:
    """See the module head. Its constructor starts a thread and returns."""

    def __init__(self, submission_id: str, grace_s: float) -> None:
        self._id = submission_id
        self._grace_s = grace_s
        threading.Thread(target=self._supervise, name="supervisor", daemon=True).start()

    def _supervise(self) -> None:
        details = records.load(_request, self._id)
        if details is not None and not details.status.is_terminal():
            try:
                self._run(details)
            except Exception as error:
                details.status = JobStatus.FAILED
                details.message = f"the supervisor failed: {error!r}"
            details.end_time = _now_ms()
            records.save(_request, details)
        _leave()

    def _run(self, details: JobDetails) -> None:
        """Start the program, follow it to its end, and say in `details` how that was."""
        if records.is_asked_to_stop(_request, self._id):
            details.status, details.message = JobStatus.STOPPED, "Job was intentionally stopped."
            return
        log = records.LogWriter(_request, self._id)
        program = subprocess.Popen(
            details.entrypoint, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True, env=_environment(details),
        )  # fmt: skip
        worker = _worker()
        details.status = JobStatus.RUNNING
        details.message = "Job is currently running."
        details.driver_node_id = worker.address[0].hex()
        details.driver_info = DriverInfo(self._id, worker.node_info.host, str(program.pid))
        records.save(_request, details)
        was_stopped = self._follow(program, log)
        _end_all_below()
        log.flush()
        code = program.wait()
        details.driver_exit_code = code
        if was_stopped:
            details.status, details.message = JobStatus.STOPPED, "Job was intentionally stopped."
        elif code == 0:
            details.status, details.message = JobStatus.SUCCEEDED, "Job finished successfully."
        else:
            details.status, details.error_type = JobStatus.FAILED, "JOB_ENTRYPOINT_COMMAND_ERROR"
            how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
            end = log.tail[-MESSAGE_BYTES:].decode("utf-8", "replace")
            details.message = (
                f"Job entrypoint command failed with {how}, last available logs (truncated to "
                f"{MESSAGE_BYTES:,} bytes):\n{end}"
            )

    def _follow(self, program: subprocess.Popen[bytes], log: records.LogWriter) -> bool:
        """Store what the program writes until it has ended. True when it was asked to stop."""
        assert program.stdout is not None
        os.set_blocking(program.stdout.fileno(), False)
        kill_at: float | None = None
        look_at = 0.0
        output = [program.stdout]
        while program.poll() is None:
            if select.select(output, [], [], LOOK_EVERY_S / 5)[0] and not _drain(program, log):
                output = []  # it has closed its output, and runs on
            now = time.monotonic()
            if kill_at is not None and now >= kill_at:
                _signal_below(signal.SIGKILL)
            if now < look_at:
                continue
            look_at = now + LOOK_EVERY_S
            log.flush()
            if kill_at is None and records.is_asked_to_stop(_request, self._id):
                _signal_below(signal.SIGTERM)
                kill_at = now + self._grace_s
        _drain(program, log)
        return kill_at is not None


def _drain(program: subprocess.Popen[bytes], log: records.LogWriter) -> bool:
    """Take what the program has written. False at the end of its output."""
    assert program.stdout is not None
    while True:
        try:
            data = os.read(program.stdout.fileno(), records.PIECE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        log.write(data)


def _signal_below(number: int) -> None:
    """To the program and everything that it has started."""
    from miniray.runtime import agent

    for pid in agent.descendants_of(os.getpid()):
        agent.signal_process(pid, number)


def _end_all_below() -> None:
    """Kill what the program has left running; orphans are this process's children by now."""
    from miniray.runtime import agent

    deadline = time.monotonic() + 5.0
    while agent.kill_below(os.getpid()) and time.monotonic() < deadline:
        for pid in agent.children_of(os.getpid()):
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
        time.sleep(0.005)


def _environment(details: JobDetails) -> dict[str, str]:
    """The program's: where to attach, and its own runtime environment once more, for its driver."""
    worker = _worker()
    env: dict[str, Any] = dict(details.runtime_env)
    added = sys.path[: worker.executor.import_after]
    if env.pop("working_dir", None):
        env["working_dir"] = os.getcwd()
    if env.pop("py_modules", None):
        env["py_modules"] = [path for path in added if os.path.realpath(path) != os.path.realpath(".")]
    metadata = {"job_submission_id": str(details.submission_id), "job_name": str(details.submission_id)}
    variables = dict(os.environ)
    variables["MINIRAY_ADDRESS"] = worker.session_dir
    variables["MINIRAY_JOB_METADATA"] = json.dumps(metadata | details.metadata)
    variables["PYTHONPATH"] = os.pathsep.join([*added, *filter(None, [variables.get("PYTHONPATH")])])
    variables["PYTHONUNBUFFERED"] = "1"
    if env:
        variables["MINIRAY_RUNTIME_ENV"] = json.dumps(env)
    return variables


def _worker() -> Any:
    from miniray import api

    return api.connected_worker()


def _request(kind: str, message: Any) -> Any:
    """Ask the GCS, for as long as it takes: if the head stays away the node ends, and this with it."""
    from miniray.exceptions import GetTimeoutError

    while True:
        try:
            return _worker().request(kind, message)
        except GetTimeoutError:
            continue


def _leave() -> None:
    """This actor is not needed any more."""
    from miniray._proto import gcs_pb2 as gcs

    actor_id = _worker().executor.actor_spec.actor_id
    _request("actor_kill", gcs.ActorKill(actor_id=actor_id, no_restart=True))


def _now_ms() -> int:
    return int(time.time() * 1000)
