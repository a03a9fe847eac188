"""A local session as real processes: it starts, it serves, and whatever is killed, nothing stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, worker_pb2
from miniray.runtime import agent, launch
from miniray.runtime.daemon import NodeOptions
from miniray.runtime.launch import LocalSession
from miniray.runtime.raylet_client import RayletClient
from tests.system.support import zygote_of

STORE_BYTES = 100 << 20


def start(**options: Any) -> LocalSession:
    return launch.start_local(NodeOptions(num_cpus=2, object_store_memory=STORE_BYTES, **options))


@pytest.fixture
def session() -> Iterator[LocalSession]:
    made = start()
    yield made
    made.end()


class Driver:
    """A driver in words: what it says and hears on the raylet's socket."""

    def __init__(self, session: LocalSession, token: str | None = None) -> None:
        self.client = RayletClient(session.socket)
        token = session.token if token is None else token
        register = worker_pb2.Register(token=token, is_driver=True, job=gcs_pb2.JobStart(entrypoint="test"))
        try:
            self.info, self.store_fd = self.client.register(register)
        except ConnectionError:
            self.client.close()
            raise

    def lease(self, request_id: int = 1, **amounts: int) -> Any:
        """Ask for one lease and wait until it is granted or refused."""
        cls = common.SchedulingClass(
            resources=common.ResourceMap(amounts=amounts or {"CPU": 10_000}), job_id=self.info.job_id,
            function_name="f")
        self.client.send(worker_pb2.ToRaylet(lease_request=worker_pb2.LeaseRequest(
            request_id=request_id, scheduling_class=cls)))
        while True:
            reply = self.hear("lease_reply")
            if reply.worker.worker_id or reply.HasField("failure"):
                return reply

    def hear(self, body: str) -> Any:
        """The next message of one kind."""
        while True:
            message = self.client.receive()
            assert message is not None, f"the connection ended before a {body} came"
            if message.WhichOneof("body") == body:
                return getattr(message, body)

    def close(self) -> None:
        self.client.close()
        if self.store_fd >= 0:
            os.close(self.store_fd)


