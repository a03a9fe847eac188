"""One seed from start to end: build the cluster, let faults and scripts run, demand rest."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from . import checkers
from .cluster import Cluster
from .faults import Faults, Plan
from .network import Weather
from .workload import Script
from .world import Violation

LOOK_EVERY_S = 0.5
FINISH_S = 120.0
"""After the last fault every script must finish within this time."""
REST_S = 15.0
"""After the last script the cluster must be at rest within this time."""
STORY_LINES = 80


@dataclass(frozen=True)
class Scenario:
    """What one seed stands for."""

    nodes: int = 20
    cpus: int = 4
    drivers: int = 2
    seconds: float = 8.0
    """How long scripts start new things."""
    store_bytes: int = 1 << 30
    lineage_bytes: int = 1 << 30
    weather: Weather = Weather()
    plan: Plan = field(default_factory=Plan)
    script: type[Script] = Script
    clocks_apart_s: float = 0.0
    """Above 0 each machine has a clock of its own, and it drifts."""


def scenario_of(seed: int, changes: Mapping[str, float] | None = None) -> Scenario:
    """Drawn from the seed, by a generator of its own, with `changes` to single figures (see `changed`)."""
    rng = Random(f"scenario {seed}")
    until = rng.uniform(6.0, 16.0)
    counts = {
        "worker_crash": rng.choice([0, 2, 5, 10]), "node_crash": rng.choice([0, 0, 1, 3]),
        "head_crash": rng.choice([0, 0, 1, 2]), "partition": rng.choice([0, 0, 1, 2]),
        "storm": rng.choice([0, 1, 2]), "driver_crash": rng.choice([0, 0, 0, 1]),
        "node_join": rng.choice([0, 0, 1]), "drain": rng.choice([0, 0, 0, 1]),
    }  # fmt: skip
    weather = Weather(
        loss=rng.choice([0.0, 0.01, 0.05]),
        duplicates=rng.choice([0.0, 0.02]),
        late=rng.choice([0.0, 0.05]),
        late_s=0.3,
    )
    scenario = Scenario(
        nodes=rng.choice([3, 5, 8, 20]),
        cpus=rng.choice([1, 2, 4]),
        drivers=rng.choice([1, 2, 3]),
        seconds=until * rng.uniform(0.5, 1.0),
        store_bytes=rng.choice([1 << 30, 1 << 30, 3 << 20]),
        weather=weather,
        plan=Plan(until, counts),
        lineage_bytes=rng.choice([1 << 30, 1 << 30, 10_000]),
    )
    counts |= {
        "raylet_restart": rng.choice([0, 0, 0, 1]), "raylet_stop": rng.choice([0, 0, 1, 2]),
        "clock_jump": rng.choice([0, 0, 1]), "slow_disk": rng.choice([0, 0, 1]),
        "full_disk": rng.choice([0, 0, 1]),
    }  # fmt: skip
    return changed(scenario, changes or {})


def figures_of(scenario: Scenario) -> dict[str, float]:
    """Every figure of a scenario under one name: its fields, its weather's, and the faults' counts."""
    weather, plan = scenario.weather, scenario.plan
    return {
        "nodes": scenario.nodes, "cpus": scenario.cpus, "drivers": scenario.drivers,
        "seconds": scenario.seconds, "store_bytes": scenario.store_bytes,
        "lineage_bytes": scenario.lineage_bytes, "clocks_apart_s": scenario.clocks_apart_s,
        "loss": weather.loss, "duplicates": weather.duplicates, "late": weather.late,
        "until": plan.until, **plan.counts,
    }  # fmt: skip


def changed(scenario: Scenario, changes: Mapping[str, float]) -> Scenario:
    """The same scenario with other figures; ValueError names one that does not exist."""
    figures = figures_of(scenario)
    unknown = [name for name in changes if name not in figures]
    if unknown:
        raise ValueError(f"no such figure: {', '.join(unknown)}; there are {', '.join(figures)}")
    now = {**figures, **changes}
    weather = replace(
        scenario.weather, loss=now["loss"], duplicates=now["duplicates"], late=now["late"]
    )
    counts = {name: int(now[name]) for name in scenario.plan.counts}
    return replace(
        scenario, nodes=int(now["nodes"]), cpus=int(now["cpus"]), drivers=int(now["drivers"]),
        seconds=now["seconds"], store_bytes=int(now["store_bytes"]),
        lineage_bytes=int(now["lineage_bytes"]), clocks_apart_s=now["clocks_apart_s"],
        weather=weather, plan=Plan(now["until"], counts),
    )  # fmt: skip


class Failure(Exception):
    """A seed that breaks a promise; the text is the whole story."""


class Simulation:
    """One seed."""

    def __init__(self, seed: int, scenario: Scenario | None = None, check_every: int = 8) -> None:
        self.seed = seed
        self.scenario = scenario = scenario or scenario_of(seed)
        self.cluster = cluster = Cluster(
            seed, scenario.weather, store_bytes=scenario.store_bytes,
            lineage_bytes=scenario.lineage_bytes, check_every=check_every,
            clocks_apart_s=scenario.clocks_apart_s,
        )  # fmt: skip
        self.world = cluster.world
        cluster.head.start()
        for _ in range(scenario.nodes):
            cluster.add_node(scenario.cpus)
        budget = (scenario.nodes * scenario.cpus // 2 - 1) // scenario.drivers  # half of the nodes may go
        self.scripts = [
            scenario.script(
                cluster.add_driver(self.world.rng.choice(cluster.living)), scenario.seconds, budget
            )
            for _ in range(scenario.drivers)
        ]
        self.faults = Faults(cluster, scenario.plan)
        self.wall_s = 0.0
        self._look()

    def _look(self) -> None:
        checkers.look(self.cluster)
        self.world.after(LOOK_EVERY_S, self._look)

    def run(self) -> str:
        """To the end; returns the trace's hash, raises `Failure`."""
        started = time.perf_counter()
        try:
            self._run()
        except Exception as error:  # a machine that raises has broken a promise too
            raise Failure(self.story(error)) from error
        finally:
            self.wall_s = time.perf_counter() - started
        return self.world.trace_hash()

    def _run(self) -> None:
        world, plan = self.world, self.scenario.plan
        world.run(lambda: False, plan.until)
        if not world.run(lambda: all(script.is_over for script in self.scripts), plan.until + FINISH_S):
            raise Violation("; ".join(self._stuck()))
        self._rest("the scripts have finished")
        for actor in checkers.kept_by_actors(self.cluster):
            if actor in self.cluster.oracle.handles:
                world.note(world.name(actor), "is left to the end of its driver")
        for script in self.scripts:
            if script.driver.alive:
                script.driver.leave("the script is over")
        self._rest("the drivers have left")
        self._end_services()

    def _rest(self, when: str) -> None:
        left: list[str] = []

        def is_at_rest() -> bool:
            return not left

        deadline = self.world.now + REST_S
        while True:
            self.world.run(lambda: False, self.world.now + 0.5)
            left = checkers.at_rest(self.cluster)
            if not left:
                break
            if self.world.now >= deadline:
                shown = "\n    ".join(left[:20])
                raise Violation(f"{REST_S:g} s after {when} there is left:\n    {shown}")
        checkers.look(self.cluster)
        checkers.groups_are_whole(self.cluster)

    def _end_services(self) -> None:
        """What was detached still lives when all drivers have left; then it is ended, and nothing is left."""
        oracle, deadline = self.cluster.oracle, self.world.now + REST_S
        while missing := checkers.detached_live(self.cluster):
            if self.world.now >= deadline:
                raise Violation("; ".join(missing))
            self.world.run(lambda: False, self.world.now + 0.5)
        if oracle.detached:
            self.cluster.end_actors(list(oracle.detached))
            oracle.detached.clear()
            self._rest("the services have ended")

    def _stuck(self) -> list[str]:
        stuck = []
        for script in self.scripts:
            if not script.is_over:
                driver = script.driver
                waits = [ref for ref in script.pool if not ref.entry.ready]
                why = [f"{self.world.name(ref.id)}: {driver.owner.why(ref.entry)}" for ref in waits[:5]]
                stuck.append(
                    f"{driver.name} {script.what} {FINISH_S:g} s after the last fault, waits for {why}"
                )
        return stuck

    # ---- the story

    def setting(self) -> str:
        """What this seed stands for, and the faults so far."""
        scenario = self.scenario
        return "\n".join([
            f"  {scenario.nodes} nodes of {scenario.cpus} CPUs, {scenario.drivers} drivers, "
            f"at {self.world.now:.3f} s, {self.world.events} events",
            "  faults:", *(f"    {line}" for line in self.faults.story),
        ])  # fmt: skip

    def summary(self) -> str:
        """How much was done, on one line."""
        oracle = self.cluster.oracle
        return (
            f"{len(oracle.tasks)} tasks, {oracle.read} values, errors {oracle.errors}, "
            f"{self.world.now:.0f} s of the cluster in {self.wall_s:.1f} s"
        )

    def story(self, error: Exception) -> str:
        """What broke, what went wrong before, and the last lines that have to do with it."""
        kind = "" if isinstance(error, Violation) else f"{type(error).__name__} in {_where(error)}: "
        text = kind + _named(str(error), self)
        things = re.findall(r"\b(?:[tan]\d+|pg\d+)(?:\.\w+)*(?:#\w+)?|\bd\d+\.puts#\w+", text)
        things = [t for t in things if t[0] != "n"] or [t for t in things if "." in t] or things
        wanted = list(
            dict.fromkeys(thing.partition("#")[0] if thing[0] == "t" else thing for thing in things)
        )[:5]
        pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, wanted)) or 'nothing'})\b")
        related = [line for line in self.world.lines if pattern.search(line[19:])]
        return "\n".join([
            f"seed {self.seed}: {text}",
            self.setting(),
            f"  what is known of {' '.join(wanted)}:", *(f"    {line}" for line in related[-STORY_LINES:]),
            "  the last lines:", *(f"    {line}" for line in self.world.lines[-15:]),
            f"  again: python -m tests.sim {self.scenario.script.option}--seed {self.seed}",
        ])  # fmt: skip


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"


def _named(text: str, simulation: Simulation) -> str:
    """Ids in hex become the names of the trace."""

    def name(match: re.Match[str]) -> str:
        return simulation.world.name(bytes.fromhex(match.group()))

    return re.sub(r"\b(?:[0-9a-f]{2}){16,28}\b", name, text)
