"""What each machine takes for the time: its clock began when it did, and runs a little fast or slow.

Machines are given the time by their shell, so a simulated machine whose shell looks at one of these
decides by nothing else. Oracles and faults go by the world's own time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from .world import World

DRIFT = 0.02
"""A hundred times what quartz does."""
ROUNDING_S = 1e-9


class LocalWorld:
    """The world as one machine sees it: all is the world's but the time."""

    def __init__(self, world: World, ahead_s: float, rate: float) -> None:
        """The clock shows `ahead_s` when the world begins, and `rate` more with each second."""
        self._world = world
        self._ahead_s = ahead_s
        self._rate = rate

    @property
    def now(self) -> float:
        """What the clock shows."""
        return self._ahead_s + self._world.now * self._rate

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when the clock shows `when`."""
        due = (when - self._ahead_s) / self._rate + ROUNDING_S
        self._world.at(max(due, self._world.now), call, *arguments)

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when so much more has passed on this clock."""
        self.at(self.now + seconds, call, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)


class Clocks:
    """Hands out the clocks of one run: at most `apart_s` apart; all the world's own if that is 0."""

    def __init__(self, world: World, apart_s: float) -> None:
        self._world = world
        self._apart_s = apart_s
        self._rng = Random(f"clocks {world.seed}")

    def another(self) -> Any:
        """The world for one more machine."""
        if not self._apart_s:
            return self._world
        return LocalWorld(
            self._world, self._rng.uniform(0.0, self._apart_s), 1.0 + self._rng.uniform(-DRIFT, DRIFT))
