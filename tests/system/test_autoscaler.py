"""A cluster that grows with what waits in it and shrinks when nothing does, with real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import miniray
from miniray.autoscaler import Autoscaler, LocalProvider, NodeKind
from miniray.cluster_utils import Cluster
from miniray.util.placement_group import placement_group, remove_placement_group
from tests.system.support import eventually


@pytest.fixture
def cluster() -> Iterator[Any]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, connect=True)
    yield cluster
    miniray.shutdown()
    cluster.shutdown()


class Moody(LocalProvider):
    """Fails the first time, in both directions."""

    failures = 0

    def start(self, kind: NodeKind, handle: str) -> None:
        if self.failures == 0:
            self.failures = 1
            raise RuntimeError("no machine is free")
        super().start(kind, handle)

    def stop(self, handle: str) -> None:
        if self.failures == 1:
            self.failures = 2
            raise KeyError("the cloud is away")
        super().stop(handle)


def nodes_alive() -> int:
    return sum(node["Alive"] for node in miniray.nodes())


def test_nodes_come_for_tasks_actors_and_groups_and_go_when_they_are_idle(cluster: Any) -> None:
    address = cluster.address
    provider = Moody(address, cluster._token)
    special = NodeKind("special", {"CPU": 1, "rare": 1}, max_nodes=1)
    kinds = [NodeKind("worker", {"CPU": 2}, max_nodes=3), special]
    scaler = Autoscaler(
        provider, kinds, address, token=cluster._token, idle_s=1.0, interval_s=0.2, start_within_s=60.0
    )

    @miniray.remote(num_cpus=2)
    def where() -> str:
        return miniray.get_runtime_context().get_node_id()

    @miniray.remote(resources={"rare": 1})
    class Special:
        def where(self) -> str:
            return miniray.get_runtime_context().get_node_id()

    try:
        with scaler:
            head = miniray.get_runtime_context().get_node_id()
            assert miniray.get(where.remote(), timeout=120) != head, "a node came for the task"
            actor = Special.remote()
            home = miniray.get(actor.where.remote(), timeout=120)
            assert home != head
            group = placement_group([{"CPU": 2}] * 2, strategy="STRICT_SPREAD")
            assert group.wait(120)
            remove_placement_group(group)
            eventually(lambda: nodes_alive() == 2, "all go but the head's and the actor's", 120)
            assert miniray.get(actor.where.remote(), timeout=60) == home
            miniray.kill(actor)
            eventually(lambda: nodes_alive() == 1, "nothing is left to live for", 120)
            eventually(lambda: not provider.nodes, "and their processes have ended", 60)
            assert provider.failures == 2, "and failed once each way"
    finally:
        provider.close()


def test_what_no_kind_can_serve_is_said_and_starts_nothing(cluster: Any) -> None:
    provider = LocalProvider(cluster.address, cluster._token)
    scaler = Autoscaler(
        provider, [NodeKind("worker", {"CPU": 2})], cluster.address, token=cluster._token, idle_s=1.0
    )

    @miniray.remote(num_cpus=64)
    def large() -> None: ...

    pending = large.remote()
    eventually(lambda: scaler.look().refused, "the demand is published")
    assert scaler.last.refused == ["no node type has {CPU: 64}"] and not provider.nodes
    miniray.cancel(pending)
