"""The memory guard: which worker ends when the machine runs out of memory.

Ray's order: work that can run again before work that cannot, then the owner with most workers,
then its newest. One worker at a time: the next only when the last one is gone. The figures come
from the shell; sizes are anonymous memory, so that a reader of large shared objects is not blamed
for them. Pure; runs inside `core.node.Node`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from miniray.core.leases import Grant, Leases
from miniray.core.pool import BUSY, DRIVER, Pool, Worker

GIB = 1 << 30
SHOWN = 5
"""Workers listed in the report."""


@dataclass(slots=True)
class Guard:
    """See the module head."""

    out: list[Any]
    pool: Pool
    leases: Leases
    restartable: dict[bytes, bool] = field(default_factory=dict)
    """Actor id -> whether it may start again; filled by `core.hosting`."""
    victim: bytes = b""
    """The worker that was ended last, until its exit."""

    def memory_measured(self, now: float, used: int, total: int, limit: float,
                        sizes: dict[bytes, int]) -> bool:
        """`used` of `total` bytes are taken; above `limit` (a share) one worker ends.

        `sizes`: worker id -> bytes of anonymous memory. True when a worker was ended.
        """
        if used <= limit * total or self.victim in self.pool.workers:
            return False
        choice = self._choose()
        if choice is None:
            return False
        worker, grant = choice
        self.victim = worker.worker_id
        worker.out_of_memory = True
        self.pool.stop(now, worker, self._report(worker, grant, used, total, limit, sizes), force=True)
        worker.intended = False
        return True

    def _choose(self) -> tuple[Worker, Grant] | None:
        """The next victim, None when nothing runs here that may be ended."""
        groups: dict[tuple[bool, bytes], list[Grant]] = {}
        for grant in self.leases.grants.values():
            worker = self.pool.workers.get(grant.worker_id)
            if worker is not None and worker.state == BUSY:
                final = not self.restartable.get(grant.actor_id, False) if grant.actor_id else grant.cls.final
                owner = grant.key[0] or grant.actor_id
                groups.setdefault((final, owner), []).append(grant)
        if not groups:
            return None
        chosen = min(groups, key=lambda key: (key[0], -len(groups[key])))
        grant = max(groups[chosen], key=lambda g: (g.since, g.grant_id))
        return self.pool.workers[grant.worker_id], grant

    def _report(self, worker: Worker, grant: Grant, used: int, total: int, limit: float,
                sizes: dict[bytes, int]) -> str:
        """What happened, for the owner of the task: figures, the limit, the largest, what to do."""
        name = grant.cls.function_name or "a worker"
        largest = sorted(sizes.items(), key=lambda pair: -pair[1])[:SHOWN]
        lines = []
        for worker_id, size in largest:
            entry = self.pool.workers.get(worker_id)
            held = self.leases.grants.get(entry.grant_id) if entry is not None else None
            what = held.cls.function_name if held is not None else _without_lease(entry)
            lines.append(f"{size / GIB:.2f} GiB {what} (pid {entry.pid if entry is not None else 0})")
        return (
            f"it ran {name} with {sizes.get(worker.worker_id, 0) / GIB:.2f} GiB when the machine had "
            f"{used / GIB:.2f} of {total / GIB:.2f} GiB in use, more than {limit:.0%}; largest workers: "
            f"{'; '.join(lines)}. Give tasks more num_cpus or memory=… so that fewer run at a time, or set "
            "MINIRAY_MEMORY_GUARD")


def _without_lease(worker: Worker | None) -> str:
    return "of the driver, which is never ended" if worker is not None and worker.state == DRIVER else "idle"
