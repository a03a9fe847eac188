"""The raylet's patience with the store's mutex: it ends who stands still, and waits for who is slow."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from miniray import _native
from miniray.runtime import agent
from miniray.runtime.node_store import LOCK_ATTEMPTS, NodeStore


class HeldStore:
    """A store whose mutex another process holds until it ends, or for `turns` calls."""

    def __init__(self, holder: subprocess.Popen[bytes], turns: int = 10**9) -> None:
        self.holder = holder
        self.turns = turns
        self.deleted: list[bytes] = []

    def set_lock_timeout(self, seconds: float) -> None:
        pass

    def delete(self, object_id: bytes) -> None:
        self.turns -= 1
        if self.turns >= 0 and self.holder.poll() is None:
            busy = _native.StoreBusy("held")
            busy.pid, busy.holder = self.holder.pid, 1
            raise busy
        self.deleted.append(object_id)


@pytest.fixture
def holder() -> Any:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    yield process
    process.kill()
    process.wait()


def test_a_stopped_holder_is_ended(holder: subprocess.Popen[bytes]) -> None:
    holder.send_signal(signal.SIGSTOP)
    while not agent.is_stopped(holder.pid):
        pass

    class Waiting(HeldStore):
        def delete(self, object_id: bytes) -> None:
            try:
                super().delete(object_id)
            finally:
                try:
                    holder.wait(0.05)
                except subprocess.TimeoutExpired:
                    pass

    native: Any = Waiting(holder)
    NodeStore(native).delete([b"x"])
    assert native.deleted == [b"x"] and holder.returncode == -signal.SIGKILL


def test_a_slow_holder_is_waited_for(holder: subprocess.Popen[bytes]) -> None:
    native: Any = HeldStore(holder, turns=LOCK_ATTEMPTS - 1)
    NodeStore(native).delete([b"x"])
    assert native.deleted == [b"x"] and holder.poll() is None


def test_surveys_name_makers_and_readers() -> None:
    native = _native.Store.create(1 << 20)
    store = NodeStore(native)
    slot = store.open_client(b"w" * 28)
    client = _native.Store.attach(native.fd, slot)
    client.put(b"a" * 28, [b"x" * 100])
    view = memoryview(client.get(b"a" * 28))
    survey = store.survey()
    (item,) = survey.objects
    assert item.creator == b"w" * 28 and item.readers == (b"w" * 28,) and item.pinned and item.primary
    view.release()
    store.delete([b"a" * 28, b"b" * 28])
    store.reap_client(slot)
    assert store.survey().objects == [] and native.stats()["clients"] == 1
