"""What the network can do to a cluster: cables pulled, ways lost in one direction, links that are slow."""

from __future__ import annotations

import time

import pytest

from tests.netns.cluster import NetCluster
from tests.system.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHORT_S = 5.0
"""Shorter than what makes a silent node a dead one."""


def wait(seconds: float) -> None:
    """How long a fault lasts; nothing is measured by it."""
    time.sleep(seconds)


def test_work_under_way_survives_a_short_partition(four: NetCluster) -> None:
    with four.driver("""
    import numpy as np
    from miniray.util.placement_group import placement_group
    from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

    @ray.remote(max_retries=0)
    def slow(n):
        time.sleep(0.05)
        return n

    @ray.remote(max_restarts=0)
    class Counter:
        def __init__(self): self.n = 0
        def add(self): self.n += 1; return self.n

    group = placement_group([{"CPU": 0.1}] * 4, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=60)
    counter = Counter.options(**on("h2")).remote()
    big = ray.remote(lambda: np.arange(8_000_000)).options(**on("h2")).remote()
    ray.wait([big], fetch_local=False)
    ray.get(counter.add.remote())
    say(ready=True)
    calls = [counter.add.remote() for _ in range(500)]
    tasks = [slow.options(**on(name)).remote(n) for n, name in enumerate(NAMES * 50)]
    grouped = [slow.options(num_cpus=0.1, scheduling_strategy=In(group, n % 4)).remote(n) for n in range(40)]
    copy = ray.remote(lambda array: int(array.sum())).options(**on("h1")).remote(big)
    say(calls=ray.get(calls, timeout=60) == list(range(2, 502)),
        tasks=ray.get(tasks, timeout=60) == list(range(200)),
        grouped=ray.get(grouped, timeout=60) == list(range(40)),
        copy=ray.get(copy, timeout=60) == sum(range(8_000_000)),
        more=ray.get(counter.add.remote(), timeout=60),
        alive=[node["Alive"] for node in ray.nodes()])
    """) as driver:
        assert driver.hear()["ready"]
        four.hosts[2].pull_cable()
        wait(SHORT_S)
        four.hosts[2].put_cable()
        assert driver.hear() == {"calls": True, "tasks": True, "grouped": True, "copy": True, "more": 502,
                                 "alive": [True] * 4}


def test_a_sort_and_a_broadcast_are_whole_after_a_partition_in_their_middle(four: NetCluster) -> None:
    for host in four.hosts:
        host.limit(megabits=200)  # so that there is a middle
    with four.driver("""
    import numpy as np
    from itertools import pairwise
    from examples.sort_records import check_all, make, sort

    records, parts = 300_000, 8
    bounds = [records * one // parts for one in range(parts + 1)]
    inputs = [make.remote(*pair) for pair in pairwise(bounds)]
    ray.wait(inputs, num_returns=parts, fetch_local=False)
    value = ray.put(np.ones(40_000_000, np.uint8))
    total = ray.remote(lambda array: int(array.sum()))
    say(ready=True)
    sums = [total.options(**on(name)).remote(value) for name in NAMES]
    outputs = sort(inputs, parts)
    del inputs
    input()
    say(sums=ray.get(sums, timeout=100))
    ray.wait(outputs, num_returns=parts, timeout=100, fetch_local=False)
    check_all(outputs, records)
    say(each_record_once_and_in_order=True, alive=[node["Alive"] for node in ray.nodes()])
    """) as driver:
        assert driver.hear()["ready"]
        four.hosts[2].pull_cable()
        four.hosts[1].lose_way_to(four.hosts[3])
        wait(SHORT_S)
        four.hosts[2].put_cable()
        four.hosts[1].find_way_to(four.hosts[3])
        driver.go_on()
        assert driver.hear() == {"sums": [40_000_000] * 4}
        assert driver.hear() == {"each_record_once_and_in_order": True, "alive": [True] * 4}


def test_a_way_that_is_lost_in_one_direction_delays_and_loses_nothing(four: NetCluster) -> None:
    with four.driver("""
    @ray.remote(max_restarts=0)
    class Log:
        def __init__(self): self.seen = []
        def add(self, n): self.seen.append(n)
        def get(self): return self.seen

    log = Log.options(**on("h3")).remote()
    ray.get(log.add.remote(0))
    say(ready=True)

    @ray.remote
    def write(log, start):
        ray.get([log.add.remote(start + n) for n in range(100)])

    ray.get([write.options(**on(name)).remote(log, 1 + 100 * i) for i, name in enumerate(NAMES)], timeout=60)
    seen = ray.get(log.get.remote(), timeout=60)
    mine = [[n for n in seen if (n - 1) // 100 == i] for i in range(4)]
    say(once=sorted(seen) == list(range(401)), ordered=all(own == sorted(own) for own in mine))
    """) as driver:
        assert driver.hear()["ready"]
        four.hosts[1].lose_way_to(four.hosts[3])
        four.hosts[3].lose_way_to(four.hosts[2])
        wait(SHORT_S)
        four.hosts[1].find_way_to(four.hosts[3])
        four.hosts[3].find_way_to(four.hosts[2])
        assert driver.hear() == {"once": True, "ordered": True}


