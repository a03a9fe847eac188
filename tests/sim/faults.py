"""What goes wrong, and when: a plan drawn from the seed, carried out by the clock.

Everything is over at the plan's `until`: cuts are mended, the head is up, the weather is fine. The
cluster keeps at least half of its nodes and, unless a plan says so, its drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from miniray.core.contract import HEAD

from .cluster import Cluster
from .network import Weather
from .node import SimNode

CALM = Weather()


@dataclass
class Plan:
    """How much of what; `until` in virtual seconds."""

    until: float = 20.0
    counts: dict[str, int] = field(default_factory=dict)
    """Faults by name (the methods of `Faults` without the underscore)."""


class Faults:
    """Carries one plan out."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.plan = plan
        self.story: list[str] = []
        self._weather = cluster.network.weather
        rng = self.world.rng
        for name, count in plan.counts.items():
            for _ in range(count):
                fault: Callable[[], None] = getattr(self, f"_{name}")
                self.world.at(rng.uniform(0.5, plan.until * 0.9), fault)
        self.world.at(plan.until, self._over)

    def _tell(self, text: str) -> None:
        self.story.append(f"{self.world.now:8.3f} {text}")
        self.world.note("FAULT", text)

    @property
    def _left(self) -> float:
        """Seconds in which faults may still last."""
        return max(0.05, self.plan.until - self.world.now - 0.1)

    def _over(self) -> None:
        self.cluster.network.weather = CALM
        if not self.cluster.head.is_up:
            self.cluster.head.start()
        self._tell("the last fault is over")

    # ---- processes

    def _worker_crash(self) -> None:
        alive = [worker for worker in self.cluster.workers if worker.alive]
        if alive:
            worker = self.world.rng.choice(alive)
            self._tell(f"kill -9 {worker.name}")
            worker.exit("was killed by SIGKILL")

    def _driver_crash(self) -> None:
        alive = [driver for driver in self.cluster.drivers if driver.alive]
        if len(alive) > 1:
            driver = self.world.rng.choice(alive)
            self._tell(f"kill -9 {driver.name}")
            driver.exit("was killed by SIGKILL")

    def _head_crash(self) -> None:
        head = self.cluster.head
        if not head.is_up:
            return
        how = self.world.rng.choice(["", "rows", "messages"])
        self._tell(f"kill -9 of the head {'while it writes ' + how if how else 'now'}")
        head.crash_in_turn = how
        if not how:
            head.crash()
        self.world.after(min(self._left, self.world.rng.uniform(0.2, 6.0)), self._head_start)

    def _head_start(self) -> None:
        head = self.cluster.head
        head.crash_in_turn = ""
        if not head.is_up:
            self._tell("the head starts again")
            head.start()

    # ---- nodes

    def _victims(self) -> list[SimNode]:
        """Nodes that may go: not too many, and none with a living driver."""
        homes = {driver.node.id for driver in self.cluster.drivers if driver.alive}
        living = self.cluster.living
        if len(living) <= (len(self.cluster.nodes) + 1) // 2:
            return []
        return [node for node in living if node.id not in homes]

    def _node_crash(self) -> None:
        victims = self._victims()
        if victims:
            node = self.world.rng.choice(victims)
            silent = self.world.rng.random() < 0.5
            self._tell(f"{node.name} loses its power" if silent else f"kill -9 of the raylet of {node.name}")
            node.crash(silent)

    def _node_join(self) -> None:
        node = self.cluster.add_node(self.world.rng.randrange(1, 5))
        self._tell(f"{node.name} joins")

    def _drain(self) -> None:
        victims = self._victims()
        if victims:
            node = self.world.rng.choice(victims)
            deadline_s = self.world.rng.uniform(0.5, 5.0)
            self._tell(f"{node.name} is drained within {deadline_s:.1f} s")
            self.cluster.drain_node(node, deadline_s)

    def _raylet_restart(self) -> None:
        """A raylet is killed and started again on its machine: under a new id, and with nothing."""
        victims = self._victims()
        if victims:
            node = self.world.rng.choice(victims)
            self._tell(f"the raylet of {node.name} is killed, and started again")
            node.crash(silent=False)
            self.world.after(min(self._left, self.world.rng.uniform(0.1, 3.0)), self._node_join)

    def _raylet_stop(self) -> None:
        """SIGSTOP, then SIGCONT: for the raylet time jumps. It may have been given up meanwhile."""
        running = [node for node in self.cluster.living if not node.is_stopped]
        victims = [node for node in self._victims() if node in running]
        long = bool(victims) and self.world.rng.random() < 0.4
        if not running:
            return
        node = self.world.rng.choice(victims if long else running)
        longest = (8.0, 14.0) if long else (0.1, 7.0)
        seconds = min(self._left, self.world.rng.uniform(*longest))
        self._tell(f"SIGSTOP of the raylet of {node.name} for {seconds:.1f} s")
        node.stop()
        self.world.after(seconds, node.go_on)

    def _clock_jump(self) -> None:
        """The head's wall clock is set, hours forwards or backwards; a restart meets other times, too."""
        hours = self.world.rng.uniform(-5.0, 5.0)
        self._tell(f"the clock of the head jumps by {hours:.1f} hours")
        self.cluster.head.clock_jumped(hours * 3600.0)

    def _fork_failure(self) -> None:
        """For a while no process can be made on a node."""
        node = self.world.rng.choice(self.cluster.living)
        seconds = min(self._left, self.world.rng.uniform(0.1, 2.0))
        node.forks_fail = True
        self._tell(f"no process starts on {node.name} for {seconds:.1f} s")
        self.world.after(seconds, self._forks_well, node)

    def _forks_well(self, node: SimNode) -> None:
        node.forks_fail = False

    # ---- disks

    def _slow_disk(self) -> None:
        """Spilling and restoring take seconds."""
        node = self.world.rng.choice(self.cluster.living)
        node.disk_s = self.world.rng.uniform(0.5, 3.0)
        self._tell(f"the disk of {node.name} takes {node.disk_s:.1f} s")
        self.world.after(self._left, self._disk_well, node)

    def _full_disk(self) -> None:
        """Nothing can be spilled for a while."""
        node = self.world.rng.choice(self.cluster.living)
        seconds = min(self._left, self.world.rng.uniform(0.5, 6.0))
        node.disk_is_full = True
        self._tell(f"the disk of {node.name} is full for {seconds:.1f} s")
        self.world.after(seconds, self._disk_well, node)

    def _disk_well(self, node: SimNode) -> None:
        node.disk_is_full = False
        node.disk_s = 0.005

    # ---- the network

    def _partition(self) -> None:
        """Some nodes are cut off: from the head, from the other nodes, or from both."""
        rng = self.world.rng
        living = self.cluster.living
        victims = self._victims() if rng.random() < 0.5 else living
        if not victims:
            return
        some = rng.sample(victims, rng.randrange(1, max(2, len(victims) // 4)))
        ids = {node.id for node in some}
        others = [node.id for node in living if node.id not in ids]
        kind = rng.choice(["head", "nodes", "both"])
        ends = ([HEAD] if kind != "nodes" else []) + (others if kind != "head" else [])
        homes = {driver.node.id for driver in self.cluster.drivers if driver.alive}
        longest = 8.0 if kind != "nodes" and ids & homes else 14.0
        seconds = min(self._left, rng.uniform(0.2, longest))
        names = " ".join(node.name for node in some)
        self._tell(f"{names} cut off from {kind} for {seconds:.1f} s")
        pairs = [(a, b) for a in ids for b in ends]
        pairs.sort()
        for a, b in pairs:
            self.cluster.network.cut(a, b)
        self.world.after(seconds, self._mend, pairs, names)

    def _mend(self, pairs: list[tuple[bytes, bytes]], names: str) -> None:
        self._tell(f"{names} connected again")
        for a, b in pairs:
            self.cluster.network.mend(a, b)

    def _storm(self) -> None:
        """For a while many packets are lost, late or repeated."""
        rng = self.world.rng
        self.cluster.network.weather = Weather(
            loss=rng.uniform(0.05, 0.3),
            duplicates=rng.uniform(0.0, 0.2),
            late=rng.uniform(0.0, 0.3),
            late_s=rng.uniform(0.1, 1.0),
        )
        seconds = min(self._left, rng.uniform(0.5, 4.0))
        self._tell(f"the network is bad for {seconds:.1f} s")
        self.world.after(seconds, self._clear)

    def _clear(self) -> None:
        if self.world.now < self.plan.until:
            self.cluster.network.weather = self._weather
