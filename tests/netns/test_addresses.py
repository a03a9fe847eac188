"""Where nodes are reached: over IPv6, and at addresses that are not their own, through delay and resets."""

from __future__ import annotations

import time

import pytest

from tests.netns.cluster import NetCluster
from tests.netns.proxy import Proxy

CROSS = """
import numpy as np

@ray.remote
def total(array):
    return int(array.sum()), ray.util.get_node_ip_address()

@ray.remote
class Counter:
    def __init__(self): self.n = 0
    def add(self): self.n += 1; return self.n

other = NAMES[-1]
big = ray.remote(lambda: np.ones(30_000_000, np.uint8)).options(**on(other)).remote()
mine = ray.put(np.ones(30_000_000, np.uint8))
counter = Counter.options(**on(other)).remote()
"""


def test_a_cluster_over_ipv6(two_six: NetCluster) -> None:
    with two_six.driver(CROSS + """
say(there=ray.get(total.options(**on(other)).remote(mine), timeout=60),
    here=int(ray.get(big, timeout=60).sum()),
    calls=ray.get([counter.add.remote() for _ in range(100)], timeout=60)[-1])
""") as driver:
        assert driver.hear() == {
            "there": [30_000_000, two_six.hosts[1].address6], "here": 30_000_000, "calls": 100}
    assert f"[{two_six.hosts[1].address6}]:" in two_six.run(two_six.hosts[0], "status")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_behind_other_addresses_work_through_delay_and_resets(
    proxied: tuple[NetCluster, Proxy]
) -> None:
    cluster, proxy = proxied
    with cluster.driver(CROSS + """
from miniray.util.placement_group import placement_group
say(there=ray.get(total.options(**on(other)).remote(mine), timeout=60))
calls = [counter.add.remote() for _ in range(2000)]
input()
group = placement_group([{"CPU": 0.1}] * 3, strategy="STRICT_SPREAD")
say(here=int(ray.get(big, timeout=120).sum()))
ray.get(group.ready(), timeout=60)
say(calls=ray.get(calls, timeout=120) == list(range(1, 2001)))
third = ray.put(np.ones(20_000_000, np.uint8))
say(all=[ray.get(total.options(**on(name)).remote(third), timeout=120)[0] for name in NAMES],
    alive=sum(node["Alive"] for node in ray.nodes()))
""") as driver:
        assert driver.hear()["there"] == [30_000_000, f"{cluster.hosts[2].address}0"]
        proxy.tell("delay 0.02")
        driver.go_on()
        for _ in range(8):
            proxy.tell("reset")
            time.sleep(0.3)     # how often connections break; nothing is measured by it
        proxy.tell("hold")
        time.sleep(3)
        proxy.tell("pass")
        assert driver.hear() == {"here": 30_000_000}
        assert driver.hear() == {"calls": True}
        assert driver.hear() == {"all": [20_000_000] * 3, "alive": 3}
