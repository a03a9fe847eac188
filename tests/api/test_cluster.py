"""Several real nodes on this machine through `cluster_utils.Cluster`."""

from __future__ import annotations

import os

import numpy as np
import pytest

import miniray as ray
from miniray.cluster_utils import Cluster
from miniray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1, resources={"second": 1}, labels={"zone": "two"})
    ray.init(cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@ray.remote
def where():
    return ray.get_runtime_context().get_node_id()


def get(ref):
    return ray.get(ref, timeout=30)


def test_nodes_and_resources(cluster):
    cluster.wait_for_nodes()
    assert {node["NodeID"] for node in ray.nodes() if node["Alive"]} == {
        node.node_id for node in cluster.list_all_nodes()
    }
    assert ray.cluster_resources()["CPU"] == 2
    assert ray.get_runtime_context().get_node_id() == cluster.head_node.node_id
    assert ray.get_runtime_context().gcs_address == cluster.address


def test_resources_decide_where_a_task_runs(cluster):
    second = next(iter(cluster.worker_nodes))
    assert get(where.options(resources={"second": 0.1}).remote()) == second.node_id


def test_affinity_and_labels_decide_where_a_task_runs(cluster):
    second = next(iter(cluster.worker_nodes))
    for node in cluster.list_all_nodes():
        strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        assert get(where.options(scheduling_strategy=strategy).remote()) == node.node_id
    assert get(where.options(label_selector={"zone": "two"}).remote()) == second.node_id
    first = cluster.head_node.node_id
    for rule, node_id in ((In("two", "ten"), second.node_id), (NotIn("two"), first),
                          (Exists(), second.node_id), (DoesNotExist(), first)):  # fmt: skip
        hard = NodeLabelSchedulingStrategy(hard={"zone": rule})
        assert get(where.options(scheduling_strategy=hard).remote()) == node_id, rule


def test_objects_and_actors_cross_nodes(cluster):
    @ray.remote(resources={"second": 0.1})
    class Far:
        def sum(self, array):
            return float(array.sum())

        def make(self, n):
            return np.ones(n)

    far = Far.remote()
    array = np.ones(2_000_000)
    assert get(far.sum.remote(ray.put(array))) == 2_000_000
    assert get(far.make.remote(1_000_000)).shape == (1_000_000,)


def test_dead_node_is_noticed(cluster, wait_until):
    node = cluster.add_node(num_cpus=1, resources={"third": 1})
    assert get(where.options(resources={"third": 1}).remote()) == node.node_id
    cluster.remove_node(node, allow_graceful=False)
    cluster.wait_for_nodes(timeout=10)
    assert not node.alive()
    row = next(row for row in ray.nodes() if row["NodeID"] == node.node_id)
    assert not row["Alive"]
    assert not os.path.exists(node.session_dir)


def test_graceful_leave(cluster):
    node = cluster.add_node(num_cpus=1)
    cluster.remove_node(node)
    cluster.wait_for_nodes(timeout=10)
