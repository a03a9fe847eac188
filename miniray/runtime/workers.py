"""Worker processes as the raylet sees them: started through the zygote, reported when they end.

Runs on the raylet's event loop; nothing here blocks. What a runtime_env asks of a process is
decided here: variables that are read at import time, or another interpreter, get a fresh process
(`argv` set), everything else a fork.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miniray.core import environments
from miniray.core.environments import Result
from miniray.runtime import agent, boot
from miniray.runtime.access import Access
from miniray.runtime.zygote import PACKET_LIMIT

READ_AT_IMPORT = (
    "PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "GOMP_", "KMP_", "NUMEXPR_", "BLIS_", "VECLIB_", "MALLOC_",
    "GLIBC_", "NPY_", "TORCH_", "XLA_", "TF_", "JAX_",
)  # fmt: skip
"""Prefixes of variables that libraries read once, when they are loaded."""


@dataclass(slots=True)
class WorkerEvents:
    """What the raylet is told."""

    on_exit: Callable[[bytes, int, int, str], None]
    """(startup token, pid, wait status, problem): a worker process has ended or was never made."""
    on_lost: Callable[[], None]
    """The zygote itself has ended: no worker of this node survives that."""
    on_ready: Callable[[list[str]], None]
    """The zygote has its imports; `problems` names those that failed."""
    on_started: Callable[[bytes, int], None]
    """(startup token, pid): a process runs."""


@dataclass(slots=True)
class WorkerSpec:
    """What is equal for all workers of a node."""

    session_dir: str
    socket_path: str
    access: Access
    node_id: bytes
    nice: int


class WorkerProcesses:
    """See the module head. `sock` is the raylet's end of the zygote's seqpacket socket."""

    def __init__(self, sock: socket.socket, spec: WorkerSpec, events: WorkerEvents) -> None:
        self._sock = sock
        self._spec = spec
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._pids: dict[bytes, int] = {}
        """startup token -> pid of what lives."""
        self._stop_early: dict[bytes, int] = {}
        """startup token -> signal for a process whose pid is not known yet."""
        self._setups: dict[bytes, Callable[[str], None]] = {}
        """token -> whom to tell, for processes that make environments."""
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def pid_of(self, startup_token: bytes) -> int:
        """The process of a token, 0 when it has ended or was not made yet."""
        return self._pids.get(startup_token, 0)

    def log_path(self, startup_token: bytes, kind: str) -> str:
        """Where a worker's output goes; `kind` is "out" or "err"."""
        return os.path.join(self._spec.session_dir, "logs", f"worker-{startup_token.hex()[:12]}.{kind}")

    def start(self, startup_token: bytes, job_id: bytes, runtime_env: str,
              made: Result | None = None) -> None:
        """Ask for one process, in an environment that was `made` for it where it needs one.

        Every start is answered by exactly one `on_exit` in the end.
        """
        env = environments.parse(runtime_env)
        variables = {str(name): str(value) for name, value in (env.get("env_vars") or {}).items()}
        made = made or Result()
        spec = {
            "session_dir": self._spec.session_dir, "socket_path": self._spec.socket_path,
            "token": self._spec.access.token, "startup_token": startup_token.hex(),
            "node_id": self._spec.node_id.hex(), "job_id": job_id.hex(), "env_vars": variables,
            "runtime_env": runtime_env, "nice": self._spec.nice, "cwd": made.cwd, "python_path": made.path,
            "stdout_path": self.log_path(startup_token, "out"),
            "stderr_path": self.log_path(startup_token, "err"),
        }  # fmt: skip
        message = {"op": "spawn", "spec": spec, "argv": interpreter_of(env, variables, made.python)}
        packet = json.dumps(message).encode()
        if len(packet) > PACKET_LIMIT:
            problem = f"runtime_env of {len(packet)} bytes is larger than {PACKET_LIMIT}"
            self._loop.call_soon(self._events.on_exit, startup_token, 0, 256, problem)
            return
        self._send(packet)

    def set_up(self, token: bytes, request: dict[str, Any], log: str, done: Callable[[str], None]) -> None:
        """Run `environment_setup.main(request)` in a process of its own, which prints to `log`.

        `done` gets how it ended, "" for exit status 0 or 1 (then its result file says more).
        `stop(token)` ends it.
        """
        self._setups[token] = done
        spec = {"startup_token": token.hex(), "nice": self._spec.nice, "setup": request,
                "stdout_path": log, "stderr_path": log}
        self._send(json.dumps({"op": "spawn", "spec": spec}).encode())

    def fence(self, silent_s: float) -> None:
        """A head gives this node up when it is silent for so long: its workers must not outlive that."""
        self._send(json.dumps({"op": "fence", "silent_s": silent_s}).encode())

    def stop(self, startup_token: bytes, force: bool) -> None:
        """SIGTERM, or SIGKILL for the whole tree when `force`."""
        sig = signal.SIGKILL if force else signal.SIGTERM
        pid = self._pids.get(startup_token)
        if pid is None:
            self._stop_early[startup_token] = sig
        else:
            self._kill(pid, sig)

    def _kill(self, pid: int, sig: int) -> None:
        self._send(json.dumps({"op": "kill", "pid": pid, "signal": int(sig)}).encode())

    def close(self) -> None:
        """The zygote reads EOF, kills every worker and removes the session directory."""
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    # ---- socket ----

    def _send(self, packet: bytes) -> None:
        self._queue.append(packet)
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._queue:
            try:
                self._sock.send(self._queue[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self._queue.clear()  # the reader sees the end
                break
            self._queue.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(64):
            try:
                packet = self._sock.recv(PACKET_LIMIT)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.remove_reader(self._sock.fileno())
                self._events.on_lost()
                return
            self._handle(json.loads(packet))

    def _handle(self, message: dict[str, Any]) -> None:
        if message["op"] == "ready":
            self._events.on_ready(message["problems"])
            return
        startup_token = bytes.fromhex(message["token"])
        if message["op"] == "spawned":
            self._pids[startup_token] = message["pid"]
            if startup_token not in self._setups:
                self._events.on_started(startup_token, message["pid"])
            early = self._stop_early.pop(startup_token, None)
            if early is not None:
                self._kill(message["pid"], early)
        elif message["op"] == "exit":
            self._pids.pop(startup_token, None)
            self._stop_early.pop(startup_token, None)
            done = self._setups.pop(startup_token, None)
            problem = message.get("problem", "")
            if done is None:
                self._events.on_exit(startup_token, message["pid"], message["status"], problem)
            else:
                status = message["status"]
                ended = os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 1) and not problem
                done("" if ended else problem or agent.exit_detail(status))


def interpreter_of(env: dict[str, Any], variables: dict[str, str], python: str = "") -> list[str]:
    """The interpreter a runtime_env needs as a fresh process; [] when a fork will do.

    `python` is that of its virtual environment, if it has one.
    """
    if env.get("py_executable"):
        return shlex.split(env["py_executable"])
    if python:
        return [python]
    if any(name.startswith(READ_AT_IMPORT) for name in variables):
        return boot.interpreter()
    return []


KILLED = agent.exit_detail(signal.SIGKILL)
CUT_OFF = "closed its connection to its node while it lived, and was killed"
"""Of a worker whose process goes on as something else, or has closed what it did not open."""


def describe_exit(worker: str, pid: int, status: int, problem: str) -> tuple[str, str]:
    """(message, exit detail) for people about a process that ended."""
    if not pid:
        return f"{worker} could not be started: {problem}", problem
    detail = agent.exit_detail(status)
    return f"{worker} (pid {pid}) ended with {detail}", detail
