"""`python -m tests.chaos.kill_matrix --each 200`: kill -9 of each kind of process at random moments.

For each trial a program starts (`victim`), one process of it is killed up to some seconds later,
while it starts or while it works; processes, names in /dev/shm and the temporary directory must
then be the same as before the trial. Where the program must survive (a worker, the head), it must
first finish another round. Exit status 1 when anything was left, or did not go on.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from miniray.runtime import agent, launch
from miniray.runtime.daemon import HeadOptions, NodeOptions

from . import watch
from .cluster import die_with_parent

WITHIN_S = 20.0
"""For everything to be gone; on a quiet machine it takes a tenth of a second."""
GO_ON_WITHIN_S = 120.0
START_S = 2.5
"""Kills come up to so many seconds after the start."""


class Trial:
    """One program and its processes."""

    def __init__(self, directory: str, rng: random.Random) -> None:
        self.directory = directory
        self.rng = rng
        self.process: subprocess.Popen[bytes]

    def start(self, *arguments: str) -> None:
        """Start the program."""
        command = [sys.executable, "-m", "tests.chaos.victim", *arguments]
        with Path(f"{self.directory}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=log, preexec_fn=die_with_parent, bufsize=0)

    def candidates(self, kind: str) -> list[int]:
        """The processes of a kind that live now, by what is said in /proc."""
        if kind == "driver":
            return [self.process.pid]
        daemons = [pid for pid, text in watch.marked().items()
                   if "boot.py" in text and not _is_zygote(pid) and not _is_zygote(watch.parent_of(pid))]
        if kind == "raylet":
            return daemons
        zygotes = [pid for daemon in daemons for pid in agent.children_of(daemon) if _is_zygote(pid)]
        if kind == "zygote":
            return zygotes
        return [pid for zygote in zygotes for pid in agent.children_of(zygote)]

    def kill(self, kind: str) -> bool:
        """Kill one, at a random moment. False when there was none."""
        time.sleep(self.rng.uniform(0.0, START_S))
        found: list[int] = []

        def there() -> bool:
            found[:] = self.candidates(kind)
            return bool(found)

        if not watch.wait_for(there, GO_ON_WITHIN_S):
            return False
        return agent.signal_process(self.rng.choice(found), signal.SIGKILL)

    def goes_on(self) -> bool:
        """It finishes two more rounds: the first may have been over already."""
        assert self.process.stdout is not None
        return all(_line(self.process.stdout.fileno()) for _ in range(2))

    def end(self) -> None:
        """As at the end of a program; it may have ended already."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def _is_zygote(pid: int) -> bool:
    return watch.name_of(pid) == "miniray-zygote"


def _line(fd: int) -> bool:
    import select

    deadline = time.monotonic() + GO_ON_WITHIN_S
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(fd, 1)
        if data in (b"\n", b""):
            return bool(data)
    return False


@contextmanager
def cluster(directory: str) -> Iterator[tuple[str, list[int], Callable[[], None]]]:
    """A head and a node: (the node's session, [the head's pid], start the head again)."""
    token = secrets.token_hex(32)
    storage = f"sqlite:{directory}/head.sqlite"
    pids: list[int] = []
    port = 0

    def start_head() -> None:
        nonlocal port
        options = HeadOptions(port=port, token=token, storage=storage, driver_pid=os.getpid())
        ready = launch.start_daemon("head", options, output=log.fileno())
        port = int(ready["address"].rpartition(":")[2])
        pids[:] = [ready["pid"]]

    with Path(f"{directory}.log").open("ab") as log:
        start_head()
        node = launch.start_daemon("node", NodeOptions(
            gcs_address=f"127.0.0.1:{port}", token=token, num_cpus=2, num_gpus=0, driver_pid=os.getpid(),
            object_store_memory=80 << 20), output=log.fileno())
        yield node["session_dir"], pids, start_head
        for pid in (node["pid"], *pids):
            agent.signal_process(pid, signal.SIGTERM)
            agent.signal_process(pid, signal.SIGTERM)
            watch.wait_for(lambda pid=pid: not watch.alive(pid), WITHIN_S)  # type: ignore[misc]
    for path in Path(directory).glob("head.sqlite*"):
        path.unlink()


def try_head(trial: Trial) -> str:
    """Kill the head and start it again while the program runs."""
    with cluster(trial.directory) as (session_dir, head, start_head):
        trial.start(session_dir)
        time.sleep(trial.rng.uniform(0.0, START_S))
        agent.signal_process(head[0], signal.SIGKILL)
        time.sleep(trial.rng.uniform(0.0, 1.0))
        start_head()
        problem = "" if trial.goes_on() else "the program does not go on"
        trial.end()
    return problem


def try_session(trial: Trial, kind: str) -> str:
    """Kill one process of a session of the program's own."""
    trial.start()
    problem = "" if trial.kill(kind) else f"there was no {kind}"
    if kind == "worker" and not problem and not trial.goes_on():
        problem = "the program does not go on"
    trial.end()
    return problem


KINDS = ("worker", "zygote", "raylet", "head", "driver")


def run(kind: str, seed: str, directory: str) -> str:
    """One trial; returns what was wrong, "" when nothing was."""
    trial = Trial(directory, random.Random(seed))
    try:
        with watch.nothing_left(directory, WITHIN_S):
            return try_head(trial) if kind == "head" else try_session(trial, kind)
    except watch.Leftovers as left:
        return str(left)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kill_matrix", description=__doc__)
    parser.add_argument("--each", type=int, default=20, help="trials of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    base = tempfile.mkdtemp(prefix="mrk-", dir="/tmp")
    directory = f"{base}/run"
    os.mkdir(directory)
    watch.mark_processes()
    os.environ.update(MINIRAY_TMPDIR=directory, XDG_STATE_HOME=f"{directory}.state")
    print(f"kill matrix with seed {seed}, logs in {directory}.log", flush=True)
    failed = 0
    for kind in options.kinds:
        problems = []
        for number in range(options.each):
            problem = run(kind, f"{seed} {kind} {number}", directory)
            if problem:
                problems.append(problem)
                print(f"{kind} {number}: {problem}", flush=True)
        print(f"{kind}: {options.each} kills, {len(problems)} problems", flush=True)
        failed += len(problems)
    if not failed:
        shutil.rmtree(base)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
