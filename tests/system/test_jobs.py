"""Submitted jobs: they run without their client, say how they ended, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from miniray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType, records
from tests.system.support import alive, eventually

PROGRAM = """
import sys
import helper
import miniray as ray
ray.init()

@ray.remote
def double(x):
    return helper.double(x)

print("sum", sum(ray.get([double.remote(i) for i in range(5)])))
print("metadata", ray.get_runtime_context().get_job_id() != "")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def client(ray: Any) -> JobSubmissionClient:
    return JobSubmissionClient()


@pytest.fixture
def app(tmp_path: Path) -> str:
    """A working directory with a program and a module of its own."""
    (tmp_path / "main.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    return str(tmp_path)


def ended(client: JobSubmissionClient, name: str) -> JobDetails:
    eventually(lambda: client.get_job_status(name).is_terminal())
    return client.get_job_info(name)


def test_a_job_runs_in_its_directory_and_so_do_its_tasks(client: JobSubmissionClient, app: str) -> None:
    name = client.submit_job(
        entrypoint=f"{sys.executable} main.py 0", runtime_env={"working_dir": app}, metadata={"who": "me"}
    )
    details = ended(client, name)
    assert details.status == JobStatus.SUCCEEDED and details.driver_exit_code == 0, details.message
    assert "sum 20" in client.get_job_logs(name) and details.metadata == {"who": "me"}
    assert details.start_time and details.end_time and details.driver_node_id
    listed = next(job for job in client.list_jobs() if job.submission_id == name)
    assert listed.type == JobType.SUBMISSION and listed.job_id, "the driver's job is known"


def test_a_job_that_fails_says_how_and_shows_its_last_lines(client: JobSubmissionClient, app: str) -> None:
    name = client.submit_job(
        entrypoint=f"{sys.executable} main.py 7", runtime_env={"working_dir": app}, submission_id="fails"
    )
    details = ended(client, name)
    assert name == "fails" and details.status == JobStatus.FAILED and details.driver_exit_code == 7
    assert "exit code 7" in str(details.message) and "sum 20" in str(details.message)
    with pytest.raises(ValueError, match="exists already"):
        client.submit_job(entrypoint="true", submission_id="fails")
    assert client.delete_job("fails")
    with pytest.raises(RuntimeError, match="does not exist"):
        client.get_job_info("fails")


def test_stopping_a_job_ends_all_that_it_started(client: JobSubmissionClient, tmp_path: Path) -> None:
    script = (
        f"trap '' TERM; sleep 1000 & echo $! >> {tmp_path}/pids; "
        f"setsid sleep 1001 & echo $! >> {tmp_path}/pids; echo $$ >> {tmp_path}/pids; wait; sleep 1002"
    )
    name = client.submit_job(entrypoint=script, runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "0.5"}})
    pids = tmp_path / "pids"
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    assert client.stop_job(name)
    details = ended(client, name)
    assert details.status == JobStatus.STOPPED
    eventually(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))
    assert not client.stop_job(name), "it has ended already"


def test_a_killed_supervisor_takes_its_job_along_and_the_job_has_failed(
    client: JobSubmissionClient, tmp_path: Path
) -> None:
    name = client.submit_job(entrypoint=f"echo $PPID $$ > {tmp_path}/pids; sleep 1000")
    pids = tmp_path / "pids"
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    supervisor, program = map(int, pids.read_text().split())
    eventually(lambda: client.get_job_status(name) == JobStatus.RUNNING)
    os.kill(supervisor, signal.SIGKILL)
    details = ended(client, name)
    assert details.status == JobStatus.FAILED and "supervisor" in str(details.message)
    eventually(lambda: not alive(program))


def test_a_job_that_nobody_can_place_is_pending_and_can_be_stopped(client: JobSubmissionClient) -> None:
    name = client.submit_job(entrypoint="true", entrypoint_resources={"unobtainable": 1})
    assert client.get_job_status(name) == JobStatus.PENDING
    assert client.stop_job(name)
    assert ended(client, name).status == JobStatus.STOPPED


@pytest.mark.slow
def test_a_runtime_env_that_cannot_be_made_fails_the_job(client: JobSubmissionClient) -> None:
    name = client.submit_job(entrypoint="true", runtime_env={"pip": ["/no/such/package-1.0.whl"]})
    details = ended(client, name)
    assert details.status == JobStatus.FAILED and details.message


def test_following_a_log_yields_all_of_it_and_ends_with_the_job(client: JobSubmissionClient) -> None:
    name = client.submit_job(  # the third line is written in the middle of a character
        entrypoint="printf 'line 1\\nline 2\\nline \\303'; sleep 1.2; printf '\\251\\n'"
    )

    async def follow() -> str:
        return "".join([text async for text in client.tail_job_logs(name)])

    assert asyncio.run(follow()) == "line 1\nline 2\nline \u00e9\n"


def test_of_a_long_log_the_end_is_kept(client: JobSubmissionClient, monkeypatch: pytest.MonkeyPatch) -> None:
    request = __import__("miniray").api.connected_worker().request
    monkeypatch.setattr(records, "LOG_PIECES", 3)
    log, reader = records.LogWriter(request, "long"), records.LogReader(request, "long")
    whole = b"".join(b"%09d\n" % number for number in range(60_000))
    for start in range(0, len(whole), 10_000):
        log.write(whole[start : start + 10_000])
    log.flush()
    kept = reader.read()
    assert len(kept) < 3 * records.PIECE_BYTES and whole.endswith(kept) and reader.read() == b""
    log.write(b"more\n")
    log.flush()
    assert reader.read() == b"more\n"
    records.forget(request, "long")


def test_a_job_goes_on_when_the_process_that_submitted_it_is_killed(
    client: JobSubmissionClient, tmp_path: Path
) -> None:
    script = (
        "import os, signal; from miniray.job_submission import JobSubmissionClient\n"
        "client = JobSubmissionClient(os.environ['WHERE'])\n"
        f"client.submit_job(submission_id='orphan', entrypoint='sleep 1; echo done > {tmp_path}/done')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    import miniray

    environment = os.environ | {"WHERE": miniray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert ended(client, "orphan").status == JobStatus.SUCCEEDED
    assert (tmp_path / "done").read_text() == "done\n"
