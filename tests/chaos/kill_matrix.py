"""`python -m tests.chaos.kill_matrix --each 200`: kill -9 of each kind of process at random moments.

For each trial a program starts (`victim`), one process of it is killed up to some seconds later,
while it starts or while it works (`two`, `three`: of different kinds at the same moment); processes,
names in /dev/shm and the temporary directory must then be the same as before the trial. Where the
program must survive (a worker, the user's processes, the head, several times in a row), it must
first finish another round. Trials run side by side, each in a directory of its own. Ends with a
table; exit status 1 when anything was left, or did not go on.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import secrets
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from miniray.runtime import agent, guardian, launch
from miniray.runtime.daemon import HeadOptions, NodeOptions

from . import watch
from .cluster import die_with_parent

WITHIN_S = 60.0
"""For everything to be gone; on a quiet machine it takes a tenth of a second."""
PROMISED_S = 2.0
"""What is later than this is shown in the table: a busy machine is allowed to need more."""
GO_ON_WITHIN_S = 120.0
START_S = 2.5
"""Kills come up to so many seconds after the start."""
LAUNCHED_WITHIN_S = 1.0
"""A launcher has either forked the raylet by then, or was killed before."""
HEAD_KILLS = 4
"""Kills of the head in a row, in one cluster."""

_EACH = ("worker", "grandchild", "zygote", "guardian", "raylet", "driver")
KINDS = (*_EACH, "head", "two", "three")
TOGETHER = {"two": tuple(itertools.combinations(_EACH, 2)), "three": tuple(itertools.combinations(_EACH, 3))}
SURVIVED = ("worker", "grandchild", "guardian")
"""After the death of such a process the program goes on."""


@dataclass(frozen=True)
class Outcome:
    """What became of one trial."""

    kind: str
    number: int
    kills: int
    problem: str
    gone_s: float
    """So long after its end there was nothing left of it."""


class Trial:
    """One program and its processes."""

    def __init__(self, directory: str, rng: random.Random) -> None:
        self.directory = directory
        self.rng = rng
        self.process: subprocess.Popen[bytes]
        self.below: dict[int, str] = {}
        """The processes of the session when one was killed, and when each had started."""

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
        booted = [pid for pid, text in watch.marked().items() if "boot.py" in text]
        daemons = [pid for pid in booted if watch.parent_of(pid) not in booted]
        if kind == "raylet":
            return daemons
        below = [pid for daemon in daemons for pid in agent.descendants_of(daemon)]
        if kind == "guardian":
            return [pid for pid in below if guardian.TITLE in watch.command_of(pid)]
        zygotes = [pid for pid in below if _is_zygote(pid) and not _is_zygote(watch.parent_of(pid))]
        if kind == "zygote":
            return zygotes
        if kind == "grandchild":
            return [pid for zygote in zygotes for pid in agent.descendants_of(zygote)
                    if watch.name_of(pid) == "sleep"]
        return [pid for zygote in zygotes for pid in agent.children_of(zygote)]

    def kill(self, *kinds: str) -> str:
        """Kill one of each kind at the same random moment; returns what there was nothing of, or ""."""
        time.sleep(self.rng.uniform(0.0, START_S))
        victims: list[int] = []
        for kind in kinds:
            found: list[int] = []

            def there(kind: str = kind, found: list[int] = found) -> bool:
                found[:] = self.candidates(kind)
                return bool(found)

            if not watch.wait_for(there, GO_ON_WITHIN_S):
                return f"there was no {kind}"
            victims.append(self.rng.choice(found))
        daemons = self.candidates("raylet")
        below = [pid for daemon in daemons for pid in agent.descendants_of(daemon)]
        self.below = {pid: start for pid in below if (start := watch.started_at(pid))}
        raylets = [pid for pid, kind in zip(victims, kinds, strict=True) if kind == "raylet"]
        are_launched = all(pid in daemons and watch.parent_of(pid) != self.process.pid for pid in raylets)
        for pid in victims:
            agent.signal_process(pid, signal.SIGKILL)
        if not are_launched:    # that was a launcher, which may have forked the raylet already
            time.sleep(LAUNCHED_WITHIN_S)
            for pid in self.candidates("raylet"):
                agent.signal_process(pid, signal.SIGKILL)
        return ""

    def goes_on(self) -> bool:
        """It finishes two more rounds: the first may have been over already."""
        assert self.process.stdout is not None
        return all(_line(self.process.stdout.fileno()) for _ in range(2))

    def ends(self) -> bool:
        """It learns that its session is gone, and ends by itself."""
        try:
            self.process.wait(GO_ON_WITHIN_S)
        except subprocess.TimeoutExpired:
            return False
        return True

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
    """A fork of it is called so, too, until it is a worker."""
    return watch.name_of(pid) == "miniray-zygote"


def _line(fd: int) -> bool:
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


def try_head(trial: Trial, kills: int) -> str:
    """Kill the head and start it again while the program runs, several times."""
    problem = ""
    with cluster(trial.directory) as (session_dir, head, start_head):
        trial.start(session_dir)
        for number in range(kills):
            time.sleep(trial.rng.uniform(0.0, START_S))
            agent.signal_process(head[0], signal.SIGKILL)
            time.sleep(trial.rng.uniform(0.0, 1.0))
            start_head()
            if not trial.goes_on():
                problem = f"the program does not go on after kill {number + 1} of the head"
                break
        trial.end()
    return problem


def try_session(trial: Trial, kind: str) -> str:
    """Kill one process of a session of the program's own, or several."""
    trial.start()
    kinds = trial.rng.choice(TOGETHER[kind]) if kind in TOGETHER else (kind,)
    problem = trial.kill(*kinds)
    if not problem and set(kinds) <= set(SURVIVED) and not trial.goes_on():
        problem = f"the program does not go on after the death of {' and '.join(kinds)}"
    elif not problem and not set(kinds) <= set(SURVIVED) and not trial.ends():
        problem = f"the program does not learn of the death of {' and '.join(kinds)}"
    trial.end()
    return problem


