"""A cluster over four hosts, each with an address of its own: everything crosses."""

from __future__ import annotations

import subprocess

from tests.netns.cluster import NetCluster


def test_tasks_actors_objects_and_groups_cross_hosts(shared_four: NetCluster) -> None:
    with shared_four.driver("""
    import numpy as np
    from miniray.util.placement_group import placement_group, remove_placement_group

    def address():
        return ray.util.get_node_ip_address()

    task = ray.remote(address)
    say(tasks=ray.get([task.options(**on(name)).remote() for name in NAMES]))

    @ray.remote
    class Keeper:
        def __init__(self): self.kept = None
        def keep(self, boxed): self.kept = boxed[0]; return address()
        def total(self): return int(ray.get(self.kept).sum())

    keepers = [Keeper.options(**on(name)).remote() for name in NAMES]
    made = ray.remote(lambda: np.arange(3_000_000)).options(**on("h2")).remote()
    say(actors=ray.get([keeper.keep.remote([made]) for keeper in keepers]),
        totals=ray.get([keeper.total.remote() for keeper in keepers]), sum=sum(range(3_000_000)))

    group = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=30)
    from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In
    inside = [task.options(num_cpus=1, scheduling_strategy=In(group, i)).remote() for i in range(4)]
    say(group=ray.get(inside, timeout=60))
    remove_placement_group(group)
    """) as driver:
        addresses = [host.address for host in shared_four.hosts]
        assert driver.hear()["tasks"] == addresses
        heard = driver.hear()
        assert heard["actors"] == addresses
        assert heard["totals"] == [heard["sum"]] * 4
        assert sorted(driver.hear()["group"]) == addresses


def test_a_driver_on_any_host_sees_the_whole_cluster(shared_four: NetCluster) -> None:
    with shared_four.driver("""
    nodes = ray.nodes()
    say(nodes=sorted(node["NodeManagerAddress"] for node in nodes), cpus=ray.cluster_resources()["CPU"])
    """, shared_four.hosts[3]) as driver:
        assert driver.hear() == {"nodes": [host.address for host in shared_four.hosts], "cpus": 4.0}


def test_a_node_has_two_ports_at_its_own_address(shared_four: NetCluster) -> None:
    for host, count in zip(shared_four.hosts, [3, 2, 2, 2], strict=True):  # the head's is one more
        done = subprocess.run([*host.enter, "ss", "-Hltn"], capture_output=True, text=True, check=True)
        listening = [line.split()[3].rpartition(":")[0] for line in done.stdout.splitlines()]
        assert [where.strip("[]").removeprefix("::ffff:") for where in listening] == [host.address] * count
