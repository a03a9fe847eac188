"""Short seeds about large objects: one goes to many nodes at once, and those in the middle die.

A cluster of three to six nodes. Scripts make objects of many megabytes, by `put` or by a task that can run
again, and have them read on all nodes at the same time, so that they travel in chains; meanwhile nodes die,
are cut off, drained and stopped, workers and drivers end, tasks are given up. The checkers are those of every
seed; and nobody is left with a part of an object, or counted as its reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from miniray._proto import common_pb2 as pb

from .context import Context
from .faults import Plan
from .network import Weather
from .programs import PROGRAMS
from .run import Scenario, changed
from .values import Ref
from .workload import Script
from .world import Coroutine

STEPS: dict[str, int] = {
    "broadcast": 6, "remake": 4, "big_put": 2, "read": 4, "wait": 3, "drop": 8, "cancel": 3, "burst": 1,
}  # fmt: skip

LARGE_MOST = 6
"""Large objects that one script keeps."""
MIB = 1 << 20


def scenario_of(seed: int, changes: Mapping[str, float] | None = None) -> Scenario:
    """Drawn from the seed, by a generator of its own; see `run.scenario_of`."""
    rng = Random(f"copies {seed}")
    until = rng.uniform(4.0, 12.0)
    counts = {
        "node_crash": rng.choice([0, 1, 2]), "partition": rng.choice([0, 1, 2]),
        "worker_crash": rng.choice([0, 2, 5]), "driver_crash": rng.choice([0, 0, 0, 1]),
        "raylet_stop": rng.choice([0, 0, 1]), "drain": rng.choice([0, 0, 0, 1]),
        "storm": rng.choice([0, 0, 1]), "node_join": rng.choice([0, 0, 1]),
    }  # fmt: skip
    scenario = Scenario(
        nodes=rng.choice([3, 4, 6]), cpus=2, drivers=rng.choice([1, 2]),
        seconds=until * rng.uniform(0.5, 0.9),
        store_bytes=rng.choice([1 << 30, 1 << 30, 60 * MIB]),
        weather=Weather(loss=rng.choice([0.0, 0.0, 0.02])),
        plan=Plan(until, counts), script=CopiesScript,
    )  # fmt: skip
    return changed(scenario, changes or {})


class CopiesScript(Script):
    """A driver's script; see the module head."""

    steps_by_weight = STEPS
    option = "--copies "

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.large: list[Ref] = []

    def _keep(self, ref: Ref) -> Ref:
        self.pool.append(ref)
        self.large.append(ref)
        self.large = [one for one in self.large if one in self.pool][-LARGE_MOST:]
        return ref

    def _some_large(self) -> Ref | None:
        there = [ref for ref in self.large if ref in self.pool]
        return self._rng.choice(there) if there else None

    def _big_put(self) -> Coroutine:
        self._keep((yield from self.context.put(self._rng.choice([5, 16, 40]) * MIB)))

    def _remake(self) -> Coroutine:
        """A task on some node makes a large object; it can run again."""
        node = self._rng.choice(self.driver.cluster.living)
        self._keep(self.context.submit("large", strategy=_at(node.id), retries=3, cpus=0.0)[0])
        yield 0.0

    def _broadcast(self) -> Coroutine:
        """All nodes read one object at once; as an argument or in the middle of a task."""
        ref = self._some_large()
        if ref is None:
            ref = self._keep(self.context.submit("large", retries=3)[0])
        for node in self.driver.cluster.living:
            if self._rng.random() < 0.8:
                inside = self._rng.random() < 0.5
                self._add(self.context.submit(
                    "reads_nested" if inside else "short", [] if inside else [ref], [ref] if inside else [],
                    strategy=_at(node.id), retries=self._retries(), cpus=0.0))
        yield self._rng.uniform(0.0, 0.5)


def _at(node_id: bytes) -> pb.SchedulingStrategy:
    """There if it lives."""
    strategy = pb.SchedulingStrategy()
    strategy.affinity.node_id = node_id
    strategy.affinity.soft = True
    return strategy


def large(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """A result of many megabytes; its size depends on nothing but the task."""
    yield from context.work(context.rng.uniform(0.001, 0.05))
    return [((5, 16, 40)[context.task[0] % 3] * MIB, None, [])]


PROGRAMS["large"] = large
