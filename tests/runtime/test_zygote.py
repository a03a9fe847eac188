"""The zygote by itself: forks, executes, reaps, reports, and takes its tree along when it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray.runtime import agent, zygote
from miniray.runtime.workers import describe_exit, interpreter_of


class Handle:
    """The raylet's side, in words."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.joinpath("logs").mkdir(parents=True)
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = f"socket.socket(fileno={theirs.fileno()}), [{str(directory)!r}], [], os.getppid(), lock"
        code = ("import os, socket; from miniray.runtime import session_lock, zygote\n"
                f"lock = session_lock.hold({str(directory)!r}); zygote.run({arguments})")
        self.process = subprocess.Popen(  # no fork: this process may hold threads by now
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], start_new_session=True)
        self.pid = self.process.pid
        theirs.close()
        self.sock.settimeout(30)
        assert self.hear("ready")["problems"] == []

    def hear(self, op: str) -> dict[str, Any]:
        """The next message, which must be of this kind."""
        packet = self.sock.recv(zygote.PACKET_LIMIT)
        assert packet, f"the zygote ended before it said {op}"
        message: dict[str, Any] = json.loads(packet)
        assert message["op"] == op, message
        return message

    def spawn(self, code: str, token: str = "00ff", **variables: str) -> int:
        """A worker that runs `code` in a fresh interpreter."""
        spec = {
            "startup_token": token, "env_vars": variables, "nice": 0, "job_id": "", "node_id": "",
            "stdout_path": str(self.directory / "logs/out"), "stderr_path": str(self.directory / "logs/err"),
        }  # fmt: skip
        argv = [sys.executable, "-c", code]
        self.sock.send(json.dumps({"op": "spawn", "spec": spec, "argv": argv}).encode())
        return int(self.hear("spawned")["pid"])

    def output(self) -> str:
        return self.directory.joinpath("logs/out").read_text()

    def close(self) -> None:
        self.sock.close()
        self.process.wait()


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[Handle]:
    made = Handle(tmp_path / "session")
    yield made
    if made.sock.fileno() >= 0:
        made.close()


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not os.path.exists(f"/proc/{pid}"):
            return True
        time.sleep(0.005)
    return False


def test_exits_are_reported_with_status_or_signal(handle: Handle) -> None:
    pid = handle.spawn("import sys; sys.exit(3)")
    message = handle.hear("exit")
    assert message["pid"] == pid and describe_exit("it", pid, message["status"], "") == (
        f"it (pid {pid}) ended with exit status 3", "exit status 3")
    pid = handle.spawn("import time; time.sleep(1000)")
    handle.sock.send(json.dumps({"op": "kill", "pid": pid, "signal": signal.SIGTERM}).encode())
    assert agent.exit_detail(handle.hear("exit")["status"]) == "signal SIGTERM"


def test_a_worker_has_its_environment_output_and_session(handle: Handle) -> None:
    pid = handle.spawn("import os; print(os.environ['FRUIT'], os.getsid(0) == os.getpid())", FRUIT="fig")
    assert handle.hear("exit")["pid"] == pid
    assert handle.output() == "fig True\n"


def test_a_pid_that_is_no_worker_of_ours_is_never_signalled(handle: Handle) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    handle.sock.send(json.dumps({"op": "kill", "pid": bystander.pid, "signal": signal.SIGKILL}).encode())
    handle.spawn("pass")
    handle.hear("exit")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


ORPHANS = """
import os, subprocess, sys, time
child = os.fork()
if child == 0:
    if {new_session}: os.setsid()
    os.execvp("sleep", ["sleep", "995"])
print(child, flush=True)
"""


@pytest.mark.parametrize("new_session", [False, True])
def test_children_of_a_dead_worker_are_ended(handle: Handle, new_session: bool) -> None:
    handle.spawn(ORPHANS.format(new_session=new_session))
    handle.hear("exit")
    assert gone(int(handle.output()))


def test_the_end_of_the_raylet_ends_everything(handle: Handle) -> None:
    double_fork = "import os, time\nif os.fork() == 0:\n os.setsid()\n os.fork()\ntime.sleep(1000)"
    handle.spawn(double_fork)
    deadline = time.monotonic() + 5
    while len(below := agent.descendants_of(handle.pid)) < 3:
        assert time.monotonic() < deadline
    handle.close()
    assert all(gone(pid) for pid in below) and not handle.directory.exists()


def test_a_worker_dies_with_the_zygote(handle: Handle) -> None:
    pid = handle.spawn("import time; time.sleep(1000)")
    handle.process.kill()
    handle.process.wait()
    assert gone(pid)
    handle.sock.close()


def test_a_fresh_interpreter_is_used_where_the_environment_is_read_at_import() -> None:
    assert interpreter_of({}, {"OMP_NUM_THREADS": "1"}) == [sys.executable]
    assert interpreter_of({}, {"PYTHONPATH": "/x"}) == [sys.executable]
    assert interpreter_of({}, {"MY_SETTING": "1"}) == []
    assert interpreter_of({"py_executable": "/opt/py -X dev"}, {}) == ["/opt/py", "-X", "dev"]


def test_forks_are_reseeded() -> None:
    import random

    random.seed(1)
    expected = random.random()
    random.seed(1)
    zygote.reseed()
    assert random.random() != expected
