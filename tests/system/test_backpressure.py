"""A driver with too many unfinished tasks waits in `remote()`; nobody else ever does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import miniray as ray

LIMIT = 10


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MINIRAY_SUBMIT_LIMIT", str(LIMIT))
    ray.init(num_cpus=1)
    yield
    ray.shutdown()


@ray.remote
def wait_for(path: Path) -> bool:
    while not path.exists():
        time.sleep(0.01)
    return True


@ray.remote
def one() -> int:
    return 1


@pytest.mark.usefixtures("limited")
def test_a_driver_waits_at_the_limit_until_a_task_has_ended(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    refs = [wait_for.remote(gate) for _ in range(LIMIT)]
    more = threading.Thread(target=lambda: refs.append(one.remote()))
    more.start()
    more.join(0.5)
    assert more.is_alive() and len(refs) == LIMIT
    gate.touch()
    more.join(30)
    assert not more.is_alive() and ray.get(refs, timeout=30) == [True] * LIMIT + [1]


@pytest.mark.usefixtures("limited")
def test_many_more_tasks_than_the_limit_are_submitted_and_done() -> None:
    assert sum(ray.get([one.remote() for _ in range(50 * LIMIT)], timeout=60)) == 50 * LIMIT


@pytest.mark.usefixtures("limited")
def test_a_worker_never_waits() -> None:
    @ray.remote
    def submit(count: int) -> int:
        return len([one.remote() for _ in range(count)])  # they have no CPU before this task ends

    assert ray.get(submit.remote(5 * LIMIT), timeout=60) == 5 * LIMIT


@pytest.mark.usefixtures("limited")
def test_a_callback_never_waits(tmp_path: Path) -> None:
    gate, submitted = tmp_path / "gate", threading.Event()
    refs = []

    def submit_more(_: object) -> None:
        refs.extend(one.remote() for _ in range(2 * LIMIT))
        submitted.set()

    first = one.remote()
    first.future().add_done_callback(submit_more)
    refs += [wait_for.remote(gate) for _ in range(LIMIT - 1)]
    assert submitted.wait(30)
    gate.touch()
    assert len(ray.get(refs, timeout=60)) == 3 * LIMIT - 1
