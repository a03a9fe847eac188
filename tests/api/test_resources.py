"""What tasks and actors hold while they run and wait, and what the cluster says is free."""

from __future__ import annotations

import os

import numpy as np
import pytest

import miniray as ray
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

MIB = 2**20


@pytest.mark.parametrize("ray_start", [{"num_cpus": 1, "object_store_memory": 200 * MIB}], indirect=True)
def test_free_store_memory_follows_what_is_put(ray_start, wait_until):
    def free_is(mib):
        return abs(ray.available_resources()["object_store_memory"] - mib * MIB) < MIB

    wait_until(lambda: free_is(200))
    held = ray.put(np.zeros(50 * MIB, np.uint8))
    wait_until(lambda: free_is(150))
    assert ray.cluster_resources()["object_store_memory"] == 200 * MIB
    del held
    wait_until(lambda: free_is(200))


def test_a_waiting_actor_keeps_its_cpu_and_a_waiting_task_lends_it(ray_start):
    @ray.remote(num_cpus=2)
    def wide():
        return 1

    @ray.remote(num_cpus=1)
    class Holder:
        def wait(self):
            return ray.get(wide.remote())

    @ray.remote(num_cpus=2)
    def lender():
        return ray.get(wide.remote())

    assert ray.get(lender.remote(), timeout=30) == 1
    holder = Holder.remote()
    call = holder.wait.remote()
    ready, _ = ray.wait([call], timeout=1.0)
    assert not ready
    ray.kill(holder)


@pytest.fixture
def threads_are_not_named(monkeypatch):
    """By the environment, which would come first."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_libraries_get_as_many_threads_as_the_task_has_cpus(threads_are_not_named, ray_start):
    @ray.remote
    def threads():
        return os.environ["OMP_NUM_THREADS"]

    @ray.remote
    class Actor:
        def threads(self):
            return os.environ["OMP_NUM_THREADS"]

    assert ray.get(threads.remote()) == "1"
    assert ray.get(threads.options(num_cpus=2).remote()) == "2"
    assert ray.get(threads.options(num_cpus=0.5).remote()) == "1"
    assert ray.get(Actor.options(num_cpus=2).remote().threads.remote()) == "2"
    mine = {"env_vars": {"OMP_NUM_THREADS": "7"}}
    assert ray.get(threads.options(num_cpus=2, runtime_env=mine).remote()) == "7"
    group = ray.util.placement_group([{"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group)
    assert ray.get(threads.options(scheduling_strategy=inside).remote(), timeout=30) == "1"


def test_a_method_may_have_the_name_of_an_attribute(ray_start):
    @ray.remote
    class Counter:
        def __init__(self):
            self.value = 0

        def add(self):
            self.value += 1

        def value(self):
            return self.value

        @staticmethod
        def fixed():
            return "fixed"

        @classmethod
        def named(cls):
            return cls.__name__

    counter = Counter.remote()
    counter.add.remote()
    assert ray.get([counter.value.remote(), counter.fixed.remote(), counter.named.remote()]) == [
        1, "fixed", "Counter"
    ]  # fmt: skip


def test_actors_of_a_removed_group_say_so(ray_start):
    @ray.remote(num_cpus=1)
    class Member:
        def ping(self):
            return "pong"

    group = ray.util.placement_group([{"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group)
    member = Member.options(scheduling_strategy=inside).remote()
    assert ray.get(member.ping.remote()) == "pong"
    ray.util.remove_placement_group(group)
    with pytest.raises(ray.exceptions.ActorDiedError, match="(?s)actor died.*placement group"):
        for _ in range(1000):
            ray.get(member.ping.remote(), timeout=10)


def test_groups_that_come_and_go_use_the_same_processes(ray_start):
    @ray.remote(num_cpus=1)
    def process():
        return os.getpid()

    processes = set()
    for _ in range(12):
        group = ray.util.placement_group([{"CPU": 1}])
        inside = PlacementGroupSchedulingStrategy(group)
        processes.add(ray.get(process.options(scheduling_strategy=inside).remote(), timeout=60))
        ray.util.remove_placement_group(group)
    assert len(processes) <= 4, "removing a group ends what runs in it, not who waits there"


def test_an_actor_that_was_killed_before_it_ran_says_so(ray_start):
    @ray.remote(resources={"nowhere": 1})
    class Never:
        def ping(self):
            return "pong"

    never = Never.remote()
    ray.kill(never)
    with pytest.raises(ray.exceptions.ActorDiedError, match="killed by `ray.kill`"):
        ray.get(never.ping.remote(), timeout=30)
