"""`miniray job submit|status|stop|logs|list|delete`: programs that the cluster runs, as `ray job` does.

Exit code of `submit` and of `logs --follow`: 0 when the job has succeeded, 1 otherwise.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from miniray.commands import options as opts
from miniray.commands import tables
from miniray.commands.status import ADDRESS
from miniray.printable import printable

if TYPE_CHECKING:
    from miniray.job_submission import JobSubmissionClient

WAIT_S = 60.0
"""`stop` waits so long for the end."""


def _client(address: str | None) -> JobSubmissionClient:
    from miniray.exceptions import AuthenticationError
    from miniray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, ValueError, AuthenticationError) as error:
        raise click.ClickException(str(error)) from error


def _checked(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """What the client returns; what it raises as one line."""
    try:
        return function(*arguments, **keywords)
    except (RuntimeError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def job() -> None:
    """Submit, follow, list and stop jobs that the cluster runs."""


def _json(text: str | None, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise click.BadParameter(f"{option} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise click.BadParameter(f"{option} must be a JSON object")
    return found


@job.command(context_settings={"ignore_unknown_options": True})
@ADDRESS
@click.option("--submission-id", "--job-id", help="The job's id; one is made by default.")
@click.option("--runtime-env", "env_file", type=click.File(), help="File with the runtime_env as JSON.")
@click.option("--runtime-env-json", help="The runtime_env as JSON.")
@click.option("--working-dir", help="Directory that is uploaded and that the job runs in.")
@click.option("--metadata-json", help="Metadata as JSON, text by text.")
@click.option("--entrypoint-num-cpus", type=float, help="CPUs set aside for the entrypoint itself.")
@click.option("--entrypoint-num-gpus", type=float, help="GPUs set aside for the entrypoint itself.")
@click.option("--entrypoint-memory", type=int, help="Bytes set aside for the entrypoint itself.")
@click.option("--entrypoint-resources", type=opts.json_map(float), help="Custom resources, as JSON.")
@click.option("--no-wait", is_flag=True, help="Return at once instead of following the log.")
@click.option("--verify", hidden=True)
@click.option("--headers", hidden=True)
@click.argument("entrypoint", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(
    address: str | None, submission_id: str | None, env_file: Any, runtime_env_json: str | None,
    working_dir: str | None, metadata_json: str | None, no_wait: bool, entrypoint: tuple[str, ...],
    verify: str | None, headers: str | None, **needs: Any,
) -> None:  # fmt: skip
    """Run ENTRYPOINT on the cluster: miniray job submit --working-dir . -- python script.py"""
    if env_file is not None and runtime_env_json is not None:
        raise click.UsageError("only one of --runtime-env and --runtime-env-json")
    env = _json(env_file.read() if env_file is not None else runtime_env_json, "the runtime_env")
    if working_dir is not None:
        env["working_dir"] = working_dir
    client = _client(address)
    found = _checked(
        client.submit_job, entrypoint=shlex.join(entrypoint), submission_id=submission_id,
        runtime_env=env, metadata=_json(metadata_json, "--metadata-json"), **needs,
    )  # fmt: skip
    click.echo(f"Job '{found}' submitted successfully")
    if no_wait:
        click.echo(f"Follow it: miniray job logs {found} --follow; end it: miniray job stop {found}")
        return
    _follow(client, found)


def _follow(client: JobSubmissionClient, submission_id: str) -> None:
    from miniray.job_submission.client import POLL_S

    pieces = client.follow(submission_id)
    while (text := _checked(next, pieces, None)) is not None:
        if text:
            click.echo(text, nl=False)
        else:
            time.sleep(POLL_S)
    details = _checked(client.get_job_info, submission_id)
    _tell(details)
    if details.status.value != "SUCCEEDED":
        sys.exit(1)


def _tell(details: Any) -> None:
    words = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "was stopped"}
    click.echo(f"Job '{details.submission_id}' {words.get(details.status.value, details.status.value)}")
    if details.status.value == "FAILED" and details.message:
        click.echo(f"Status message: {printable(details.message, '  ')}")


@job.command()
@ADDRESS
@click.argument("submission_id")
def status(address: str | None, submission_id: str) -> None:
    """How far a job is."""
    details = _checked(_client(address).get_job_info, submission_id)
    click.echo(f"Status for job '{submission_id}': {details.status}")
    if details.driver_exit_code is not None:
        click.echo(f"Exit code: {details.driver_exit_code}")
    if details.message:
        click.echo(f"Status message: {printable(details.message, '  ')}")


@job.command()
@ADDRESS
@click.option("--no-wait", is_flag=True, help="Return before the job has ended.")
@click.argument("submission_id")
def stop(address: str | None, no_wait: bool, submission_id: str) -> None:
    """End a job: SIGTERM to all that it started, SIGKILL after a grace time."""
    client = _client(address)
    if not _checked(client.stop_job, submission_id):
        click.echo(f"Job '{submission_id}' had ended already")
        return
    deadline = time.monotonic() + WAIT_S
    while not no_wait and time.monotonic() < deadline:
        details = _checked(client.get_job_info, submission_id)
        if details.status.is_terminal():
            _tell(details)
            return
        time.sleep(0.2)
    click.echo(f"Job '{submission_id}' was asked to stop")


@job.command()
@ADDRESS
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.argument("submission_id")
def logs(address: str | None, follow: bool, submission_id: str) -> None:
    """What a job has written."""
    client = _client(address)
    if follow:
        _follow(client, submission_id)
    else:
        click.echo(_checked(client.get_job_logs, submission_id), nl=False)


@job.command()
@ADDRESS
@click.argument("submission_id")
def delete(address: str | None, submission_id: str) -> None:
    """Forget an ended job and its log."""
    _checked(_client(address).delete_job, submission_id)
    click.echo(f"Job '{submission_id}' deleted")


@job.command(name="list")
@ADDRESS
@click.option("--json", "as_json", is_flag=True, help="JSON, one array.")
def listing(address: str | None, as_json: bool) -> None:
    """Submitted jobs, and drivers that people have started."""
    from dataclasses import asdict

    found = _checked(_client(address).list_jobs)
    if as_json:
        click.echo(json.dumps([asdict(details) for details in found], indent=1))
        return
    rows = [
        (
            details.submission_id or "", details.job_id or "", details.type.value, details.status.value,
            tables.ago((details.start_time or 0) / 1000), details.entrypoint,
        )
        for details in found
    ]  # fmt: skip
    header = ("submission", "job", "type", "status", "age", "entrypoint")
    click.echo(tables.table(header, rows) if rows else "no jobs")
