"""Programs on clusters of their own: spreading, waiting for remote objects, arguments that hardly fit."""

from __future__ import annotations

import time

import numpy as np
import pytest

import miniray as ray


def test_spread_tasks_go_round_even_one_at_a_time(ray_start_cluster):
    cluster = ray_start_cluster
    cluster.add_node(num_cpus=4)
    ray.init(cluster.address)
    cluster.add_node(num_cpus=4)

    @ray.remote(scheduling_strategy="SPREAD")
    def where():
        return ray.get_runtime_context().get_node_id()

    assert len({ray.get(where.remote()) for _ in range(4)}) == 2


def test_what_wait_reports_ready_is_here(ray_start_cluster):
    from miniray._testing import object_exists

    cluster = ray_start_cluster
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address)
    cluster.add_node(num_cpus=1, resources={"far": 1})

    @ray.remote(resources={"far": 1})
    def make():
        return np.zeros(5_000_000, np.uint8)

    refs = [make.remote(), make.remote()]
    ready, _ = ray.wait([refs[0]], fetch_local=False)
    assert ready == [refs[0]] and not object_exists(refs[0])
    ready, _ = ray.wait([refs[1]])
    assert ready == [refs[1]] and object_exists(refs[1])
    found = ray.experimental.get_object_locations(refs)
    assert [len(found[ref]["node_ids"]) for ref in refs] == [1, 2]


def test_the_future_of_an_object_elsewhere(ray_start_cluster):
    cluster = ray_start_cluster
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address)
    cluster.add_node(num_cpus=1, resources={"far": 1})

    @ray.remote(resources={"far": 1})
    def make():
        return np.ones(1_000_000, np.uint8)

    assert [make.remote().future().result(timeout=60).sum() for _ in range(3)] == [1_000_000] * 3


@pytest.mark.slow
def test_tasks_whose_arguments_fit_only_one_at_a_time_all_run(ray_start_cluster):
    cluster = ray_start_cluster
    size, count = 10_000_000, 6
    cluster.add_node(num_cpus=0, object_store_memory=500_000_000)
    ray.init(cluster.address)
    cluster.add_node(num_cpus=3, object_store_memory=90_000_000)

    @ray.remote
    def total(*arrays):
        return sum(int(array[0]) for array in arrays)

    calls = [total.remote(*[ray.put(np.full(size, n, np.uint8)) for _ in range(count)]) for n in range(6)]
    assert ray.get(calls, timeout=100) == [count * n for n in range(6)]
    too_much = [ray.put(np.zeros(size, np.uint8)) for _ in range(12)]
    with pytest.raises(ray.exceptions.ObjectStoreFullError):
        ray.get(total.remote(*too_much), timeout=100)
    assert ray.get(total.remote(too_much[0]), timeout=100) == 0, "nothing was lost"


def test_the_state_of_the_whole_cluster_is_asked_for_on_every_node(ray_start_cluster, wait_until, tmp_path):
    from miniray.util import state

    cluster = ray_start_cluster
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address)
    far = cluster.add_node(num_cpus=1, resources={"far": 2})
    done = tmp_path / "done"

    @ray.remote(num_cpus=0)
    def inner():
        while not done.exists():
            time.sleep(0.01)

    @ray.remote(resources={"far": 1})
    def outer():
        ray.get(inner.options(resources={"far": 1}).remote())

    def running():
        rows = state.list_tasks(filters=[("state", "=", "RUNNING")])
        return {row.name: row.node_id for row in rows if row.worker_pid}

    try:
        ref = outer.remote()
        wait_until(lambda: running() == {"outer": far.node_id, "inner": far.node_id})
        pids = {row.pid for row in state.list_workers(filters=[("node_id", "=", far.node_id)])}
        assert {row.worker_pid for row in state.list_tasks()} <= pids
        sent = [("task_status", "=", "SUBMITTED_TO_WORKER")]
        owners = {row.pid for row in state.list_objects(filters=sent)}
        assert len(owners) == 2, "the driver, and the task on the other node"
    finally:
        done.touch()
    ray.get(ref)
