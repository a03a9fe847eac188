"""One run: start everything, let faults and drivers go on, then demand right answers and rest.

One thread; a loop that does what is due: faults, repairs, and reading what drivers say.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniray.runtime import agent
from tests.netns.network import Host

from . import watch
from .cluster import Cluster, Node, die_with_parent
from .faults import Faults, plan
from .network_faults import NetworkFaults
from .spread import Spread

NODES = 3
CPUS = 2
DRIVERS = 3
CALM_WITHIN_S = 240.0
"""After the last fault drivers must have finished what they are at within this time."""
REST_WITHIN_S = 30.0
"""A cluster without drivers must be empty within this time."""
WHOLE_WITHIN_S = 60.0
"""The head and all nodes must agree on who is alive within this time."""
SEEN_WITHIN_S = 2.0
"""A driver may notice the end of its node before this process does."""
END_WITHIN_S = 10.0


@dataclass(eq=False)
class Driver:
    """A driver's process and what became of it."""

    process: subprocess.Popen[bytes]
    node: Node
    number: int
    was_killed: bool = False
    heard: bytes = b""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    last_error: str = ""

    @property
    def may_fail(self) -> bool:
        """It was killed, or the node it is connected to has ended."""
        return self.was_killed or not self.node.is_up or self.node.given_up


class Broken(Exception):
    """A promise that was not kept; the text says which."""


