"""A session without CPUs keeps no workers that have nothing to do."""

import pytest

import miniray as ray
from miniray.util.state import list_workers


@pytest.fixture
def session():
    ray.init(num_cpus=0)
    yield
    ray.shutdown()


def workers():
    alive = [("worker_type", "=", "WORKER"), ("is_alive", "=", "True")]
    return list_workers(filters=alive, raise_on_missing_output=False)


def test_workers_come_for_tasks_and_leave_when_idle(session, wait_until):
    @ray.remote(num_cpus=0)
    def double(number):
        return 2 * number

    assert workers() == []
    assert ray.get(double.remote(4)) == 8
    wait_until(lambda: workers() == [], timeout_s=60)
    assert ray.get(double.remote(5)) == 10