def run(kind: str, number: int, kills: int, seed: int) -> Outcome:
    """One trial, in this process's directory."""
    directory = os.environ["MINIRAY_TMPDIR"]
    trial = Trial(directory, random.Random(f"{seed} {kind} {number}"))
    try:
        with watch.nothing_left(directory, WITHIN_S) as gone:
            problem = try_head(trial, kills) if kind == "head" else try_session(trial, kind)
            gone.also = trial.below
    except watch.Leftovers as left:
        return Outcome(kind, number, kills, str(left), WITHIN_S)
    return Outcome(kind, number, kills, problem, gone.seconds)


def settle_in(base: str) -> None:
    """A process that runs trials: a directory and a mark of its own."""
    directory = f"{base}/{os.getpid()}"
    os.mkdir(directory)
    watch.mark_processes()
    os.environ.update(MINIRAY_TMPDIR=directory, TMPDIR=directory, XDG_STATE_HOME=f"{directory}.state")


def trials(kinds: list[str], each: int, rng: random.Random) -> list[tuple[str, int, int]]:
    """(kind, number, kills) of every trial, mixed: `each` kills of each kind."""
    found = []
    for kind in kinds:
        at_once = HEAD_KILLS if kind == "head" else 1
        found += [(kind, at, min(at_once, each - at)) for at in range(0, each, at_once)]
    rng.shuffle(found)
    return found


def table(outcomes: list[Outcome], kinds: list[str]) -> str:
    """One row per kind."""
    rows = [f"{'kind':12}{'kills':>8}{'problems':>10}{'gone after: median':>20}{'most':>9}{'late':>6}"]
    for kind in kinds:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        seconds = [outcome.gone_s for outcome in mine]
        late = sum(value > PROMISED_S for value in seconds)
        rows.append(f"{kind:12}{sum(outcome.kills for outcome in mine):8}"
                    f"{sum(bool(outcome.problem) for outcome in mine):10}"
                    f"{statistics.median(seconds):18.2f} s{max(seconds):7.2f} s{late:6}")
    return "\n".join(rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kill_matrix", description=__doc__)
    parser.add_argument("--each", type=int, default=20, help="kills of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=3 * (os.cpu_count() or 1), help="trials side by side")
    options = parser.parse_args()
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    base = tempfile.mkdtemp(prefix="mrk-", dir="/tmp")
    print(f"kill matrix with seed {seed}, logs in {base}", flush=True)
    began = time.monotonic()
    outcomes = []
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("fork"),
                             initializer=settle_in, initargs=(base,)) as pool:
        drawn = trials(options.kinds, options.each, random.Random(seed))
        for done in as_completed([pool.submit(run, *trial, seed) for trial in drawn]):
            outcome = done.result()
            outcomes.append(outcome)
            if outcome.problem:
                print(f"{outcome.kind} {outcome.number}: {outcome.problem}", flush=True)
    print(table(outcomes, options.kinds))
    failed = sum(bool(outcome.problem) for outcome in outcomes)
    print(f"seed {seed}: {failed} problems in {time.monotonic() - began:.0f} s")
    if not failed:
        shutil.rmtree(base)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
