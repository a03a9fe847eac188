"""A head that is killed again and again, at random moments: nothing that it has acknowledged is lost.

A thread makes what a head must remember, one thing after the other, and notes each when its call has
returned: keys, actors that live, actors that wait for resources, placement groups. Meanwhile the head
is killed and started again on its port, and with Redis below it, so is that.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import miniray as ray
from miniray._proto import gcs_pb2 as gcs
from miniray.runtime import launch
from miniray.runtime.daemon import HeadOptions, NodeOptions
from miniray.runtime.worker import current
from miniray.util import state
from tests.runtime.redis_server import RedisServer
from tests.system.support import alive, eventually

KILLS = 8
ROOM = b"head-restarts"


class Cluster:
    """A head on a port of its own, one node, and this process as their driver."""

    def __init__(self, storage: str) -> None:
        self._token = secrets.token_hex(16)
        self._storage = storage
        self._port = 0
        self.head = 0
        self.start_head()
        node = launch.start_daemon("node", NodeOptions(
            gcs_address=f"127.0.0.1:{self._port}", token=self._token, driver_pid=os.getpid(), num_cpus=2,
            num_gpus=0, object_store_memory=80 << 20))
        self._node: int = node["pid"]
        ray.init(node["session_dir"])

    def start_head(self) -> None:
        options = HeadOptions(
            port=self._port, token=self._token, storage=self._storage, driver_pid=os.getpid())
        ready = launch.start_daemon("head", options)
        self.head, self._port = ready["pid"], int(ready["address"].rpartition(":")[2])

    def kill_head(self) -> None:
        os.kill(self.head, signal.SIGKILL)
        eventually(lambda: not alive(self.head), "the head is gone")

    def close(self) -> None:
        ray.shutdown()
        for pid in (self._node, self.head):
            eventually(lambda pid=pid: not _told_to_end(pid), "the daemon has ended")


def _told_to_end(pid: int) -> bool:
    """Whether it lives; a second SIGTERM means that running work is not waited for."""
    if alive(pid):
        os.kill(pid, signal.SIGTERM)
        return True
    return False


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def more(self) -> int:
        self.count += 1
        return self.count


class Maker(threading.Thread):
    """Makes one thing after the other; `made` has what was acknowledged."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self._rng = random.Random(seed)
        self._enough = threading.Event()
        self.count = 0
        self.keys: dict[bytes, bytes] = {}
        self.living: list[str] = []
        self.waiting: list[str] = []
        self.groups: list[Any] = []
        self.problem: Exception | None = None

    def run(self) -> None:
        seldom: list[Callable[[int], None]] = [self._actor, self._waiter, self._group]
        try:
            while not self._enough.is_set():
                self.count += 1
                step = seldom[self.count // 4 % 3] if self.count % 4 == 0 else self._key
                step(self.count)
        except Exception as error:
            self.problem = error

    def stop(self) -> None:
        self._enough.set()
        self.join(90)
        assert not self.is_alive(), "a call has not come back"
        assert self.problem is None, self.problem

    def _key(self, number: int) -> None:
        key, value = b"key%d" % self._rng.randrange(50), b"value%d" % number
        current().request("kv_put", gcs.KvPut(namespace=ROOM, key=key, value=value, overwrite=True))
        self.keys[key] = value

    def _actor(self, number: int) -> None:
        Counter.options(name=f"living{number}", lifetime="detached").remote()
        self.living.append(f"living{number}")

    def _waiter(self, number: int) -> None:
        Counter.options(name=f"waiting{number}", lifetime="detached", num_gpus=1).remote()
        self.waiting.append(f"waiting{number}")

    def _group(self, number: int) -> None:
        group = ray.util.placement_group([{"CPU": 0.001}])
        assert group.wait(90)
        self.groups.append(group)


@pytest.fixture(params=["sqlite", "redis"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, RedisServer | None]]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/head.sqlite", None
        return
    directory = Path(tempfile.mkdtemp(prefix="miniray-redis-"))
    server = RedisServer(directory)
    yield server.url, server
    server.kill()
    shutil.rmtree(directory)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
@pytest.mark.timeout(400)
def test_nothing_acknowledged_is_lost(storage: tuple[str, RedisServer | None], seed: int) -> None:
    url, server = storage
    rng = random.Random(seed)
    cluster = Cluster(url)
    try:
        first = Counter.options(name="first", lifetime="detached").remote()
        assert ray.get(first.more.remote(), timeout=60) == 1
        maker = Maker(seed)
        maker.start()
        for kill in range(KILLS):
            goal = maker.count + rng.randrange(7)
            eventually(lambda goal=goal: maker.count >= goal or maker.problem, "work goes on")
            if server is not None and kill % 3 == 1:
                server.kill()
                server.start()
            cluster.kill_head()
            cluster.start_head()
        maker.stop()
        for key, value in maker.keys.items():
            found = current().request("kv_get", gcs.KvGet(namespace=ROOM, key=key)).kv
            assert found.value == value, key
        assert ray.get(first.more.remote(), timeout=60) == 2, "an actor that lived has not been started anew"
        for name in maker.living:
            assert ray.get(ray.get_actor(name).more.remote(), timeout=60) == 1, name
        states = {row.name: row.state for row in state.list_actors(limit=10_000)}
        assert [states.get(name) for name in maker.waiting] == ["PENDING_CREATION"] * len(maker.waiting)
        groups = {row.placement_group_id: row.state for row in state.list_placement_groups(limit=10_000)}
        assert [groups.get(group.id.hex()) for group in maker.groups] == ["CREATED"] * len(maker.groups)
        assert maker.living and maker.waiting and maker.groups, "something was made of everything"
    finally:
        cluster.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_head_whose_tables_are_gone_ends_nothing_but_itself(
    storage: tuple[str, RedisServer | None], tmp_path: Path
) -> None:
    url, server = storage
    cluster = Cluster(url)
    try:
        first = Counter.options(name="first", lifetime="detached").remote()
        assert ray.get(first.more.remote(), timeout=60) == 1
        cluster.kill_head()
        _move_tables(tmp_path, server, away=True)
        cluster.start_head()
        eventually(lambda: not alive(cluster.head), "the head with empty tables ends", 60)
        assert ray.get(first.more.remote(), timeout=60) == 2, "what runs goes on"
        _move_tables(tmp_path, server, away=False)
        cluster.start_head()
        assert ray.get(ray.get_actor("first").more.remote(), timeout=60) == 3
        ray.kill(first)
    finally:
        cluster.close()


def _move_tables(directory: Path, server: RedisServer | None, away: bool) -> None:
    """Take all that is in the storage away, or put it back in place of what is there now."""
    before, after = ("", "kept-") if away else ("kept-", "")
    if server is None:
        for path in directory.glob("head.sqlite*" if away else "kept-head.sqlite*"):
            path.replace(directory / f"{after}{path.name.removeprefix(before)}")
        return
    import redis

    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        for key in ("miniray:rows", "miniray:state"):
            client.rename(before + key, after + key)
