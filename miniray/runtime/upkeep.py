"""What a raylet looks after from time to time: the store's memory, the machine's, workers' output.

- Store: usage is reported to the node (spilling ahead of need); while it grows and a CPU is free, memory
  is put behind the next free blocks in the background, as the first touch is slow; what stays free and
  unused goes back to the system, since it counts against the machine's memory.
- Machine: above `memory_guard` the node ends one worker, after free store memory was given back.
- Output: lines that workers print go to their job's driver (`logs`).

Timers on the raylet's loop; prefaulting runs in the loop's executor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from miniray import _native, config
from miniray.core.node import Node
from miniray.runtime import agent, host
from miniray.runtime.logs import Logs

STORE_EVERY_S = 0.25
PREFAULT_MAX_BYTES = 256 << 20
KEEP_WARM_BYTES = 64 << 20
"""Free memory that stays behind an unused store."""
IDLE_BEFORE_PUNCH_S = 5.0


class Upkeep:
    """See the module head. `pid_of(worker_id)` is 0 when it has ended; `turn` drains the node."""

    def __init__(self, node: Node, store: _native.Store, logs: Logs, pid_of: Callable[[bytes], int],
                 turn: Callable[[], None]) -> None:
        self._node = node
        self._store = store
        self._logs = logs
        self._pid_of = pid_of
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._total = host.memory_total()
        self._meter = host.MemoryMeter()
        self._limit = config.get("memory_guard")
        self._used = 0
        self._idle_since = self._loop.time()
        self._warming = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._again("store", STORE_EVERY_S, self._look_at_store)
        self._again("logs", logs.pause_s, self._look_at_logs)
        if self._limit < 1 and config.get("memory_check_s"):
            self._again("memory", config.get("memory_check_s"), self._look_at_memory)

    def close(self) -> None:
        """Stop all timers."""
        self._meter.close()
        for timer in self._timers.values():
            timer.cancel()

    def _again(self, name: str, pause_s: float, look: Callable[[], None]) -> None:
        self._timers[name] = self._loop.call_later(pause_s, look)

    # ---- the store ----

    def _look_at_store(self) -> None:
        self._again("store", STORE_EVERY_S, self._look_at_store)
        stats = self._store.stats()
        used, now = stats["used"], self._loop.time()
        grown, self._used = used - self._used, used
        warm = stats["free"] - stats["cold"]
        if grown:
            self._idle_since = now
        if grown > 0 and warm < 2 * grown and not self._warming and not host.is_busy():
            self._warm(min(2 * grown, PREFAULT_MAX_BYTES))
        elif now - self._idle_since > IDLE_BEFORE_PUNCH_S and warm > 2 * KEEP_WARM_BYTES:
            self._store.punch(KEEP_WARM_BYTES)
        self._node.store_used(now, used)
        if self._node.out:
            self._turn()

    def _warm(self, size: int) -> None:
        self._warming = True
        task: asyncio.Future[Any] = self._loop.run_in_executor(None, self._store.prefault, size)
        task.add_done_callback(self._warmed)

    def _warmed(self, task: asyncio.Future[Any]) -> None:
        self._warming = False
        if not task.cancelled():
            task.exception()

    # ---- the machine ----

    def _look_at_memory(self) -> None:
        self._again("memory", config.get("memory_check_s"), self._look_at_memory)
        used = self._meter.used()
        if used <= self._limit * self._total:
            return
        if self._store.punch(0):
            return  # perhaps that was enough
        sizes = {worker_id: agent.anonymous_memory(self._pid_of(worker_id))
                 for worker_id in self._node.pool.workers}
        if self._node.memory_measured(self._loop.time(), used, self._total, self._limit, sizes):
            self._turn()

    # ---- output ----

    def _look_at_logs(self) -> None:
        self._logs.read_all()
        self._again("logs", self._logs.pause_s, self._look_at_logs)
