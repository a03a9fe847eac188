"""An actor that every running task waits for is made although more tasks wait than there are CPUs."""

from __future__ import annotations

import pytest

import miniray as ray

TASKS = 300


@pytest.fixture(autouse=True)
def session():
    ray.init(num_cpus=1)
    yield
    ray.shutdown()


def test_tasks_that_wait_for_an_actor_do_not_keep_it_from_its_cpu():
    @ray.remote
    class Counter:
        def __init__(self):
            self.inside = self.peak = 0

        def enter(self):
            self.inside += 1
            self.peak = max(self.peak, self.inside)

        def leave(self):
            self.inside -= 1

        def most(self):
            return self.peak

    @ray.remote(num_cpus=1)
    def child():
        return 1

    @ray.remote(num_cpus=1)
    def parent(counter):
        ray.get(counter.enter.remote())
        result = ray.get(child.remote())
        ray.get(counter.leave.remote())
        return result

    counter = Counter.remote()
    assert ray.get([parent.remote(counter) for _ in range(TASKS)], timeout=120) == [1] * TASKS
    assert ray.get(counter.most.remote()) < TASKS // 2, "each of the tasks has got a process"