def until(condition: Callable[[], bool], what: str, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_session_serves_leases_and_ends_in_order() -> None:
    session = start()
    driver = Driver(session)
    assert driver.info.job_id == b"\1\0\0\0" and driver.store_fd >= 0
    assert driver.info.node.total.amounts["CPU"] == 20_000
    grant = driver.lease()
    assert alive(grant.worker_pid)
    members = [session.pid, *agent.descendants_of(session.pid)]
    began = time.monotonic()
    session.end(within_s=30.0)
    assert time.monotonic() - began < 30.0, "it ended by itself"
    driver.close()
    assert not [pid for pid in members if alive(pid)] and not os.path.exists(session.session_dir)


def test_the_session_directory_is_private_and_says_how_to_connect(session: LocalSession) -> None:
    directory = Path(session.session_dir)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.joinpath("token").stat().st_mode & 0o777 == 0o600
    assert directory.joinpath("token").read_text() == session.token
    from miniray.runtime import sessions

    found = sessions.find("auto")
    assert found is not None and found.pid == session.pid and found.socket == session.socket


@pytest.mark.parametrize("token", ["", "wrong", "ä"])
def test_a_wrong_token_gets_nothing(session: LocalSession, token: str) -> None:
    stranger = Driver(session, token)
    assert stranger.info.failure.kind == common.UNAUTHENTICATED and stranger.store_fd < 0
    assert not stranger.info.job_id and not stranger.info.node.node_id
    assert stranger.client.receive() is None, "the connection is closed"
    stranger.close()
    driver = Driver(session)
    assert driver.info.job_id, "others are served as before"
    driver.close()


def test_garbage_closes_that_connection_and_nothing_else(session: LocalSession) -> None:
    import socket

    for garbage in (b"\xff\xff\xff\xff", b"\5\0\0\0hello", os.urandom(4096)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(session.socket)
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    driver = Driver(session)
    assert driver.lease().worker_pid
    driver.close()


def test_a_killed_worker_is_reported_with_its_signal_and_stderr(session: LocalSession) -> None:
    driver = Driver(session)
    grant = driver.lease()
    os.kill(grant.worker_pid, signal.SIGKILL)
    gone = driver.hear("worker_gone")
    assert gone.address == grant.worker and gone.failure.exit_detail == "signal SIGKILL"
    assert gone.failure.pid == grant.worker_pid and not gone.intended
    driver.close()


def test_what_a_dead_worker_left_running_is_ended_too() -> None:
    """Grandchildren in sessions of their own: forked twice, or executed with the worker's token."""
    code = textwrap.dedent(f"""
        import os, signal, subprocess, time
        import miniray as ray
        ray.init(num_cpus=1, object_store_memory={STORE_BYTES})

        @ray.remote
        class Parent:
            def spawn(self):
                subprocess.run(["setsid", "-f", "sleep", "996"], check=True)
                child = subprocess.Popen(["sleep", "996"])
                return os.getpid()

        parent = Parent.remote()
        pid = ray.get(parent.spawn.remote())
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while subprocess.run(["pgrep", "-f", "^sleep 996"], capture_output=True).returncode == 0:
            assert time.monotonic() < deadline, "the grandchildren live on"
            time.sleep(0.02)
    """)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


KILLS = {
    "driver": lambda driver, daemon, zygote: driver,
    "daemon": lambda driver, daemon, zygote: daemon,
    "zygote": lambda driver, daemon, zygote: zygote,
}


@pytest.mark.parametrize("victim", KILLS)
def test_whatever_is_killed_nothing_stays(victim: str) -> None:
    """kill -9 of the driver, the daemon or the zygote: every process and the directory go."""
    code = textwrap.dedent(f"""
        import os, subprocess, sys, time
        import miniray as ray
        ray.init(num_cpus=2, object_store_memory={STORE_BYTES})

        @ray.remote
        def spawn():
            grandchild = subprocess.Popen(["setsid", "-f", "sleep", "997"])
            grandchild.wait()
            return os.getpid()

        worker = ray.get(spawn.remote())
        from miniray import session
        print(session._daemon.pid, worker, session._daemon.session_dir, flush=True)
        time.sleep(1000)
    """)
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        daemon, worker, directory = driver.stdout.readline().split()
        below = agent.descendants_of(int(daemon))
        zygote = zygote_of(int(daemon))
        assert int(worker) in below
        until(lambda: any("sleep 997" in _command(pid) for pid in below), "the user's grandchild runs")
        os.kill(KILLS[victim](driver.pid, int(daemon), zygote), signal.SIGKILL)
        until(lambda: not [pid for pid in (int(daemon), *below) if alive(pid)], "all processes end")
        until(lambda: not os.path.exists(directory), "the session directory goes")
    finally:
        driver.kill()
        driver.communicate()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_a_daemon_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="object_store_memory must be at least"):
        launch.start_local(NodeOptions(object_store_memory=1))


def test_a_launch_without_options_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRAY_TMPDIR", str(tmp_path))
    with launch.Launch("local") as started:
        started.start()
    until(lambda: not _processes_with(f"MINIRAY_TMPDIR={tmp_path}"), "the interpreter ends")
    assert not list(tmp_path.iterdir())


def test_a_daemon_that_is_killed_before_it_has_a_zygote_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody below it could remove that, so whoever started it does."""
    monkeypatch.setenv("MINIRAY_TMPDIR", str(tmp_path))
    with launch.Launch("local") as started:
        options = NodeOptions(object_store_memory=STORE_BYTES)
        started.send(options)
        until(lambda: os.path.isdir(options.session_dir), "it has a directory")
        for pid in _processes_with(f"MINIRAY_TMPDIR={tmp_path}"):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="it ended before it was ready"):
            started.ready()
    until(lambda: not list(tmp_path.iterdir()), "the directory goes")


def test_ctrl_c_at_the_terminal_does_not_reach_a_daemon_on_its_way() -> None:
    """It goes to the process group in the foreground; the daemon's interpreter would print a traceback."""
    with launch.Launch("local") as started:
        started.start()
        assert os.getpgid(started._launcher) == started._launcher != os.getpgrp()
        pid = started._launcher
    assert not os.path.exists(f"/proc/{pid}"), "unasked, it ends at once"


def test_a_daemon_whose_starter_has_gone_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the pid of its driver lives: it is somebody else's by now."""
    monkeypatch.setenv("MINIRAY_TMPDIR", str(tmp_path))
    with launch.Launch("local") as started:
        started.send(NodeOptions(object_store_memory=STORE_BYTES, driver_pid=os.getpid()))
    until(lambda: not _processes_with(f"MINIRAY_TMPDIR={tmp_path}"), "it ends", within_s=60)
    assert not list(tmp_path.iterdir())


def _processes_with(variable: str) -> list[int]:
    """Processes that were started with this environment variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_daemon_inherits_no_descriptor_of_its_driver() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    session = start()
    held = set()
    for path in Path(f"/proc/{session.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed while we looked
            held.add(os.readlink(path))
    session.end()
    assert os.readlink(f"/proc/self/fd/{write}") not in held
    os.close(read)
    os.close(write)


def test_the_end_does_not_wait_for_a_zygote_that_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, done = tmp_path / "begun", tmp_path / "done"
    code = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(300)\n"
    (tmp_path / "slow_to_import.py").write_text(code + f"pathlib.Path({str(done)!r}).touch()\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    session = start(preload=["slow_to_import"])
    until(begun.exists, "the import begins")
    members = [session.pid, *agent.descendants_of(session.pid)]
    session.end(within_s=60)
    assert not done.exists() and not os.path.exists(session.session_dir)
    assert not [pid for pid in members if alive(pid)]


def test_the_daemon_is_no_child_of_its_driver_and_has_a_session_of_its_own(session: LocalSession) -> None:
    assert session.pid not in agent.children_of(os.getpid())
    assert os.getsid(session.pid) == session.pid
    with pytest.raises(ChildProcessError):
        os.waitpid(session.pid, os.WNOHANG)


def test_a_local_session_listens_on_no_port_and_loads_no_grpc(session: LocalSession) -> None:
    maps = Path(f"/proc/{session.pid}/maps").read_text()
    assert "cygrpc" not in maps and "numpy" not in maps
    inodes = {os.readlink(path) for path in Path(f"/proc/{session.pid}/fd").iterdir()}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in inodes, f"a {table} socket"


def test_forked_workers_draw_different_random_numbers(session: LocalSession) -> None:
    code = textwrap.dedent(f"""
        import random, sys
        import numpy as np
        import miniray as ray
        from miniray.runtime.driver import connect_driver
        ray.init({session.session_dir!r})

        @ray.remote
        def draw():
            import os, time
            time.sleep(0.2)
            return os.getpid(), random.random(), float(np.random.rand())

        drawn = dict((pid, (a, b)) for pid, a, b in ray.get([draw.remote() for _ in range(4)]))
        assert len(drawn) > 1
        for column in zip(*drawn.values()):
            assert len(set(column)) == len(drawn), drawn
    """)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_daemon_that_would_unpickle_ends() -> None:
    code = textwrap.dedent("""
        import pickle
        from miniray.runtime.daemon import forbid_unpickling
        data = pickle.dumps(print)
        forbid_unpickling()
        pickle.loads(pickle.dumps([1, "plain data names nothing"]))
        pickle.loads(data)
    """)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == -signal.SIGABRT and "unpickle" in run.stderr


def test_spilled_objects_leave_a_chosen_directory_as_it_was(tmp_path: Path) -> None:
    tmp_path.joinpath("mine").write_text("keep")
    code = textwrap.dedent(f"""
        import numpy as np, os, signal, sys
        import miniray as ray
        ray.init(num_cpus=1, object_store_memory={STORE_BYTES}, object_spilling_directory={str(tmp_path)!r})
        refs = [ray.put(np.ones(30 << 20, np.uint8)) for _ in range(5)]
        assert len(os.listdir({str(tmp_path)!r})) == 2, "spilled to a directory of its own"
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    run = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL, run.stderr
    until(lambda: os.listdir(tmp_path) == ["mine"], "only the user's file is left")


def test_a_head_collects_garbage() -> None:
    """Its interpreter starts without: each connection that failed would stay for ever."""
    code = """
import gc
gc.disable()
from miniray.runtime import daemon, head_daemon
head_daemon.serve_head = lambda options, directory: print(gc.isenabled(), flush=True) or 0
daemon.run_head(daemon.HeadOptions(port=0))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
