"""Which faults come, when, and how each is done to real processes.

A plan is drawn from the seed before anything starts. A fault picks its victim by a share of the
sorted candidates, so the same seed meets the same kind of process at the same time.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miniray.runtime import agent

from .wires import break_connections

if TYPE_CHECKING:
    from .cluster import Node
    from .run import Run

KINDS = {
    "kill_worker": 8.0, "stop_worker": 3.0, "kill_zygote": 0.5, "kill_raylet": 0.5, "stop_raylet": 1.5,
    "kill_head": 1.2, "stop_head": 0.8, "kill_driver": 0.7, "break_wires": 5.0, "cut_head": 0.6,
    "silence_head": 0.6, "fill_disk": 1.0,
}  # fmt: skip
"""How often each comes, relative to the others."""
EVERY_S = 0.8
SILENT_S = 8.0
"""A raylet that is stopped for longer may have been given up by the head."""
LONG = ("stop_raylet", "pull_cable")
LONG_STOP = 0.25
"""Share of stopped raylets that stay so until the cluster has given them up."""


@dataclass(frozen=True)
class Fault:
    """One entry of the plan; `at` in seconds from the start."""

    at: float
    kind: str
    draw: float
    """Picks the victim."""
    seconds: float
    """How long it lasts, where it does."""


def plan(seed: int, seconds: float, kinds: Mapping[str, float] = KINDS) -> list[Fault]:
    """The faults of a run, in order."""
    rng = random.Random(f"plan {seed}")
    faults, at = [], 2.0
    while at < seconds:
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        lasts = rng.uniform(0.1, 4.0)
        if kind in LONG and rng.random() < LONG_STOP:
            lasts = rng.uniform(11.0, 16.0)
        faults.append(Fault(round(at, 2), kind, rng.random(), round(lasts, 2)))
        at += rng.expovariate(1 / EVERY_S)
    return faults


class Faults:
    """Carries faults out; each method returns what it did in words, "" when there was nothing to do it to."""

    kinds: Mapping[str, float] = KINDS

    def __init__(self, run: Run) -> None:
        self._run = run
        self._cluster = run.cluster

    def do(self, fault: Fault) -> str:
        """Carry one out."""
        method: Callable[[Fault], str] = getattr(self, f"_{fault.kind}")
        return method(fault)

    # ---- processes

    def _kill(self, what: str, pid: int) -> str:
        return f"kill -9 {what} (pid {pid})" if pid and agent.signal_process(pid, signal.SIGKILL) else ""

    def _stop(self, what: str, pid: int, seconds: float) -> str:
        if not pid or not agent.signal_process(pid, signal.SIGSTOP):
            return ""
        self._run.later(seconds, lambda: agent.signal_process(pid, signal.SIGCONT))
        return f"SIGSTOP {what} (pid {pid}) for {seconds:.1f} s"

    def _worker(self, draw: float) -> int:
        workers = [pid for node in self._cluster.nodes for pid in node.workers]
        return workers[int(draw * len(workers))] if workers else 0

    def _kill_worker(self, fault: Fault) -> str:
        return self._kill("a worker", self._worker(fault.draw))

    def _stop_worker(self, fault: Fault) -> str:
        return self._stop("a worker", self._worker(fault.draw), fault.seconds)

    def _node(self, draw: float) -> Node | None:
        """One node at a time may go: two of three would take everything along."""
        nodes = self._cluster.nodes
        if any(not node.is_up or node.given_up for node in nodes):
            return None
        return nodes[int(draw * len(nodes))]

    def _kill_zygote(self, fault: Fault) -> str:
        node = self._node(fault.draw)
        return self._kill(f"the zygote of node {node.index}", node.zygote) if node else ""

    def _kill_raylet(self, fault: Fault) -> str:
        node = self._node(fault.draw)
        return self._kill(f"the raylet of node {node.index}", node.pid) if node else ""

    def _stop_raylet(self, fault: Fault) -> str:
        node = self._node(fault.draw)
        if node is None:
            return ""
        node.given_up = fault.seconds > SILENT_S
        return self._stop(f"the raylet of node {node.index}", node.pid, fault.seconds)

    def _kill_head(self, fault: Fault) -> str:
        if not self._cluster.head_is_up or self._run.head_is_stopped:
            return ""
        self._run.later(fault.seconds, self._run.head_again)
        return self._kill("the head", self._cluster.head_pid)

    def _stop_head(self, fault: Fault) -> str:
        if not self._cluster.head_is_up or self._run.head_is_stopped:
            return ""
        return self._stop("the head", self._cluster.head_pid, fault.seconds)

    def _kill_driver(self, fault: Fault) -> str:
        drivers = self._run.drivers
        driver = drivers[int(fault.draw * len(drivers))]
        driver.was_killed = True
        return self._kill("a driver", driver.process.pid)

    # ---- wires and disks

    def _break_wires(self, fault: Fault) -> str:
        node = self._cluster.nodes[int(fault.draw * len(self._cluster.nodes))]
        with self._cluster.beside(node.index):  # /proc shows the connections of one's own host
            broken = break_connections(node.pid, fault.seconds / 8.0, fault.draw)
        return f"{broken} connections of node {node.index} break" if broken else ""

    def _cut_head(self, fault: Fault) -> str:
        self._cluster.proxy.cut()
        self._run.later(fault.seconds, self._cluster.proxy.mend)
        return f"no connection to the head for {fault.seconds:.1f} s"

    def _silence_head(self, fault: Fault) -> str:
        self._cluster.proxy.silence()
        self._run.later(fault.seconds, self._cluster.proxy.mend)
        return f"nothing passes to or from the head for {fault.seconds:.1f} s"

    def _fill_disk(self, fault: Fault) -> str:
        disk = self._cluster.disks[int(fault.draw * len(self._cluster.disks))]
        if not disk.fill():
            return ""
        self._run.later(fault.seconds, disk.empty)
        return f"{disk.path.name} is full for {fault.seconds:.1f} s"
