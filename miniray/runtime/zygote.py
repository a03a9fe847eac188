"""The zygote: one single-threaded process per node that has the imports and forks workers.

::

    raylet ══ seqpacket socket ══ zygote ──fork──▶ worker   (own session, dies with the zygote)
                                     ├──fork+exec─▶ worker   (environment read at import, other python)
                                     └──fork─▶ the making of a runtime_env (`environment_setup`)

It is forked by the daemon before anything else, so it holds no thread, no gRPC and no event loop;
between the two stands the `guardian`.
Messages are JSON, one per packet: `spawn`, `kill` and `fence` in; `ready`, `exit` out. As a subreaper it
reaps and reports every worker, and ends whatever a dead one left behind, however it was forked:
workers are subreapers too, so all of it is below the worker while that lives, and comes to the
zygote when it dies. When the raylet is gone the socket reads EOF: the
zygote kills everything below itself, removes the session directory and ends.

Limits: a packet holds 128 KiB, so runtime_env variables of a worker must be smaller than that.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from miniray.runtime import agent, boot, guardian
from miniray.runtime.fence import Fence

PACKET_LIMIT = 128 * 1024
COMMON = ("cloudpickle", "miniray.runtime.worker_process")
"""What every worker needs: imported once here, shared by all."""
EARLY_FORKS = 2
"""So many workers are forked before numpy is imported, which takes longer than all the rest of a
session's start: the first result does not wait for it. They import it themselves if they use it."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LATER = (
    "numpy", "asyncio", "shutil", "miniray.remote_function", "miniray.actor", "miniray.runtime_context",
    "miniray.runtime.concurrency",
)  # fmt: skip
"""What tasks of most workers would import: imported here when nobody has asked for a worker lately."""
LULL_MS = 100
FIRST_FORK_WITHIN_MS = 1000
WORKER_NICE = 5
"""Workers yield to the daemons, so that heartbeats survive a burst of new actors."""


def run(sock: socket.socket, directories: list[str], preload: list[str], raylet: int, lock: int) -> NoReturn:
    """The zygote's life, in a fresh fork of the raylet (a pid); never returns.

    `directories` (the session's, and where it spills to, perhaps a URL) go at the end. `lock` says that
    this process lives, which is not to be said of workers and what they fork.
    """
    code = 1
    try:
        agent.become_subreaper()
        agent.name_process("miniray-zygote")
        zygote = Zygote(sock, preload, raylet, lock)
        zygote.serve()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        guardian.end_everything(directories)
        os._exit(code)


