"""A secret in env_vars is in no listing, log, error, explanation, HTTP answer or file of the session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import miniray as ray
from miniray.runtime import launch
from miniray.runtime.daemon import HeadOptions, NodeOptions
from miniray.util import state

TOKEN = "5ec4e7" * 10
SECRET = "hidden-9b1d2f-value"
SHOWN = ("status", "nodes", "actors", "tasks", "jobs", "placement_groups", "objects")


def printed(address: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "miniray", *command, "--address", address], capture_output=True, text=True,
        timeout=100, check=False, env={**os.environ, "MINIRAY_AUTH_TOKEN": TOKEN},
    )  # fmt: skip
    return done.stdout + done.stderr


def files_with_it(*roots: Path) -> list[str]:
    return [str(path) for root in roots for path in root.rglob("*")
            if path.is_file() and SECRET.encode() in path.read_bytes()]  # fmt: skip


@pytest.mark.timeout(300)
def test_a_secret_is_shown_nowhere(tmp_path: Path) -> None:
    log = tmp_path / "daemons.log"
    with log.open("wb") as output:
        head = launch.start_daemon("head", HeadOptions(
            port=0, token=TOKEN, http_port=0, driver_pid=os.getpid()), output=output.fileno())  # fmt: skip
        node = launch.start_daemon("node", NodeOptions(
            gcs_address=head["address"], token=TOKEN, num_cpus=1, driver_pid=os.getpid(),
            object_store_memory=80 << 20), output=output.fileno())  # fmt: skip
    seen: dict[str, str] = {}
    try:
        environment = {"env_vars": {"API_KEY": SECRET}}
        ray.init(head["address"], runtime_env=environment)

        @ray.remote(runtime_env=environment)
        class Holder:
            def knows(self) -> bool:
                return os.environ["API_KEY"] == SECRET

        @ray.remote(runtime_env=environment, max_retries=0)
        def dies() -> None:
            os._exit(3)

        @ray.remote(runtime_env=environment, resources={"none of this": 1})
        def waits() -> None: ...

        holder, waiting = Holder.remote(), waits.remote()
        assert ray.get(holder.knows.remote())
        with pytest.raises(ray.exceptions.WorkerCrashedError) as died:
            ray.get(dies.remote())
        seen["error"] = repr(died.value) + str(died.value)
        seen["why"] = "".join(str(state.explain(thing)) for thing in (holder, waiting))
        listings = (state.list_actors, state.list_tasks, state.list_jobs, state.list_workers)
        seen["state"] = repr([listing() for listing in listings])
        assert "API_KEY" in seen["state"]  # the names are shown, and so the rows are those of the secret
        for what in ("actors", "tasks", "nodes", "jobs"):
            seen[what] = printed(head["address"], "list", what, "--json")
        seen["screen"] = printed(head["address"], "status") + printed(head["address"], "why", waiting.hex())
        with httpx.Client(base_url=head["http"], headers={"authorization": f"Bearer {TOKEN}"}) as client:
            paths = ["/metrics", f"/api/v1/why/{waiting.hex()}", *(f"/api/v1/{kind}" for kind in SHOWN)]
            seen.update({path: _page(client, path) for path in paths})
        sessions = [Path(daemon["session_dir"]) for daemon in (head, node)]
        written = files_with_it(*sessions)
        ray.cancel(waiting)
    finally:
        ray.shutdown()
        for daemon in (node, head):
            os.kill(daemon["pid"], signal.SIGTERM)
    assert [name for name, text in seen.items() if SECRET in text] == []
    assert written == []
    assert SECRET not in log.read_text()


def _page(client: Any, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.text)
    return str(answer.text)
