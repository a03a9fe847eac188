"""Nodes that stand still, and nodes that are told to end twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray import exceptions
from miniray.runtime import agent
from tests.system.support import Effects, alive, eventually

LONG_S = 60.0


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head with a node that the test's driver is on."""
    import miniray
    from miniray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
    miniray.init(made.address, configure_logging=False)
    yield made
    miniray.shutdown()
    made.shutdown()


def add(cluster: Any) -> Any:
    """One more node, with the resource "there"."""
    return cluster.add_node(num_cpus=2, resources={"there": 10}, object_store_memory=100 << 20)


def is_dead(node: Any) -> bool:
    import miniray as ray

    return any(row["NodeID"] == node.node_id and not row["Alive"] for row in ray.nodes())


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.slow
def test_what_a_node_finishes_after_it_was_given_up_is_not_taken(
    cluster: Any, effects: Effects, tmp_path: Path
) -> None:
    """All of it is stopped, so nothing of it can end; it comes back to a cluster that goes on without it."""
    import miniray as ray

    thawed, over = tmp_path / "thawed", tmp_path / "over"

    @ray.remote(resources={"there": 1}, max_retries=1)
    def task() -> int:
        life = effects.happened("task")
        wait_for(thawed if life == 1 else over)
        return life

    @ray.remote(resources={"there": 1}, max_restarts=1, max_task_retries=-1)
    class Log:
        def __init__(self) -> None:
            self.life = effects.happened("born")
            self.seen: list[int] = []

        def note(self, number: int) -> tuple[int, list[int]]:
            self.seen.append(number)
            if number == 2:
                effects.happened("two")
                wait_for(thawed if self.life == 1 else over)
            return self.life, list(self.seen)

    first = add(cluster)
    result, log = task.remote(), Log.remote()
    assert ray.get(log.note.remote(1), timeout=LONG_S) == (1, [1])
    answers = [log.note.remote(number) for number in (2, 3)]
    eventually(lambda: effects.count("task") and effects.count("two"), "both run")
    members = [first.pid, *agent.descendants_of(first.pid)]
    for pid in members:
        os.kill(pid, signal.SIGSTOP)
    add(cluster)
    eventually(lambda: is_dead(first), "it is given up", LONG_S)
    eventually(lambda: effects.count("task") == 2 and effects.count("two") == 2, "both run again", LONG_S)
    thawed.touch()
    for pid in members:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: not any(alive(pid) for pid in members), "it ends", LONG_S)
    assert ray.wait([result, *answers], timeout=0)[0] == [], "nothing of the first life was taken"
    over.touch()
    assert ray.get(result, timeout=LONG_S) == 2
    assert ray.get(answers, timeout=LONG_S) == [(2, [2]), (2, [2, 3])]
    assert ray.get(log.note.remote(4), timeout=LONG_S) == (2, [2, 3, 4])
    assert effects.count("born") == effects.count("task") == effects.count("two") == 2
    eventually(lambda: not Path(first.session_dir).exists(), "its directory goes")


def test_a_second_sigterm_ends_a_node_at_once(
    cluster: Any, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    import miniray as ray

    @ray.remote(resources={"there": 1}, max_retries=0)
    def forever() -> None:
        effects.happened("began")
        time.sleep(1000)

    monkeypatch.setenv("MINIRAY_DRAIN_S", "600")
    node = add(cluster)
    result = forever.remote()
    eventually(lambda: effects.count("began"))
    members = [node.pid, *agent.descendants_of(node.pid)]
    os.kill(node.pid, signal.SIGTERM)
    assert ray.wait([result], timeout=1)[0] == [] and alive(node.pid), "it drains"
    os.kill(node.pid, signal.SIGTERM)
    eventually(lambda: not any(alive(pid) for pid in members), "it ends", LONG_S)
    assert not Path(node.session_dir).exists()
    with pytest.raises((exceptions.NodeDiedError, exceptions.WorkerCrashedError)):
        ray.get(result, timeout=LONG_S)
