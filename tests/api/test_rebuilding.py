"""Objects that are made again after a node has died, as a program sees it."""

from __future__ import annotations

import numpy as np
import pytest

import miniray as ray


def test_a_task_gives_its_resources_up_while_its_argument_is_made_again(ray_start_cluster, wait_until):
    """The lost argument can only be made where the task that wants it would sit."""
    cluster = ray_start_cluster
    cluster.add_node(num_cpus=0)
    ray.init(cluster.address)
    doomed = cluster.add_node(num_cpus=1, resources={"place": 1})

    @ray.remote(resources={"place": 1})
    def make():
        return np.ones(2_000_000, np.uint8)

    @ray.remote(resources={"place": 1})
    def use(array):
        return int(array.sum())

    made = make.remote()
    assert ray.get(use.remote(made)) == 2_000_000
    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(num_cpus=1, resources={"place": 1})
    assert ray.get(use.remote(made), timeout=60) == 2_000_000


def test_what_cannot_be_made_again_stays_while_something_is_made_of_it(ray_start_cluster):
    cluster = ray_start_cluster
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address)
    doomed = cluster.add_node(num_cpus=1, resources={"place": 1})

    @ray.remote(resources={"place": 0.1})
    def doubled(array):
        return array * 2

    source = ray.put(np.ones(2_000_000, np.uint8))
    result = doubled.remote(source)
    ray.wait([result], fetch_local=False)
    del source
    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(num_cpus=1, resources={"place": 1})
    assert int(ray.get(result, timeout=60).sum()) == 4_000_000


def test_results_of_an_actor_with_retries_are_made_again_once_it_is_back(ray_start_cluster):
    cluster = ray_start_cluster
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address)
    doomed = cluster.add_node(num_cpus=1, resources={"place": 2})

    @ray.remote(num_cpus=0, resources={"place": 1}, max_restarts=-1)
    class Maker:
        def make(self):
            return np.ones(2_000_000, np.uint8)

    @ray.remote(num_cpus=0)
    def use(array):
        return int(array.sum())

    maker = Maker.options(max_task_retries=-1).remote()
    made = maker.make.remote()
    once = maker.make.options(max_task_retries=0).remote()
    ray.wait([made, once], num_returns=2, fetch_local=False)
    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(num_cpus=1, resources={"place": 2})
    assert ray.get(use.remote(made), timeout=60) == 2_000_000
    with pytest.raises(ray.exceptions.ObjectReconstructionFailedError):
        ray.get(once, timeout=60)
