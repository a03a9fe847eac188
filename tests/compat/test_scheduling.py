"""Resources, scheduling and placement groups"""

from __future__ import annotations

import os

import pytest


def strategies(ray):
    return ray.util.scheduling_strategies


def test_what_the_cluster_has(session):
    """`cluster_resources` and `nodes` tell totals, custom resources and labels; what is held is not free."""
    total = session.cluster_resources()
    assert (total["CPU"], total["GPU"], total["special"]) == (4, 2, 2)
    [node] = session.nodes()
    assert node["Alive"] and node["Labels"]["zone"] == "a"
    assert session.get_runtime_context().get_node_id() == node["NodeID"]


def test_custom_resources(session):
    """A task that asks for more of a resource than is free waits; other tasks go on."""

    @session.remote(num_cpus=0, resources={"special": 2})
    class All:
        def ping(self):
            return True

    @session.remote(num_cpus=0, resources={"special": 1})
    def one():
        return 1

    holder = All.remote()
    session.get(holder.ping.remote())
    ready, _ = session.wait([one.remote()], timeout=1)
    assert not ready
    session.kill(holder)
    assert session.get(one.remote(), timeout=60) == 1


def test_gpus(session):
    """Each GPU task has GPUs of its own, in `get_gpu_ids` and CUDA_VISIBLE_DEVICES; fractions share one."""

    @session.remote(num_gpus=1)
    class One:
        def gpus(self):
            return session.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    both = [One.remote(), One.remote()]
    found = session.get([one.gpus.remote() for one in both])
    assert sorted(int(ids[0]) for ids, _ in found) == [0, 1]
    assert all(str(ids[0]) == shown for ids, shown in found)
    for one in both:
        session.kill(one)

    @session.remote(num_gpus=0.5)
    def half():
        return session.get_gpu_ids()

    assert len(session.get(half.remote(), timeout=60)) == 1


def test_threads(session):
    """OMP_NUM_THREADS follows `num_cpus`."""

    @session.remote(num_cpus=3)
    def threads():
        return os.environ["OMP_NUM_THREADS"]

    if "OMP_NUM_THREADS" not in os.environ:
        assert session.get(threads.remote()) == "3"


def test_node_affinity(session):
    """NodeAffinitySchedulingStrategy runs a task on its node; a node that is not there is an error."""
    here = session.get_runtime_context().get_node_id()
    affinity = strategies(session).NodeAffinitySchedulingStrategy

    @session.remote(max_retries=0)
    def where():
        return session.get_runtime_context().get_node_id()

    assert session.get(where.options(scheduling_strategy=affinity(here, soft=False)).remote()) == here
    gone = "ab" * 28
    with pytest.raises(session.exceptions.TaskUnschedulableError):
        session.get(where.options(scheduling_strategy=affinity(gone, soft=False)).remote(), timeout=60)
    soft = where.options(scheduling_strategy=affinity(gone, soft=True))
    assert session.get(soft.remote(), timeout=60) == here


def test_label_selectors(session):
    """`label_selector` takes values, negations and lists; a fallback is tried when no node matches."""

    @session.remote
    def f():
        return "ran"

    for selector in ({"zone": "a"}, {"zone": "!b"}, {"zone": "in(a, b)"}):
        assert session.get(f.options(label_selector=selector).remote(), timeout=60) == "ran"
    nowhere = f.options(label_selector={"zone": "b"})
    ready, _ = session.wait([nowhere.remote()], timeout=1)
    assert not ready
    fallback = [{"label_selector": {"zone": "a"}}]
    either = f.options(label_selector={"zone": "b"}, fallback_strategy=fallback)
    assert session.get(either.remote(), timeout=60) == "ran"


def test_wrong_strategies(session):
    """Strategies are checked: an unknown name is a ValueError, a group and a strategy exclude each other."""

    @session.remote
    def f():
        return 1

    with pytest.raises(ValueError):
        f.options(scheduling_strategy="SOMEHOW").remote()


def test_placement_groups(session):
    """A group reserves its bundles; tasks and actors run inside; `ready` and `wait` tell when it is there."""
    group = session.util.placement_group([{"CPU": 1}, {"CPU": 2}], strategy="PACK")
    assert group.wait(60) and session.get(group.ready(), timeout=60)
    inside = strategies(session).PlacementGroupSchedulingStrategy

    @session.remote(num_cpus=2)
    def wide():
        return session.util.get_current_placement_group() is not None

    assert session.get(wide.options(scheduling_strategy=inside(group, 1)).remote(), timeout=60)
    with pytest.raises(ValueError):
        wide.options(scheduling_strategy=inside(group, 0)).remote() and wide.options(
            scheduling_strategy=inside(group, 9)
        ).remote()
    session.util.remove_placement_group(group)


def test_groups_that_wait(session):
    """A group that does not fit waits, and `wait` says False after its time."""
    group = session.util.placement_group([{"CPU": 100}])
    assert group.wait(1) is False
    session.util.remove_placement_group(group)


def test_removed_groups_end_their_actors(session):
    """The actors of a removed group die: RayActorError."""

    @session.remote(num_cpus=1)
    class Member:
        def ping(self):
            return "pong"

    group = session.util.placement_group([{"CPU": 1}])
    inside = strategies(session).PlacementGroupSchedulingStrategy(group)
    member = Member.options(scheduling_strategy=inside).remote()
    assert session.get(member.ping.remote(), timeout=60) == "pong"
    session.util.remove_placement_group(group)
    with pytest.raises(session.exceptions.RayActorError):
        for _ in range(200):
            session.get(member.ping.remote(), timeout=60)


def test_group_checks(session):
    """Empty bundles, negative amounts and unknown strategies are refused."""
    for bundles, strategy in (([], "PACK"), ([{}], "PACK"), ([{"CPU": 1}], "TIGHT"), ([{"CPU": 0}], "PACK")):
        with pytest.raises(ValueError):
            session.util.placement_group(bundles, strategy=strategy)

