"""A cluster that grows with what waits in it and shrinks when nothing does, with real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import miniray
from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.autoscaler import HANDLE_LABEL, TYPE_LABEL, Autoscaler, LocalProvider, NodeKind
from miniray.autoscaler.autoscaler import Decision
from miniray.cluster_utils import AutoscalingCluster, Cluster
from miniray.util.placement_group import placement_group, remove_placement_group
from tests.system.support import Effects, eventually
from tests.system.test_head_restarts import Cluster as MortalHead


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


@pytest.mark.slow
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


class Noting(LocalProvider):
    """Remembers what it was told."""

    def __init__(self, address: str, token: str) -> None:
        super().__init__(address, token)
        self.started: list[str] = []
        self.stopped: list[str] = []

    def start(self, kind: NodeKind, handle: str) -> None:
        self.started.append(handle)
        super().start(kind, handle)

    def stop(self, handle: str) -> None:
        self.stopped.append(handle)
        super().stop(handle)


class Counted(Autoscaler):
    """Counts its looks."""

    looks = 0

    def look(self) -> Decision:
        decision = super().look()
        self.looks += 1
        return decision


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_are_found_again_by_a_head_and_by_an_autoscaler_that_come_later(tmp_path: Path) -> None:
    cluster = MortalHead(str(tmp_path / "head.db"))
    address = f"127.0.0.1:{cluster._port}"
    provider = Noting(address, cluster._token)
    effects, enough = Effects(str(tmp_path / "effects")), tmp_path / "enough"

    def scaler(least: int, idle_s: float) -> Counted:
        return Counted(provider, [NodeKind("worker", {"CPU": 4}, least)], address, token=cluster._token,
                       idle_s=idle_s, interval_s=0.1)  # fmt: skip

    @miniray.remote(num_cpus=4, max_retries=0)
    def hold() -> str:
        effects.happened("runs")
        eventually(enough.exists, within_s=300)
        return miniray.get_runtime_context().get_node_id()

    try:
        with scaler(least=2, idle_s=3600.0) as first:
            eventually(lambda: nodes_alive() == 3, "two have come", 120)
            tasks = [hold.remote() for _ in range(2)]
            eventually(lambda: effects.count("runs") == 2, "both run on them", 120)
            cluster.kill_head()
            cluster.start_head()
            looks = first.looks
            eventually(lambda: first.looks > looks + 5, "it has looked at what the new head knows", 120)
            assert len(provider.started) == 2 and not provider.stopped
        with scaler(least=0, idle_s=1.0):
            enough.touch()
            assert len(set(miniray.get(tasks, timeout=120))) == 2
            eventually(lambda: not provider.nodes, "all have gone", 120)
            assert sorted(provider.stopped) == sorted(provider.started) and len(provider.started) == 2
    finally:
        cluster.close()
        provider.close()


class Told(Autoscaler):
    """Asks no head: `nodes` are what one would say, and what waits is a task of four CPUs."""

    nodes: tuple[pb.NodeInfo, ...] = ()

    def _ask(self, field_name: str, message: Any) -> gcs.ControlReply:
        reply = gcs.ControlReply()
        if field_name == "status":
            reply.status.nodes.extend(self.nodes)
            reply.status.demand.add(count=1).resources.amounts["CPU"] = 40_000
        return reply


class Paper:
    """A provider of nothing."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []

    def start(self, kind: NodeKind, handle: str) -> None:
        self.started.append(handle)

    def stop(self, handle: str) -> None:
        self.stopped.append(handle)


def paper_node(name: str, state: pb.NodeState, **available: int) -> pb.NodeInfo:
    info = pb.NodeInfo(node_id=name.encode(), state=state, labels={HANDLE_LABEL: name, TYPE_LABEL: "worker"})
    info.total.amounts["CPU"] = 40_000
    info.available.amounts.update(available)
    return info


def test_nodes_that_a_new_head_awaits_are_counted_on_and_those_that_died_are_let_go() -> None:
    provider = Paper()
    scaler = Told(provider, [NodeKind("worker", {"CPU": 4})], "nowhere:1", idle_s=0.0)
    scaler._scaler.options = replace(scaler._scaler.options, settle_s=0.0)
    scaler.nodes = (paper_node("awaited", pb.NODE_ALIVE),)
    assert scaler.look() == Decision(), "the task may fit there, so nothing is started, nor is it idle"
    scaler.nodes = (paper_node("awaited", pb.NODE_ALIVE, CPU=0), paper_node("old", pb.NODE_DEAD))
    assert scaler.look().start == {"worker": 1}
    scaler.nodes = (paper_node("awaited", pb.NODE_DEAD), paper_node("other", pb.NODE_DRAINING))
    scaler.look()
    assert provider.stopped == ["awaited"], "it died; one that died before is none of ours, another leaves"
    scaler.nodes = (paper_node("awaited", pb.NODE_DEAD), paper_node("other", pb.NODE_DEAD))
    scaler.look()
    scaler.look()
    assert provider.stopped == ["awaited", "other"], "each once"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rays_autoscaling_cluster_grows_and_shrinks() -> None:
    kinds = {"small": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}}
    cluster = AutoscalingCluster({"CPU": 0}, kinds, autoscaler_v2=True, idle_timeout_minutes=0.02)
    assert cluster.address is None
    cluster.start()
    try:
        miniray.init(cluster.address)
        node = miniray.remote(num_cpus=2)(lambda: miniray.get_runtime_context().get_node_id())
        head = miniray.get_runtime_context().get_node_id()
        assert head not in miniray.get([node.remote() for _ in range(4)])
        eventually(lambda: "CPU" not in miniray.cluster_resources(), within_s=200)
    finally:
        miniray.shutdown()
        cluster.shutdown()
        cluster.shutdown()