def test_a_pull_whose_source_is_out_of_reach_takes_the_first_copy_that_appears_elsewhere(
    four: NetCluster,
) -> None:
    with four.driver("""
    import numpy as np
    from miniray.experimental import get_object_locations
    from miniray.util.state import explain

    total = ray.remote(lambda array: int(array.sum()))
    ray.get([total.options(**on(name)).remote(np.ones(1)) for name in NAMES])
    value = ray.remote(lambda: np.ones(8_000_000, np.uint8)).options(**on("h3")).remote()
    ray.wait([value], fetch_local=False)
    say(ready=True)
    input()
    waits = total.options(**on("h1")).remote(value)
    until(lambda: "asks its source again" in str(explain(value)), "a pull that finds its source out of reach")
    say(elsewhere=ray.get(total.options(**on("h2")).remote(value), timeout=60))
    said = ray.get(waits, timeout=60)
    home = {node["NodeName"]: node["NodeID"] for node in ray.nodes()}
    (known,) = get_object_locations([value]).values()
    say(waits=said, given_up=home["h3"] not in known["node_ids"])
    """) as driver:
        assert driver.hear()["ready"]
        four.hosts[1].lose_way_to(four.hosts[3])
        driver.go_on()
        assert driver.hear() == {"elsewhere": 8_000_000}
        assert driver.hear() == {"waits": 8_000_000, "given_up": False}, "it gave its source up first"
        four.hosts[1].find_way_to(four.hosts[3])


def test_a_host_that_stays_away_is_dead_and_its_work_is_done_elsewhere(four: NetCluster) -> None:
    with four.driver("""
    from miniray.util.placement_group import placement_group
    from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

    @ray.remote(num_cpus=0.5)
    def where(seconds=0):
        time.sleep(seconds)
        return ray.util.get_node_ip_address()

    @ray.remote(max_restarts=1, max_task_retries=-1, num_cpus=0)
    class Actor:
        def where(self): return ray.util.get_node_ip_address()

    group = placement_group([{"CPU": 0.1}] * 3, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=60)
    from miniray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At
    home = {node["NodeName"]: node["NodeID"] for node in ray.nodes()}
    soft = dict(scheduling_strategy=At(home["h1"], soft=True))
    actor = Actor.options(**soft).remote()
    say(actor=ray.get(actor.where.remote()))
    task = where.options(**soft).remote(20)
    print(input(), flush=True)
    say(task=ray.get(task, timeout=100), actor=ray.get(actor.where.remote(), timeout=60))
    ray.get(group.ready(), timeout=60)
    places = [where.options(num_cpus=0.1, scheduling_strategy=In(group, i)).remote() for i in range(3)]
    say(group=sorted(ray.get(places, timeout=60)))
    """) as driver:
        away = four.hosts[1]
        assert driver.hear()["actor"] == away.address
        away.pull_cable()
        driver.go_on()
        heard = driver.hear()
        assert away.address not in heard.values()
        rest = [host.address for host in four.hosts if host is not away]
        assert driver.hear()["group"] == rest
        eventually(lambda: not away.processes(), "the end of a node that lost its head", 100)


def test_a_slow_link_delays_a_transfer_but_not_small_calls(four: NetCluster) -> None:
    four.hosts[1].limit(megabits=200)
    with four.driver("""
    import numpy as np
    big = ray.remote(lambda: np.ones(40_000_000, np.uint8)).options(**on("h1")).remote()
    ray.wait([big], fetch_local=False)
    copy = ray.remote(lambda array: int(array.sum())).options(**on("h2")).remote(big)
    quick = ray.remote(lambda: 1).options(**on("h3"))
    done = 0
    while not ray.wait([copy], timeout=0)[0]:
        assert ray.get(quick.remote(), timeout=60) == 1
        done += 1
    say(copy=ray.get(copy), done=done > 10)
    """) as driver:
        assert driver.hear() == {"copy": 40_000_000, "done": True}
