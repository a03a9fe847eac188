"""A driver whose raylet is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray import exceptions
from miniray.runtime import agent
from tests.system.support import alive, eventually, zygote_of


def test_what_a_driver_begins_after_its_raylets_end_fails_at_once_by_name() -> None:
    import miniray as ray
    from miniray import api

    @ray.remote
    def task() -> int:
        return 1

    @ray.remote
    class Actor:
        def call(self) -> int:
            return 1

    ray.init(num_cpus=1, address="local")
    try:
        assert ray.get(task.remote()) == 1
        session = api.connected_worker().session_dir
        os.kill(json.loads(Path(session, "node.json").read_text())["pid"], signal.SIGKILL)
        eventually(lambda: not Path(session).exists(), "the zygote cleans up")
        for begin in (task.remote, lambda: Actor.remote().call.remote()):
            with pytest.raises(exceptions.NodeDiedError, match=r"call miniray\.init\(\) again"):
                ray.get(begin(), timeout=30)
        ready, _ = ray.wait([task.remote()], timeout=30)
        assert ready
    finally:
        ray.shutdown()


def test_whoever_waits_for_the_next_item_of_a_generator_learns_of_the_raylets_end() -> None:
    import miniray as ray
    from miniray import session

    @ray.remote
    def count() -> Iterator[int]:
        yield 1
        time.sleep(1000)
        yield 2

    async def last(items: Any) -> Any:
        return [await item async for item in items]

    ray.init(num_cpus=2, address="local")
    try:
        first, second = count.remote(), count.remote()
        assert ray.get([next(first), next(second)]) == [1, 1]
        daemon: Any = session._daemon
        threading.Timer(0.2, os.kill, (daemon.pid, signal.SIGKILL)).start()
        for items in (first, count.remote()):       # the second may be begun after it
            with pytest.raises(exceptions.NodeDiedError, match=r"call miniray\.init\(\) again"):
                while True:
                    ray.get(next(items))
            assert next(items, None) is None
        with pytest.raises(exceptions.NodeDiedError):
            asyncio.run(last(second))
    finally:
        ray.shutdown()


def test_a_driver_removes_its_session_when_all_who_would_were_killed_together() -> None:
    import miniray as ray
    from miniray import api

    @ray.remote
    def task() -> int:
        return os.getpid()

    ray.init(num_cpus=1, address="local")
    try:
        worker = ray.get(task.remote())
        session = api.connected_worker().session_dir
        raylet = json.loads(Path(session, "node.json").read_text())["pid"]
        zygote = zygote_of(raylet)
        (guardian,) = agent.children_of(raylet)
        for pid in (guardian, zygote):
            os.kill(pid, signal.SIGSTOP)
        os.kill(raylet, signal.SIGKILL)
        os.kill(guardian, signal.SIGKILL)
        os.kill(zygote, signal.SIGKILL)
        eventually(lambda: not alive(worker) and not alive(raylet), "they end")
    finally:
        ray.shutdown()
    assert not Path(session).exists()
