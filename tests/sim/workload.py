"""What drivers do: a seeded mix of everything, then an orderly end.

A script holds a pool of references and actor handles and picks, again and again, one thing to do
with some of them. When its time is over it reads all that is left, drops it and is `finished`:
from then on the cluster must come to rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb

from .context import Context
from .programs import LARGE
from .values import Ref
from .world import Coroutine, Future

if TYPE_CHECKING:
    from .worker import SimWorker

POOL = 40
"""References a script keeps at most."""

STEPS: dict[str, int] = {
    "burst": 8, "chain": 5, "fan_in": 5, "put": 4, "nested": 6, "tree": 3, "several": 3, "raising": 3,
    "long": 3, "puts": 3, "delegate": 4, "read": 10, "wait": 4, "drop": 8, "cancel": 2, "actor": 3,
    "call": 8, "keep": 4, "give": 4, "lend": 4, "kill": 1, "let_go": 2, "group": 1, "pinned": 1, "spread": 2,
    "keys": 3,
}  # fmt: skip


class Script:
    """One driver's script; its actors hold at most `cpus` CPUs, so that others are left for tasks."""

    steps_by_weight = STEPS
    option = ""
    """What the command line needs to draw such scripts."""

    def __init__(self, driver: SimWorker, stop_at: float, cpus: int) -> None:
        self.driver = driver
        self.stop_at = stop_at
        self.cpus = cpus
        self.steps = 0
        self.pool: list[Ref] = []
        self.handles: list[Ref] = []
        self.beside = 0
        self.is_ending = False
        self.what = "starts"
        self.finished = Future()
        self.context = Context(driver, None, {})
        self._rng = driver.world.rng
        driver.world.spawn(self._run(), lambda: driver.alive).then(self.finished.set)

    @property
    def is_over(self) -> bool:
        """It has finished, or its driver is dead."""
        return self.finished.is_set or not self.driver.alive

    def _run(self) -> Coroutine:
        yield self.driver.ready
        names, weights = list(self.steps_by_weight), list(self.steps_by_weight.values())
        while self.driver.cluster.world.now < self.stop_at:
            name = self._rng.choices(names, weights)[0]
            self.what = name
            self.steps += 1
            self.driver.world.note(self.driver.name, f"step {name}")
            yield from getattr(self, f"_{name}")()
            while len(self.pool) > POOL:
                self._take().drop()
            yield self._rng.expovariate(1 / 0.05)
        yield from self._end()

    def _end(self) -> Coroutine:
        """Read everything that is left, then let go of it."""
        self.is_ending = True
        self.what = "reads what is left"
        yield from self._read_and_drop(list(self.pool))
        for handle in self.handles:
            handle.drop()
        self.handles.clear()
        self.what = "waits for the end of what it began beside itself"
        while self.beside:
            yield 0.1
        self.what = "has finished"
        self.driver.world.note(self.driver.name, "has finished")

    def _read_and_drop(self, refs: list[Ref]) -> Coroutine:
        for loaded in (yield from self.context.get(refs)):
            for ref in getattr(loaded, "refs", ()):
                self.pool.append(ref) if self._rng.random() < 0.2 and not self.finished.is_set else ref.drop()
        for ref in refs:
            if ref in self.pool:
                self.pool.remove(ref)
            ref.drop()
        if self.what == "reads what is left" and self.pool:
            yield from self._read_and_drop(list(self.pool))

    # ---- picking

    def _take(self) -> Ref:
        return self.pool.pop(self._rng.randrange(len(self.pool)))

    def _some(self, most: int) -> list[Ref]:
        return self._rng.sample(self.pool, min(len(self.pool), self._rng.randrange(most + 1)))

    def _add(self, refs: list[Ref]) -> None:
        self.pool.extend(refs)

    def _retries(self) -> int:
        return self._rng.choice([0, 0, 1, 3, 3, -1])

    # ---- steps

    def _burst(self) -> Coroutine:
        for _ in range(self._rng.randrange(1, 30)):
            self._add(self.context.submit("short", retries=self._retries()))
        yield 0.0

    def _chain(self) -> Coroutine:
        refs = self._some(1)
        for _ in range(self._rng.randrange(2, 8)):
            refs = self.context.submit(self._rng.choice(["short", "medium"]), refs, retries=self._retries())
            self._add(refs)
        yield 0.0

    def _fan_in(self) -> Coroutine:
        self._add(self.context.submit("medium", self._some(5), retries=self._retries()))
        yield 0.0

    def _put(self) -> Coroutine:
        size = self._rng.choice([100, 5000, LARGE, 3 * LARGE])
        self._add([(yield from self.context.put(size, self._some(2)))])

    def _nested(self) -> Coroutine:
        self._add(self.context.submit("reads_nested", self._some(1), self._some(3), retries=self._retries()))
        yield 0.0

    def _tree(self) -> Coroutine:
        depth = self._rng.randrange(1, 4)
        self._add(self.context.submit("tree", nested=self._some(1), body=depth, retries=self._retries()))
        yield 0.0

    def _several(self) -> Coroutine:
        returns = self._rng.randrange(2, 4)
        self._add(
            self.context.submit(
                "medium", self._some(1), body=returns, returns=returns, retries=self._retries()
            )
        )
        yield 0.0

    def _raising(self) -> Coroutine:
        body, retries = self._rng.choice(["always", "sometimes"]), self._rng.choice([0, 1, 3])
        again = self._rng.random() < 0.5
        self._add(self.context.submit("raises", body=body, retries=retries, retry_exceptions=again))
        yield 0.0

    def _long(self) -> Coroutine:
        for _ in range(self._rng.randrange(1, 4)):
            self._add(self.context.submit("long", self._some(1), retries=self._retries()))
        yield 0.0

    def _puts(self) -> Coroutine:
        self._add(self.context.submit("returns_puts", retries=self._retries()))
        yield 0.0

    def _delegate(self) -> Coroutine:
        self._add(self.context.submit("delegates", nested=self._some(2), retries=self._retries()))
        yield 0.0

    def _spread(self) -> Coroutine:
        strategy = pb.SchedulingStrategy(spread=True)
        for _ in range(self._rng.randrange(2, 8)):
            self._add(
                self.context.submit("medium", self._some(1), strategy=strategy, retries=self._retries())
            )
        yield 0.0

    def _pinned(self) -> Coroutine:
        """A task bound to one node. It needs no CPU: actors may hold all of that node's for ever."""
        node = self._rng.choice(self.driver.cluster.living)
        strategy = pb.SchedulingStrategy()
        strategy.affinity.node_id = node.id
        strategy.affinity.soft = self._rng.random() < 0.5
        self._add(self.context.submit("medium", strategy=strategy, retries=self._retries(), cpus=0.0))
        yield 0.0

    def _read(self) -> Coroutine:
        if self.pool:
            yield from self._read_and_drop([self._take() for _ in range(min(len(self.pool), 4))])

    def _wait(self) -> Coroutine:
        refs = self._some(6)
        if refs:
            yield from self.context.wait(
                refs, self._rng.randrange(1, len(refs) + 1), self._rng.uniform(0.0, 0.5)
            )

    def _drop(self) -> Coroutine:
        for _ in range(self._rng.randrange(1, 6)):
            if self.pool:
                self._take().drop()
        yield 0.0

    def _cancel(self) -> Coroutine:
        for ref in self._some(2):
            self.context.cancel(ref)
        yield 0.0

    # ---- actors

    def _actor(self) -> Coroutine:
        if len(self.handles) < 6:
            options: dict[str, Any] = {
                "max_restarts": self._rng.choice([0, 0, 1, 2, -1]),
                "max_task_retries": self._rng.choice([0, 0, 1, -1]),
                "lifetime_cpus": 1.0 if self.cpus > 0 and self._rng.random() < 0.5 else 0.0,
                "max_concurrency": self._rng.choice([1, 1, 1, 4]),
            }
            self.cpus -= options["lifetime_cpus"] > 0
            body = "raises" if self._rng.random() < 0.1 else ""
            self.handles.append(
                self.context.actor("actor_init", self._some(1), self._some(1), body, **options)
            )
        yield 0.0

    def _call(self) -> Coroutine:
        if self.handles:
            handle = self._rng.choice(self.handles)
            for _ in range(self._rng.randrange(1, 12)):
                self._add(
                    self.context.call(handle, "count", self._some(1) if self._rng.random() < 0.2 else [])
                )
        yield 0.0

    def _keep(self) -> Coroutine:
        if self.handles:
            self._add(self.context.call(self._rng.choice(self.handles), "keep", nested=self._some(3)))
        yield 0.0

    def _give(self) -> Coroutine:
        if self.handles:
            self._add(self.context.call(self._rng.choice(self.handles), "give"))
        yield 0.0

    def _lend(self) -> Coroutine:
        """Somebody else gets a handle: a task that calls the actor, or an older actor that keeps it."""
        if len(self.handles) > 1 and self._rng.random() < 0.3:
            older, younger = sorted(self._rng.sample(range(len(self.handles)), 2))
            self._add(self.context.call(self.handles[older], "keep", nested=[self.handles[younger]]))
        elif self.handles:
            handle = self._rng.choice(self.handles)
            self._add(self.context.submit("calls_actor", nested=[handle], retries=self._retries()))
        yield 0.0

    def _kill(self) -> Coroutine:
        if self.handles:
            yield from self.context.kill(self._rng.choice(self.handles), self._rng.random() < 0.5)

    def _let_go(self) -> Coroutine:
        if self.handles:
            self.handles.pop(self._rng.randrange(len(self.handles))).drop()
        yield 0.0

    # ---- keys

    def _keys(self) -> Coroutine:
        """Reads and writes of keys that other drivers use as well."""
        for _ in range(self._rng.randrange(1, 5)):
            key = self._rng.choice([b"x", b"y"])
            what = self._rng.choice(["read", "read", "write", "write", "delete"])
            if what == "read":
                yield from self.context.read_key(key)
            else:
                value = None if what == "delete" else str(self.driver.cluster.next_number()).encode()
                yield from self.context.write_key(key, value)

    # ---- placement groups

    def _group(self) -> Coroutine:
        """A group lives beside the script, for a while, whatever the script waits for."""
        self.driver.world.spawn(self._group_life(), lambda: self.driver.alive)
        yield 0.0

    def _group_life(self) -> Coroutine:
        self.beside += 1
        bundles = [1.0] * self._rng.randrange(1, 4)
        group = yield from self.context.group(bundles, self._rng.randrange(4))
        refs = []
        for index in range(len(bundles)):
            strategy = self.context.bundle(group, self._rng.choice([index, -1]))
            refs += self.context.submit("medium", strategy=strategy, retries=self._retries())
        handle = self.context.actor("actor_init", strategy=self.context.bundle(group, 0))
        refs += self.context.call(handle, "count")
        yield self._rng.uniform(0.1, 3.0)
        yield from self.context.remove_group(group)
        yield from self.context.get(refs)
        for ref in (*refs, handle):
            ref.drop()
        self.beside -= 1
