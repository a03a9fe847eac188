"""Short seeds about references alone: who passes them on, who keeps them, who dies with them.

A cluster of two or three nodes lives for some seconds. Its scripts nest references in values and in one
another, hand them from borrower to borrower and from actor to actor, return them from tasks, actors
and generators, hold handles in cycles, and give up while all that is under way; meanwhile workers,
owners, nodes and drivers die. The checkers are those of every seed: nothing is freed while it can be
reached, and at rest the books are empty. What actors of a cycle hold may stay until their driver leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from .context import Context
from .faults import Plan
from .network import Weather
from .programs import LARGE, PROGRAMS, plain
from .run import Scenario, changed
from .values import Loaded, Ref
from .workload import Script
from .world import Coroutine

STEPS: dict[str, int] = {
    "nested": 5, "puts": 4, "put": 5, "box": 5, "delegate": 4, "cascade": 6, "stream": 6, "chain": 3,
    "several": 2, "raising": 1, "long": 1, "actor": 3, "keep": 5, "give": 5, "lend": 4, "hand_over": 5,
    "make": 5, "made_actor": 2, "cycle": 2, "read": 9, "wait": 3, "drop": 9, "cancel": 3, "kill": 1,
    "let_go": 2,
}  # fmt: skip

CYCLES = 2
"""Cycles of actors that one script leaves behind at most: they hold what they hold till its end."""


def scenario_of(seed: int, changes: Mapping[str, float] | None = None) -> Scenario:
    """Drawn from the seed, by a generator of its own; see `run.scenario_of`."""
    rng = Random(f"references {seed}")
    until = rng.uniform(2.0, 4.5)
    counts = {
        "worker_crash": rng.choice([0, 1, 3, 6]), "node_crash": rng.choice([0, 0, 0, 1]),
        "driver_crash": rng.choice([0, 0, 0, 1]), "head_crash": rng.choice([0, 0, 0, 0, 1]),
        "partition": rng.choice([0, 0, 0, 1]), "storm": rng.choice([0, 0, 1]),
        "raylet_stop": rng.choice([0, 0, 0, 1]), "raylet_restart": rng.choice([0, 0, 0, 0, 1]),
        "node_join": 0, "drain": rng.choice([0, 0, 0, 0, 1]), "slow_disk": 0,
    }  # fmt: skip
    scenario = Scenario(
        nodes=rng.choice([1, 2, 2, 3]), cpus=rng.choice([1, 2, 4]), drivers=rng.choice([1, 2]),
        seconds=until * rng.uniform(0.4, 0.9),
        store_bytes=rng.choice([1 << 30, 1 << 30, 3 << 20]),
        lineage_bytes=rng.choice([1 << 30, 1 << 30, 10_000]),
        weather=Weather(loss=rng.choice([0.0, 0.0, 0.02]), late=rng.choice([0.0, 0.05]), late_s=0.2),
        plan=Plan(until, counts), script=ReferenceScript,
    )  # fmt: skip
    return changed(scenario, changes or {})


class ReferenceScript(Script):
    """A driver's script; see the module head."""

    steps_by_weight = STEPS
    option = "--references "
    cycles = 0

    # ---- values in values

    def _box(self) -> Coroutine:
        """References inside a value inside a value; of those in between some live on."""
        inner = self._some(3)
        for _ in range(self._rng.randrange(1, 4)):
            inner = [(yield from self.context.put(self._rng.choice([100, LARGE]), inner))]
            self._add(inner)

    def _cascade(self) -> Coroutine:
        """Borrowers that borrow from borrowers."""
        depth = self._rng.randrange(1, 4)
        self._add(self.context.submit("cascade", nested=self._some(3), body=depth, retries=self._retries()))
        yield 0.0

    # ---- generators

    def _stream(self) -> Coroutine:
        """A generator is read beside the script, perhaps not to its end."""
        self.driver.world.spawn(self._consume(self._some(2)), lambda: self.driver.alive)
        yield 0.0

    def _consume(self, nested: list[Ref]) -> Coroutine:
        self.beside += 1
        stream = self.context.stream("yields", nested, self._retries())
        for _ in range(self._rng.randrange(8)):
            ref = yield from stream.take()
            if ref is None:
                break
            if self._rng.random() < 0.5:
                loaded = (yield from self.context.get([ref]))[0]
                self._drop_all(getattr(loaded, "refs", ()))
            if self._rng.random() < 0.3 and not self.is_ending:
                self._add([ref])
            else:
                ref.drop()
        stream.drop()
        self.beside -= 1

    def _drop_all(self, refs: Any) -> None:
        for ref in refs:
            ref.drop()

    # ---- actors

    def _hand_over(self) -> Coroutine:
        """One actor gives what it keeps to another."""
        if len(self.handles) > 1:
            giver, taker = self._rng.sample(self.handles, 2)
            self._add(self.context.call(giver, "hand_over", nested=[taker]))
        yield 0.0

    def _make(self) -> Coroutine:
        """An actor owns what it returns a reference to, and may not live as long."""
        if self.handles:
            self._add(self.context.call(self._rng.choice(self.handles), "make", nested=self._some(1)))
        yield 0.0

    def _made_actor(self) -> Coroutine:
        """A task makes an actor and returns its handle."""
        self._add(self.context.submit("makes_actor", nested=self._some(1), retries=self._retries()))
        yield 0.0

    def _cycle(self) -> Coroutine:
        """Two or three actors hold one another's handles, and something else; nobody else has a handle."""
        if self.cycles >= CYCLES:
            return
        self.cycles += 1
        ring = [
            self.context.actor("actor_init", lifetime_cpus=0.0, max_restarts=self._rng.choice([0, 0, 1]))
            for _ in range(self._rng.randrange(1, 4))
        ]
        for one, next_one in zip(ring, ring[1:] + ring[:1], strict=True):
            self._add(self.context.call(one, "keep", nested=[next_one, *self._some(1)]))
        if self._rng.random() < 0.3:
            self._add(self.context.call(ring[0], "forget"))
        elif self._rng.random() < 0.3:
            yield from self.context.kill(ring[0], True)
        self._drop_all(ring)


