"""Two programs on one node: a flood of one does not starve the other. Counted, not timed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.system.support import Script

FLOOD, FEW = 4000, 20

PROGRAM = """
ray.init({address!r}, configure_logging=False)

@ray.remote(num_cpus=1)
def work(n):
    time.sleep(0.02)
    return n

references = [work.remote(n) for n in range({count})]
done, rest = ray.wait(references, num_returns={first})
say(begun=len(done))
{then}
"""


@pytest.fixture(scope="module")
def address(ray: Any) -> str:
    from miniray import api

    return str(api.connected_worker().session_dir)


def test_a_modest_job_ends_while_the_flood_of_another_is_far_from_its_end(ray: Any, address: str) -> None:
    then = "input()\ndone, rest = ray.wait(references, num_returns=len(references), timeout=0)\n"
    flood = PROGRAM.format(address=address, count=FLOOD, first=10, then=then + "say(left=len(rest))\ninput()")
    modest = PROGRAM.format(address=address, count=FEW, first=FEW, then="")
    with Script("import time\n" + flood) as first:
        assert first.hear()["begun"] >= 10
        with Script("import time\n" + modest) as second:
            assert second.hear()["begun"] == FEW and second.wait() == 0
        first.go_on()
        left = first.hear()["left"]
        assert left > FLOOD // 2, "the modest job was served in between, not after"


def test_actors_of_higher_priority_and_groups_too_are_accepted_by_options(ray: Any) -> None:
    from miniray.util.placement_group import placement_group, remove_placement_group

    @ray.remote(priority=3)
    class Urgent:
        def ping(self) -> str:
            return "pong"

    actor = Urgent.remote()
    group = placement_group([{"CPU": 1}], priority=2)
    assert ray.get(actor.ping.remote()) == "pong" and group.wait(60)
    remove_placement_group(group)
    ray.kill(actor)
