"""A cluster started, looked at and stopped from the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = """
import miniray as ray
ray.init()

@ray.remote
class Holder:
    def where(self): return ray.get_runtime_context().get_node_id()

@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id()

holder = Holder.options(name="holder", namespace="n", lifetime="detached", num_cpus=0).remote()
ray.get(holder.where.remote())
print(len(ray.nodes()), ray.cluster_resources()["CPU"], ray.get(where.remote()) in {
    node["NodeID"] for node in ray.nodes()})
"""


def start_head(miniray: Run, *options: str) -> str:
    said = miniray("start", "--head", "--port", "0", "--num-cpus", "1", *options).stdout
    found = re.search(r"--address='([^']+)'", said)
    assert found, said
    return found[1]


def test_a_cluster_of_two_nodes_runs_a_program_and_stops(miniray: Run, environment: dict[str, str]) -> None:
    address = start_head(miniray)
    assert "no cluster runs" not in miniray("status").stdout
    joined = miniray("start", "--address", "auto", "--num-cpus", "1", "--node-name", "two").stdout
    assert f"Joined the cluster at {address}" in joined

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment | {"MINIRAY_ADDRESS": address}, cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["2", "2.0", "True"], done.stderr

    nodes = json.loads(miniray("list", "nodes", "--json").stdout)
    assert [node["state"] for node in nodes] == ["alive", "alive"]
    assert "two" in {node["name"] for node in nodes}
    assert "holder" in miniray("list", "actors", "--address", address, "--state", "alive").stdout
    assert "finished" in miniray("list", "jobs", MINIRAY_ADDRESS=address).stdout
    assert "where" in miniray("list", "tasks").stdout
    status = miniray("status").stdout
    assert "2 nodes" in status and "of 2 CPU" in status

    started = time.monotonic()
    assert "Stopped 3 daemons" in miniray("stop").stdout
    assert time.monotonic() - started < 3.0
    assert "No session" in miniray("stop").stdout


def test_auto_needs_a_cluster_here(miniray: Run) -> None:
    assert "no cluster runs on this machine" in miniray("start", "--address", "auto", code=1).stderr


def test_joining_without_the_token_is_refused(miniray: Run) -> None:
    address = start_head(miniray)
    other = {"MINIRAY_TMPDIR": os.environ["MINIRAY_TMPDIR"] + "x"}
    Path(other["MINIRAY_TMPDIR"]).mkdir()
    try:
        refused = miniray("start", "--address", address, code=1, **other)
        assert "MINIRAY_AUTH_TOKEN" in refused.stderr
        wrong = miniray("status", "--address", address, code=1, MINIRAY_AUTH_TOKEN="wrong", **other)
        assert "token" in wrong.stderr
        wrong = miniray("start", "--address", address, code=1, MINIRAY_AUTH_TOKEN="wrong", **other)
        assert "token" in wrong.stderr
    finally:
        Path(other["MINIRAY_TMPDIR"]).rmdir()


def test_a_port_that_is_taken_is_named(miniray: Run) -> None:
    port = start_head(miniray).rpartition(":")[2]
    refused = miniray("start", "--head", "--port", port, code=1)
    assert port in refused.stderr


def test_looking_at_nothing_says_so(miniray: Run) -> None:
    assert "no session" in miniray("status", code=1).stderr


@pytest.mark.parametrize("kind", ["head", "node"])
def test_a_foreground_daemon_ends_on_sigterm(
    kind: str, miniray: Run, environment: dict[str, str], wait_until: Callable[..., None]
) -> None:
    directory = Path(environment["MINIRAY_TMPDIR"])
    if kind == "node":
        arguments = ["--address", start_head(miniray), "--num-cpus", "1"]
    else:
        arguments = ["--port", "0"]
    before = set(directory.glob(f"*/{kind}.json"))
    command = [sys.executable, "-m", "miniray", kind, *arguments]
    daemon = subprocess.Popen(command, env=environment, cwd=ROOT)
    wait_until(lambda: set(directory.glob(f"*/{kind}.json")) - before)
    (session,) = {path.parent for path in set(directory.glob(f"*/{kind}.json")) - before}
    started = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(5) == 0
    assert time.monotonic() - started < 2.0
    assert not session.exists()


def test_a_local_session_can_be_looked_at(miniray: Run, ray_start: object) -> None:
    assert "local session" in miniray("status").stdout
    assert "alive" in miniray("list", "nodes").stdout


def running_head(
    environment: dict[str, str], port: int, wait_until: Callable[..., None], **more: str
) -> subprocess.Popen[bytes]:
    """`miniray head` in the foreground, once it can be reached."""
    directory = Path(environment["MINIRAY_TMPDIR"])
    before = set(directory.glob("*/head.json"))
    daemon = subprocess.Popen(
        [sys.executable, "-m", "miniray", "head", "--port", str(port)], env=environment | more, cwd=ROOT)
    wait_until(lambda: set(directory.glob("*/head.json")) - before, timeout_s=30)
    return daemon


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_head_that_is_told_to_end_keeps_its_tables_and_a_stopped_one_does_not(
    miniray: Run, environment: dict[str, str], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    environment |= {"XDG_STATE_HOME": str(tmp_path), "MINIRAY_AUTH_TOKEN": "k" * 64}
    tables = tmp_path / "miniray"
    port = free_port()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        daemon = running_head(environment, port, wait_until)
        daemon.send_signal(number)
        daemon.wait(10)
        assert [path.name for path in tables.glob("*.sqlite")] == [f"head-{port}.sqlite"], number
    daemon = running_head(environment, port, wait_until)
    miniray("stop", XDG_STATE_HOME=str(tmp_path))
    daemon.wait(10)
    assert list(tables.iterdir()) == []


def test_a_head_tells_its_supervisor(
    environment: dict[str, str], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        daemon = running_head(environment, free_port(), wait_until, NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert sock.recv(1000).startswith(b"READY=1\nSTATUS=the head at 127.0.0.1:")
        daemon.send_signal(signal.SIGTERM)
        assert sock.recv(1000) == b"STOPPING=1\nSTATUS=the head ends"
        assert daemon.wait(10) == 0


BUSY = """
import os, sys, time
import miniray as ray
ray.init()

@ray.remote(resources={"two": 1}, max_retries=0)
def slow():
    open(sys.argv[1] + "/began", "w").close()
    while not os.path.exists(sys.argv[1] + "/end"):
        time.sleep(0.02)
    return "finished"

print(ray.get(slow.remote()))
"""


def test_a_drained_node_finishes_its_work_and_leaves(
    miniray: Run, environment: dict[str, str], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    address = start_head(miniray)
    miniray("start", "--address", "auto", "--node-name", "two", "--resources", "two=1")
    busy = subprocess.Popen(
        [sys.executable, "-c", BUSY.replace("sys.argv[1]", repr(str(tmp_path)))], cwd=ROOT,
        env=environment | {"MINIRAY_ADDRESS": address}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until((tmp_path / "began").exists, 60)
    assert "takes no new work" in miniray("drain", "two", "--deadline", "600", "--reason", "new disks").stdout

    def states() -> list[str]:
        return [node["state"] for node in json.loads(miniray("list", "nodes", "--json").stdout)]

    assert sorted(states()) == ["alive", "draining"]
    (tmp_path / "end").touch()
    assert busy.communicate(timeout=60)[0].strip() == "finished" and busy.returncode == 0
    wait_until(lambda: states() == ["alive", "dead"], 60)
    assert "no living node matches 'two'" in miniray("drain", "two", code=1).stderr