# ---- programs


def cascade(context: Context, body: int, arguments: list[Any]) -> Coroutine:
    """Passes what it was given to a child, `body` levels deep; who returns what is left to chance."""
    nested: list[Ref] = arguments[-1]
    yield from context.work(context.rng.uniform(0.0001, 0.005))
    if not body:
        return [(LARGE if context.chance(0.2) else 100, None, nested if context.chance(0.7) else [])]
    child = context.submit("cascade", nested=nested, body=body - 1)
    if context.chance(0.4):
        for ref in nested:      # from here on only the child has them
            context.drop(ref)
        nested = []
    if context.chance(0.5):
        loaded = (yield from context.get(child))[0]
        found = loaded.refs if isinstance(loaded, Loaded) else []
        return [(100, None, [*found, *nested])]
    return [(100, None, [*child, *nested])]


def yields(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """A generator of values with references inside; every attempt yields as many."""
    inner: list[Ref] = list(arguments[-1])
    for index in range(context.task[0] % 6):
        yield from context.work(context.rng.uniform(0.0001, 0.05))
        if context.chance(0.5):
            inner.append((yield from context.put(LARGE if context.chance(0.3) else 100)))
        yield from context.yields(index, LARGE if context.task[1] % 2 else 100, inner[-2:])
    return plain()


def forget(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Drops all that the actor keeps, handles too."""
    yield from context.work(context.rng.uniform(20e-6, 0.002))
    for ref in (*context.state["kept"], *context.state["handles"]):
        context.drop(ref)
    context.state["kept"].clear()
    context.state["handles"].clear()
    return [(100, context.worker.name, [])]


def hand_over(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Gives what it keeps to another actor, and perhaps keeps none of it."""
    yield from context.work(context.rng.uniform(20e-6, 0.002))
    kept: list[Ref] = context.state["kept"]
    for taker in arguments[-1]:
        if taker.actor and kept:
            context.call(taker, "keep", nested=kept[-2:])
    if context.chance(0.5):
        for ref in kept[-2:]:
            kept.remove(ref)
            context.drop(ref)
    return [(100, context.worker.name, [])]


def make(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Puts a value with references inside and returns its reference; perhaps it keeps one too."""
    yield from context.work(context.rng.uniform(20e-6, 0.002))
    ref = yield from context.put(LARGE if context.chance(0.5) else 100, arguments[-1])
    if context.chance(0.5):
        context.state["kept"].append(context.keep(context.copy(ref)))
    return [(100, (context.worker.name, ref.id), [ref])]


def makes_actor(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Makes an actor that keeps what the task was given, and returns the handle."""
    yield from context.work(context.rng.uniform(0.0001, 0.005))
    handle = context.actor("actor_init", lifetime_cpus=0.0)
    context.call(handle, "keep", nested=arguments[-1])
    return [(100, None, [handle])]


PROGRAMS.update({
    function.__name__: function for function in (cascade, yields, forget, hand_over, make, makes_actor)
})  # fmt: skip
