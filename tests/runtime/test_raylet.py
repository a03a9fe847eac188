"""Nodes of a cluster as real processes: joining, objects between them, draining, a head that comes back."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import miniray as ray
from miniray.runtime import launch
from miniray.runtime.daemon import HeadOptions, NodeOptions

STORE_BYTES = 100 << 20


def until(condition: Callable[[], Any], what: str, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Fleet:
    """A head and nodes in words."""

    def __init__(self, storage: str = "none:") -> None:
        self.token = secrets.token_hex(16)
        self.storage = storage
        self.nodes: list[dict[str, Any]] = []
        self.head = self.start_head(0)

    def start_head(self, port: int) -> dict[str, Any]:
        options = HeadOptions(port=port, token=self.token, storage=self.storage, driver_pid=os.getpid())
        self.head = launch.start_daemon("head", options)
        return self.head

    @property
    def address(self) -> str:
        return str(self.head["address"])

    def add(self, **options: Any) -> dict[str, Any]:
        options = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES, **options}
        node = launch.start_daemon("node", NodeOptions(
            gcs_address=self.address, token=self.token, driver_pid=os.getpid(), **options))
        self.nodes.append(node)
        return node

    def close(self) -> None:
        ray.shutdown()
        until(lambda: not self._still_ending(), "all daemons end")

    def _still_ending(self) -> bool:
        """Ask the living ones again: a second SIGTERM means that running work is not waited for."""
        living = [daemon for daemon in (*self.nodes, self.head) if alive(daemon["pid"])]
        for daemon in living:
            os.kill(daemon["pid"], signal.SIGTERM)
        return bool(living)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    made = Fleet()
    yield made
    made.close()


def living() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@ray.remote(resources={"there": 0.1}, num_cpus=0)
def there(size: int) -> Any:
    return np.full(size, 7, np.uint8)


@ray.remote(resources={"there": 0.1}, num_cpus=0)
def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


def test_tasks_go_where_their_resources_are_and_results_come_back(fleet: Fleet) -> None:
    here = fleet.add()
    other = fleet.add(resources={"there": 1})
    ray.init(here["session_dir"])
    until(lambda: living() == 2, "both nodes are known")
    assert ray.get(where.remote(), timeout=30) == other["node_id"]
    for size in (10, 200_000, 20 << 20):
        array = ray.get(there.remote(size), timeout=30)
        assert array.nbytes == size and (array == 7).all()


def test_an_argument_is_fetched_by_the_node_that_needs_it(fleet: Fleet) -> None:
    here = fleet.add()
    fleet.add(resources={"there": 1})
    ray.init(here["session_dir"])
    until(lambda: living() == 2, "both nodes are known")
    data = ray.put(np.arange(1 << 20))

    @ray.remote(resources={"there": 0.1}, num_cpus=0)
    def total(array: Any) -> int:
        return int(array.sum())

    assert ray.get(total.remote(data), timeout=30) == (1 << 20) * ((1 << 20) - 1) // 2


def test_an_actor_on_another_node_keeps_the_order_of_calls(fleet: Fleet) -> None:
    here = fleet.add()
    fleet.add(resources={"there": 1})
    ray.init(here["session_dir"])
    until(lambda: living() == 2, "both nodes are known")

    @ray.remote(resources={"there": 0.1}, num_cpus=0)
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def add(self, number: int) -> None:
            self.seen.append(number)

        def all(self) -> list[int]:
            return self.seen

    log = Log.remote()
    for number in range(500):
        log.add.remote(number)
    assert ray.get(log.all.remote(), timeout=30) == list(range(500))


def test_a_killed_node_is_noticed_and_its_tasks_run_elsewhere(fleet: Fleet) -> None:
    here = fleet.add(num_cpus=0)
    victim = fleet.add(resources={"there": 1})
    ray.init(here["session_dir"])
    until(lambda: living() == 2, "both nodes are known")

    @ray.remote(resources={"there": 1}, num_cpus=0)
    def slow(seconds: float) -> str:
        time.sleep(seconds)
        return str(ray.get_runtime_context().get_node_id())

    running = slow.remote(2.0)
    until(lambda: ray.available_resources().get("there", 0) < 1, "the task runs")
    os.kill(victim["pid"], signal.SIGKILL)
    began = time.monotonic()
    replacement = fleet.add(resources={"there": 1})
    assert ray.get(running, timeout=30) == replacement["node_id"]
    assert time.monotonic() - began < 15
    until(lambda: living() == 2, "the dead node is listed as dead")


def test_sigterm_ends_an_idle_node_at_once_and_lets_a_busy_one_finish(fleet: Fleet) -> None:
    here = fleet.add()
    idle = fleet.add(resources={"other": 1})
    busy = fleet.add(resources={"there": 1})
    ray.init(here["session_dir"])
    until(lambda: living() == 3, "all nodes are known")

    @ray.remote(resources={"there": 1}, num_cpus=0)
    def finish() -> str:
        time.sleep(1.5)
        return "done"

    result = finish.remote()
    until(lambda: ray.available_resources().get("there", 0) < 1, "the task runs")
    for node in (idle, busy):
        os.kill(node["pid"], signal.SIGTERM)
    until(lambda: not alive(idle["pid"]), "the idle node ends")
    assert ray.get(result, timeout=30) == "done"
    until(lambda: not alive(busy["pid"]), "the busy node ends after its task")
    assert not Path(idle["session_dir"]).exists() and not Path(busy["session_dir"]).exists()


def test_a_head_that_is_killed_and_comes_back_is_no_event(tmp_path: Path) -> None:
    fleet = Fleet(f"sqlite:{tmp_path}/head.sqlite")
    try:
        node = fleet.add(num_cpus=2)
        ray.init(node["session_dir"])

        @ray.remote
        class Counter:
            def __init__(self) -> None:
                self.count = 0

            def more(self) -> int:
                self.count += 1
                return self.count

        counter = Counter.options(name="counter", lifetime="detached").remote()
        assert ray.get(counter.more.remote(), timeout=30) == 1
        port = int(fleet.address.rpartition(":")[2])
        os.kill(fleet.head["pid"], signal.SIGKILL)
        until(lambda: not alive(fleet.head["pid"]), "the head is gone")
        assert ray.get(counter.more.remote(), timeout=10) == 2, "what runs goes on without the head"
        assert ray.get(there.options(resources={}).remote(10), timeout=10).nbytes == 10
        fleet.start_head(port)
        assert ray.get(ray.get_actor("counter").more.remote(), timeout=30) == 3
        late = Counter.remote()
        assert ray.get(late.more.remote(), timeout=30) == 1, "new actors are made again"
    finally:
        fleet.close()


def test_a_node_with_a_wrong_token_cannot_join(fleet: Fleet) -> None:
    fleet.token = "wrong"
    with pytest.raises(RuntimeError, match="token"):
        fleet.add()