class Run:
    """See the module head. `say` gets one line per event."""

    def __init__(
        self, directory: str, seed: int, say: Callable[[str], None], hosts: Sequence[Host] = ()
    ) -> None:
        """`hosts`: where the head and each node are, if not all on this machine."""
        self.seed = seed
        self._say = say
        self._started = time.monotonic()
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._driver_count = 0
        self.problems: list[str] = []
        self.errors: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.cluster = Spread(directory, hosts, CPUS) if hosts else Cluster(directory, NODES, CPUS)
        self.drivers: list[Driver] = []
        self._starter = ThreadPoolExecutor(NODES)
        self._replaced: dict[Node, Future[Node]] = {}
        self._log = Path(f"{directory}.drivers.log").open("ab")

    # ---- used by faults

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        """Do something after a while."""
        self._later.append((self.now + seconds, what))

    @property
    def head_is_stopped(self) -> bool:
        """The head's process is stopped by a signal."""
        return watch.state_of(self.cluster.head_pid) in "tT"

    def head_again(self) -> None:
        """Start the head where it was."""
        if not self.cluster.head_is_up:
            self.tell("the head starts again")
            self.cluster.start_head()

    def tell(self, text: str) -> None:
        """One line about what happens."""
        self._say(f"{self.now:7.1f} {text}")

    # ---- the run

    def chaos(self, seconds: float) -> None:
        """Faults and work for a while, then the checks. Raises Broken."""
        faults = NetworkFaults(self, self.cluster) if isinstance(self.cluster, Spread) else Faults(self)
        pending = plan(self.seed, seconds, faults.kinds)
        for index in range(DRIVERS):
            self._start_driver(index)
        while self.now < seconds:
            while pending and pending[0].at <= self.now:
                fault = pending.pop(0)
                did = faults.do(fault)
                self.tell(did or f"{fault.kind}: nothing to do it to")
            self._turn()
            self._repair()
        self.tell("the last fault is over")
        self._calm()

    def _turn(self) -> None:
        due = [entry for entry in self._later if entry[0] <= self.now]
        self._later = [entry for entry in self._later if entry[0] > self.now]
        for _, what in due:
            what()
        outputs = {driver.process.stdout: driver for driver in self.drivers}
        for ready in select.select(list(outputs), [], [], 0.05)[0]:
            self._hear(outputs[ready])

    def _repair(self) -> None:
        """Replace what has ended: nodes, and drivers with their node."""
        for node in list(self.cluster.nodes):
            if not node.is_up and node not in self._replaced:
                self.tell(f"node {node.index} is replaced")
                self._replaced[node] = self._starter.submit(self.cluster.replace, node)
        for node, fresh in list(self._replaced.items()):
            if fresh.done() and fresh.exception() is not None:
                self.tell(f"node {node.index} does not start: {fresh.exception()}")
                del self._replaced[node]
        for driver in list(self.drivers):
            if driver.process.poll() is not None:
                self._ended(driver)
                self._start_driver(driver.number % DRIVERS)

    # ---- drivers

    def _start_driver(self, index: int, rounds: int = 0) -> None:
        living = [node for node in self.cluster.nodes if node.is_up and not node.given_up]
        if not living:
            self.later(0.5, lambda: self._start_driver(index, rounds))
            return
        node = living[index % len(living)]
        command = [*self.cluster.command_on(node), sys.executable, "-m", "tests.chaos.driver",
                   node.session_dir, f"{self.seed}-{self._driver_count}", "--rounds", str(rounds)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                                   preexec_fn=die_with_parent, bufsize=0)
        self._driver_count += 1
        self.drivers.append(Driver(process, node, index))

    def _hear(self, driver: Driver) -> bool:
        assert driver.process.stdout is not None
        data = os.read(driver.process.stdout.fileno(), 1 << 16)
        *lines, driver.heard = (driver.heard + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "job" in said:
                self._job_ended(driver, said)
        return bool(data)

    def _job_ended(self, driver: Driver, said: dict[str, Any]) -> None:
        driver.jobs.append(said)
        self.done[said["job"]] += 1
        if not said["error"]:
            return
        kind = said["error"].partition(":")[0]
        self.errors[f"{said['job']}: {kind}"] += 1
        if said["problem"]:
            text = f"{said['problem']} in {said['job']} after {said['seconds']} s: {said['error']}"
            self.later(SEEN_WITHIN_S, lambda: self._problem(driver, text))

    def _problem(self, driver: Driver, text: str) -> None:
        """Something went wrong in a driver, unless the driver itself was hit."""
        if not driver.may_fail:
            self.problems.append(text)
            self.tell(f"PROBLEM {text}")

    def _ended(self, driver: Driver) -> None:
        """A driver has ended by itself: there must be a reason."""
        while self._hear(driver):
            pass
        self.drivers.remove(driver)
        status = driver.process.wait()
        driver.process.stdout and driver.process.stdout.close()
        driver.process.stdin and driver.process.stdin.close()
        if status:
            text = f"driver {driver.process.pid} ended with status {status}, see drivers.log"
            self.later(SEEN_WITHIN_S, lambda: self._problem(driver, text))

    # ---- the end

    def _calm(self) -> None:
        """No faults any more: everybody finishes, a round of all jobs succeeds, nothing is left inside."""
        deadline = self.now + CALM_WITHIN_S
        while self._later:
            self._turn()
        self.head_again()
        self._whole_again()
        for driver in self.drivers:
            driver.process.stdin and driver.process.stdin.close()
        while (self.drivers or self._later) and self.now < deadline:
            self._turn_of_the_last()
        if self.drivers:
            raise Broken(f"{len(self.drivers)} drivers still run {CALM_WITHIN_S} s after the last fault")
        self.tell("a calm round of all jobs")
        before = sum(self.errors.values())
        self._start_driver(0, rounds=1)
        while self.drivers and self.now < deadline + CALM_WITHIN_S:
            self._turn_of_the_last()
        if self.drivers or sum(self.errors.values()) > before:
            raise Broken("without faults a round of all jobs does not succeed")
        self._at_rest()

    def _turn_of_the_last(self) -> None:
        self._turn()
        for driver in list(self.drivers):
            if driver.process.poll() is not None:
                self._ended(driver)

    def _whole_again(self) -> None:
        """The head knows exactly the nodes that live; those it had given up have ended."""
        deadline = self.now + WHOLE_WITHIN_S
        while sorted(self.cluster.living()) != sorted(node.node_id for node in self.cluster.nodes):
            self._turn()
            self._repair()
            if self.now > deadline:
                raise Broken(f"the head counts {len(self.cluster.living())} living nodes, there are {NODES}")

    def _at_rest(self) -> None:
        """Stores and disks are empty, every resource is back, no worker has anything to do."""
        from .rest import end_detached, unrest

        end_detached(self.cluster)
        found: list[str] = []

        def rests() -> bool:
            found[:] = unrest(self.cluster)
            return not found

        if not watch.wait_for(rests, REST_WITHIN_S):
            raise Broken(f"{REST_WITHIN_S} s after the last driver: {'; '.join(found)}")

    def close(self) -> None:
        """End everything."""
        self._starter.shutdown()
        for driver in self.drivers:
            agent.signal_process(driver.process.pid, signal.SIGKILL)
            driver.process.stdin = None  # it may be closed already
            driver.process.communicate()
        self.cluster.close()
        self._log.close()
