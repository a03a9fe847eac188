"""Short seeds about what outlives its maker and what must be whole: services, groups, urgent work.

Scripts make detached actors under names that all of them share, find them by name, call and end them;
groups are many, and their nodes die; tasks have priorities; for a while no process can be made. In the
end, when all drivers have left, every service that was acknowledged and not ended still lives, on the
name it was given; then all are ended, and the cluster must be empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from .context import NAMESPACE
from .faults import Plan
from .network import Weather
from .run import Scenario, changed
from .workload import Script
from .world import Coroutine

STEPS: dict[str, int] = {
    "burst": 3, "fan_in": 3, "urgent": 6, "group": 5, "pinned": 2, "actor": 2, "call": 3, "kill": 1,
    "serve": 6, "visit": 10, "end_service": 3, "read": 9, "drop": 5, "keys": 1, "spread": 2, "cancel": 2,
}  # fmt: skip

NAMES = ("s1", "s2", "s3", "s4")


def scenario_of(seed: int, changes: Mapping[str, float] | None = None) -> Scenario:
    """Drawn from the seed, by a generator of its own; see `run.scenario_of`."""
    rng = Random(f"services {seed}")
    until = rng.uniform(3.0, 7.0)
    counts = {
        "worker_crash": rng.choice([0, 2, 5]), "node_crash": rng.choice([0, 0, 1, 2]),
        "driver_crash": rng.choice([0, 0, 1]), "head_crash": rng.choice([0, 1, 2]),
        "partition": rng.choice([0, 0, 1]), "storm": rng.choice([0, 0, 1]),
        "raylet_stop": rng.choice([0, 0, 1]), "raylet_restart": rng.choice([0, 0, 1]),
        "node_join": rng.choice([0, 0, 1]), "drain": rng.choice([0, 0, 1]),
        "fork_failure": rng.choice([0, 0, 1, 2]),
    }  # fmt: skip
    scenario = Scenario(
        nodes=rng.choice([2, 3, 4]), cpus=rng.choice([1, 2, 4]), drivers=rng.choice([2, 3]),
        seconds=until * rng.uniform(0.4, 0.9),
        weather=Weather(loss=rng.choice([0.0, 0.0, 0.02]), late=rng.choice([0.0, 0.05]), late_s=0.2),
        plan=Plan(until, counts), script=ServiceScript,
    )  # fmt: skip
    return changed(scenario, changes or {})


class ServiceScript(Script):
    """A driver's script; see the module head."""

    steps_by_weight = STEPS
    option = "--services "

    def _urgent(self) -> Coroutine:
        """Tasks that go before others."""
        for _ in range(self._rng.randrange(1, 8)):
            priority = self._rng.choice([-1, 1, 5])
            self._add(self.context.submit("medium", retries=self._retries(), priority=priority))
        yield 0.0

    def _serve(self) -> Coroutine:
        """A detached actor, unless its name is taken. Its maker keeps no handle."""
        options: dict[str, Any] = {"lifetime_cpus": 0.0, "max_restarts": -1, "max_task_retries": -1}
        name = self._rng.choice(NAMES)
        self.context.actor("actor_init", name=name, namespace=NAMESPACE, **options).drop()
        yield 0.0

    def _visit(self) -> Coroutine:
        """Call whoever has the name now."""
        service = yield from self.context.find(self._rng.choice(NAMES))
        if service is not None:
            for _ in range(self._rng.randrange(1, 5)):
                self._add(self.context.call(service, "count"))

    def _end_service(self) -> Coroutine:
        """End whoever has the name now."""
        service = yield from self.context.find(self._rng.choice(NAMES))
        if service is not None:
            self.driver.cluster.oracle.detached.pop(service.actor, None)
            yield from self.context.kill(service, True)
