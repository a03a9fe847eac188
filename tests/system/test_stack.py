"""`miniray stack` and `util.state.stacks`: what workers execute, also those that cannot answer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from miniray.util import state
from tests.system.support import eventually


def stacks_of(pid: int) -> state.Stack:
    """What the process with this pid is said to execute."""
    found = [one for one in state.stacks() if one.pid == pid]
    assert len(found) == 1, found
    return found[0]


def written(path: Path) -> int:
    """The pid that a task writes when it has begun."""
    return int(eventually(lambda: path.exists() and path.read_text(), "the task has begun"))


def test_tasks_threads_and_lines_are_shown(ray: Any, tmp_path: Path) -> None:
    @ray.remote
    def sleeper(path: str) -> None:
        thread = threading.Thread(target=time.sleep, args=(600,), name="a-thread-of-the-user", daemon=True)
        thread.start()
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)

    @ray.remote
    class Actor:
        def pid(self) -> int:
            return os.getpid()

        def wait_for(self, refs: list[Any]) -> Any:
            return ray.get(refs)

    ref = sleeper.remote(str(tmp_path / "pid"))
    pid = written(tmp_path / "pid")
    eventually(lambda: "a-thread-of-the-user" in stacks_of(pid).text, "its thread is shown")
    one = stacks_of(pid)
    assert one.title == "worker" and "sleeper" in one.running[0] and "test_stack.py" in one.running[0]
    assert "in sleeper" in one.text and not one.silent
    actor = Actor.remote()
    actor_pid = ray.get(actor.pid.remote())
    actor.wait_for.remote([ref])
    eventually(lambda: f"waits for object {ref.hex()}" in str(stacks_of(actor_pid)), "it is seen to wait")
    assert stacks_of(actor_pid).title == "actor Actor"
    assert stacks_of(os.getpid()).title == "driver"
    shown = subprocess.run([sys.executable, "-m", "miniray", "stack", one.worker_id[:16]],
                           capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert shown.returncode == 0 and f"pid {pid}" in shown.stdout and "in sleeper" in shown.stdout, shown
    assert f"pid {actor_pid}" not in shown.stdout
    ray.cancel(ref, force=True)


def test_native_code_that_holds_the_interpreter_is_shown_by_a_signal(ray: Any, tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def native(path: str) -> None:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        re.match(r"(a+)+$", "a" * 100 + "b")       # for ever, and with the interpreter lock

    ref = native.remote(str(tmp_path / "pid"))
    pid = written(tmp_path / "pid")
    eventually(lambda: "in native" in stacks_of(pid).text, "its stack comes by a signal")
    one = stacks_of(pid)
    assert "interpreter lock" in one.silent
    assert "does not answer" in str(state.explain(ref)), "and an explanation says so"
    ray.cancel(ref, force=True)


def test_a_stopped_process_is_said_to_be_stopped(ray: Any) -> None:
    @ray.remote
    class Actor:
        def pid(self) -> int:
            return os.getpid()

    actor = Actor.remote()
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        ref = actor.pid.remote()
        one = stacks_of(pid)
        assert "stopped by a signal (SIGSTOP)" in one.silent and f"kill -CONT {pid}" in one.silent
        assert "stopped by a signal" in str(state.explain(ref))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ray.get(ref) == pid, "and it was not harmed"
