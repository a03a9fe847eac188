"""A driver whose raylet is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

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
