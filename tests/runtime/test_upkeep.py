"""What a raylet does in the background: memory ahead of need, while nobody else wants the CPU."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from miniray.runtime import host
from miniray.runtime.upkeep import Upkeep

MIB = 1 << 20


class Store:
    """One that grows by 10 MiB each time it is looked at."""

    def __init__(self) -> None:
        self.used = 0
        self.warmed: list[int] = []

    def stats(self) -> dict[str, int]:
        self.used += 10 * MIB
        return {"used": self.used, "free": 500 * MIB, "cold": 500 * MIB}

    def prefault(self, size: int) -> int:
        self.warmed.append(size)
        return size


@pytest.mark.parametrize("busy", [False, True])
def test_memory_is_warmed_ahead_only_while_a_cpu_is_free(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "is_busy", lambda: busy)
    store: Any = Store()
    node: Any = SimpleNamespace(out=[], store_used=lambda now, used: None)
    logs: Any = SimpleNamespace(pause_s=60.0)

    async def run() -> None:
        upkeep = Upkeep(node, store, logs, lambda worker_id: 0, lambda: None)
        upkeep._look_at_store()
        upkeep.close()
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(run())
    assert store.warmed == ([] if busy else [20 * MIB])


def test_a_machine_is_busy_when_more_want_to_run_than_it_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.os, "cpu_count", lambda: 4)
    for figures, busy in (("1.0 9.0 9.0 4/900 77", False), ("0.1 0.1 0.1 5/900 77", True), ("", False)):
        monkeypatch.setattr(host, "_read", lambda path, figures=figures: figures)
        assert host.is_busy() is busy
