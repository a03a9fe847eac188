"""One object to many hosts: those that get it pass it on meanwhile; nobody sends more than a few copies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.cluster import NetCluster
from tests.netns.conftest import made
from tests.system.support import eventually

SIZE = 30_000_000
HOSTS = 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def eight() -> Iterator[NetCluster]:
    """Eight hosts, each of which sends 400 megabits a second at most."""
    yield from made(HOSTS, 1)


def test_a_broadcast_is_passed_on_by_those_who_get_it(eight: NetCluster) -> None:
    for host in eight.hosts:
        host.limit(megabits=400)
    with eight.driver(f"""
    import numpy as np

    @ray.remote
    def total(array): return int(array.sum())

    small = ray.put(np.zeros(1))
    ray.get([total.options(**on(name)).remote(small) for name in NAMES], timeout=100)
    value = ray.put(np.ones({SIZE}, np.uint8))
    say(ready=True)
    input()
    say(sums=ray.get([total.options(**on(name)).remote(value) for name in NAMES[1:]], timeout=200))
    """) as driver:
        assert driver.hear()["ready"]
        before = [host.sent_bytes() for host in eight.hosts]
        driver.go_on()
        assert driver.hear() == {"sums": [SIZE] * (HOSTS - 1)}
        copies = [(host.sent_bytes() - sent) / SIZE for host, sent in zip(eight.hosts, before, strict=True)]
    assert sum(copies) < HOSTS + 0.5, "nobody got it twice"
    assert max(copies) < 3.5, f"copies sent by each host: {copies}"
    assert sum(sent > 0.5 for sent in copies) > HOSTS // 2, f"copies sent by each host: {copies}"


def test_a_host_that_dies_in_the_middle_of_the_chain_holds_up_nobody_for_long(eight: NetCluster) -> None:
    for host in eight.hosts:
        host.limit(megabits=40)  # so that there is a middle
    with eight.driver(f"""
    import numpy as np

    @ray.remote(max_retries=0)
    def total(array): return int(array.sum())

    small = ray.put(np.zeros(1))
    ray.get([total.options(**on(name)).remote(small) for name in NAMES], timeout=100)
    value = ray.put(np.ones({SIZE}, np.uint8))
    sums = [total.options(**on(name)).remote(value) for name in NAMES[1:]]
    say(ready=True)
    input()
    found = []
    for one in sums:
        try:
            found.append(ray.get(one, timeout=200))
        except ray.exceptions.RayError as error:
            found.append(type(error).__name__)
    say(sums=found)
    """) as driver:
        assert driver.hear()["ready"]
        sent = [host.sent_bytes() for host in eight.hosts]

        def passing_on() -> list[int]:
            """Who has sent some of it and not all."""
            return [host.number for host in eight.hosts[1:]
                    if 0.05 < (host.sent_bytes() - sent[host.number]) / SIZE < 0.8]

        dead = eventually(passing_on, "somebody in the middle")[0]
        eight.kill(eight.hosts[dead])
        driver.go_on()
        sums = driver.hear()["sums"]
    del sums[dead - 1]
    assert sums == [SIZE] * (HOSTS - 2), "the others have it all the same"