class Zygote:
    """Serves spawn requests of one raylet until its socket closes."""

    def __init__(self, sock: socket.socket, preload: list[str], raylet: int, lock: int) -> None:
        self._sock = sock
        self._preload = preload
        self._tokens: dict[int, str] = {}
        self._forks = 0
        self._raylet = raylet
        self._lock = lock
        self._fence = Fence()
        self._slept_at = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> None:
        """Import, report `ready`, then fork on request. Returns at the raylet's end."""
        for sig in ENDING:
            signal.signal(sig, signal.SIG_IGN)  # the raylet decides when the tree ends
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        problems = self._import()
        gc.enable()
        gc.freeze()  # shared pages stay shared: the collector never writes to what is there now
        self._send({"op": "ready", "problems": problems})
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        later = list(reversed(LATER))
        while True:
            self._slept_at = time.monotonic()
            ready = dict(poll.poll(self._patience_ms(bool(later))))
            self._look_at_raylet()
            if not ready and later:
                import_shared(later.pop())
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                self._report_exits()
            if self._sock.fileno() in ready and not self._receive():
                return

    def _patience_ms(self, is_idle: bool) -> int | None:
        """How long to wait for work. `is_idle`: there are imports to be made meanwhile."""
        if is_idle:
            return LULL_MS if self._forks else FIRST_FORK_WITHIN_MS
        pause_s = self._fence.pause_s
        return None if pause_s is None else int(pause_s * 1000)

    def _look_at_raylet(self) -> None:
        """End the workers of a raylet that stands still: see `fence`."""
        if not self._fence.silent_s:
            return
        now = time.monotonic()
        overslept = self._fence.slept(now - self._slept_at)
        if self._fence.looked(now, agent.is_stopped(self._raylet)) or overslept:
            if self._tokens:
                sys.stderr.write("the raylet stands still, and its node is given up: its workers end\n")
            for pid in list(self._tokens):
                agent.kill_tree(pid)

    def _import(self) -> list[str]:
        """Import what every worker needs, and the preload list. Returns what went wrong."""
        boot.complete_package()
        problems = []
        for name in (*COMMON, *self._preload):
            try:
                __import__(name)
            except Exception as error:
                problems.append(f"{name}: {type(error).__name__}: {error}")
        return problems

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._sock.send(json.dumps(message).encode())
        except OSError:
            pass  # EOF follows on the read side

    def _receive(self) -> bool:
        """Handle one packet; False at the end of the raylet."""
        try:
            packet = self._sock.recv(PACKET_LIMIT)
        except ConnectionError:
            return False
        if not packet:
            return False
        message = json.loads(packet)
        if message["op"] == "spawn":
            self._spawn(message)
        elif message["op"] == "kill":
            self._kill(message["pid"], message["signal"])
        elif message["op"] == "fence":
            self._fence.watch(time.monotonic(), message["silent_s"])
        elif message["op"] == "end":
            return False
        return True

    def _kill(self, pid: int, sig: int) -> None:
        """Signal a worker; only children that are not reaped yet, so a pid is never a stranger's."""
        if pid in self._tokens:
            if sig == signal.SIGKILL:
                agent.kill_tree(pid)
            else:
                agent.signal_process(pid, sig)

    def _spawn(self, message: dict[str, Any]) -> None:
        if self._forks == EARLY_FORKS:
            import_shared("numpy")
        self._forks += 1
        spec = message["spec"]
        token = spec["startup_token"]
        parent = os.getpid()
        # A signal for the child may come before it has stopped ignoring it: it waits meanwhile.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            self._send({"op": "exit", "pid": 0, "token": token, "status": 256,
                        "problem": f"fork failed: {error.strerror}"})
            return
        if pid == 0:
            self._become_worker(message, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        self._tokens[pid] = token
        self._send({"op": "spawned", "pid": pid, "token": token})

    def _become_worker(self, message: dict[str, Any], parent: int) -> NoReturn:
        """In the child: shed the zygote, then run the worker."""
        spec = message["spec"]
        try:
            signal.set_wakeup_fd(-1)
            for sig in (*ENDING, signal.SIGCHLD):
                signal.signal(sig, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            self._sock.close()
            os.close(self._lock)
            os.close(self._wake_read)
            os.close(self._wake_write)
            agent.die_with_parent(parent)
            agent.become_subreaper()
            os.setsid()
            redirect_output(spec["stdout_path"], spec["stderr_path"])
            os.nice(spec.get("nice", WORKER_NICE))
            agent.be_ended_first()
            if "setup" in spec:
                from miniray.runtime import environment_setup

                os._exit(environment_setup.main(spec["setup"]))
            set_variables(spec["env_vars"])
            if message.get("argv"):
                execute(message["argv"], spec)
            enter_environment(spec)
            reseed()
            run_worker(spec)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _report_exits(self) -> None:
        for pid, status in agent.reap_all():
            token = self._tokens.pop(pid, None)
            if token is not None:
                self._send({"op": "exit", "pid": pid, "token": token, "status": status})
        self._end_orphans()

    def _end_orphans(self) -> None:
        """Kill what dead workers left behind.

        A living worker keeps its own orphans (it is a subreaper), so a child that is no worker can
        only come from a dead one. What this reading of the tree misses becomes a child when its
        parent dies, and that death leads here again.
        """
        for child in agent.children_of(os.getpid()):
            if child not in self._tokens:
                agent.kill_tree(child)


def import_shared(name: str) -> None:
    """Import a module for all workers to come. One that fails will tell those who need it."""
    with contextlib.suppress(Exception):
        __import__(name)
    gc.freeze()


def redirect_output(stdout_path: str, stderr_path: str) -> None:
    """Point descriptors 1 and 2 at the worker's log files, 0 at /dev/null."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for path, target in ((stdout_path, 1), (stderr_path, 2)):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, target)
        os.close(opened)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def set_variables(variables: dict[str, str]) -> None:
    """Add environment variables; a value may build on what is there: `${PATH}:/opt/bin`."""
    os.environ.update({name: os.path.expandvars(value) for name, value in variables.items()})


def enter_environment(spec: dict[str, Any]) -> None:
    """The worker's directory and where it imports from, for itself and for what it starts."""
    if spec.get("cwd"):
        os.chdir(spec["cwd"])
    paths = spec.get("python_path") or []
    if paths:
        sys.path[:0] = paths
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, before] if before else paths)


def reseed() -> None:
    """Forked workers must not draw the same random numbers."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)


def run_worker(spec: dict[str, Any]) -> NoReturn:
    """Decode the spec and hand over to the worker's main."""
    from miniray.runtime import worker_process

    decoded = dict(spec)
    for name in ("startup_token", "node_id", "job_id"):
        decoded[name] = bytes.fromhex(spec[name])
    worker_process.run_worker(decoded)
    os._exit(0)


def execute(argv: list[str], spec: dict[str, Any]) -> NoReturn:
    """Replace this process by a fresh interpreter that reads its spec from a descriptor.

    `argv` is the interpreter with its arguments, say ["/usr/bin/python3"].
    """
    if spec.get("cwd") and "py_executable" in spec["runtime_env"]:
        os.chdir(spec["cwd"])  # the command may name a file of the working_dir
    fd = os.memfd_create("spec")
    os.write(fd, json.dumps(spec).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    os.set_inheritable(fd, True)
    os.execvpe(argv[0], [*argv, "-m", "miniray.runtime.zygote", str(fd), boot.ROOM_FOR_TITLES], os.environ)


def main() -> NoReturn:
    """Entry point of an executed worker: `python -m miniray.runtime.zygote FD`."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        spec = json.loads(file.read())
    enter_environment(spec)
    run_worker(spec)


if __name__ == "__main__":
    main()
