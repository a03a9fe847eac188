"""Jobs share what there is, whatever each of them asks for; higher priority goes first.

Fairness is Jain's index of what the jobs got: (sum x)² / (n · sum x²). It is 1 when all got the same and 1/n
when one got all.
"""

from __future__ import annotations

from random import Random

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.turns import JOBS_KEPT, Turns
from tests.core.head_world import World, amounts
from tests.core.rig import Rig, scheduling_class
from tests.core.test_leases import share_of

GREED = (400, 200, 40, 8)
"""What each job asks for at once."""


def fairness(got: list[float]) -> float:
    """Jain's index."""
    return sum(got) ** 2 / (len(got) * sum(x * x for x in got))


@pytest.mark.parametrize("jobs", [2, 3, 5])
def test_leases_are_shared_equally_by_jobs_that_always_want_more(jobs: int) -> None:
    classes = [scheduling_class(job=bytes([number, 0, 0, 0])) for number in range(1, jobs + 1)]
    assert fairness(share_of(Rig(CPU=2 * jobs), classes, 60.0)) > 0.98


class Actors:
    """A node of four CPUs; jobs that ask for many actors at once. Actors live for a while, then end."""

    def __init__(self, seed: int) -> None:
        self.world = World(CPU=4)
        self.rng = Random(seed)
        self.jobs = [self.world.job(driver=number) for number in range(1, 5)]
        self.born = [0.0] * len(self.jobs)
        self.alive: list[tuple[int, bytes, int]] = []
        self.made = 0

    def ask(self, number: int, count: int, priority: int = 0) -> None:
        for _ in range(count):
            self.made += 1
            job = self.jobs[number]
            spec = self.world.spec(job=job, needs={"CPU": 1}, keeps={"CPU": 1}, owner=number + 1)
            spec.actor_id = ids.actor_id(self.made.to_bytes(12, "big"), self.jobs[number])
            spec.priority = priority
            self.world.register(spec)

    def live(self, rounds: int) -> None:
        for _ in range(rounds):
            for create in self.world.take(1, "create_actor"):
                number = self.jobs.index(create.spec.actor_id[-4:])
                self.born[number] += 1
                worker = 10 + self.made % 100
                self.made += 1
                self.world.created(1, create, worker)
                self.alive.append((number, create.spec.actor_id, worker))
            if self.alive:
                _, actor_id, worker = self.alive.pop(self.rng.randrange(len(self.alive)))
                self.world.fail_worker(1, worker, actor_id, intended=True)
            self.world.sleep(0.1)
            self.world.beat(1, seen=1 << 40, CPU=4 - len(self.alive) or 0.0001)
            self.world.sleep(0.1)


def test_actors_of_a_flood_take_turns_with_those_of_others() -> None:
    actors = Actors(1)
    for number, count in enumerate(GREED):
        actors.ask(number, count)
    actors.live(45)
    few = GREED[-1]
    assert actors.born[-1] == few, "the modest job has all that it asked for"
    assert fairness(actors.born[:-1]) > 0.95, actors.born


def test_actors_of_higher_priority_go_first() -> None:
    actors = Actors(2)
    actors.ask(0, 100)
    actors.ask(1, 12, priority=1)
    actors.live(20)
    assert actors.born[1] == 12


def test_groups_of_a_flood_take_turns_and_priority_goes_first() -> None:
    world = World(CPU=2)
    jobs = [world.job(driver=number) for number in (1, 2)]

    def make(number: int, job: bytes, priority: int = 0) -> bytes:
        pg_id = bytes([number]) * 14 + job
        info = pb.PlacementGroupInfo(placement_group_id=pg_id, creator_job_id=job, priority=priority)
        info.bundles.add(resources=amounts(CPU=2))
        world.ask(group_create=gcs.GroupCreate(info=info))
        return pg_id

    order = [make(number, jobs[0]) for number in range(1, 6)]
    late, urgent = make(6, jobs[1]), make(7, jobs[0], priority=5)
    placed = []
    for _ in range(7):
        first = (gcs.BundleRequest.PREPARE, gcs.BundleRequest.GRANT)
        requests = [request for request in world.take(1, "bundle_request") if request.step in first]
        (request,) = requests
        placed.append(request.placement_group_id)
        world.ask(group_remove=gcs.GroupRemove(placement_group_id=request.placement_group_id))
        world.sleep(0.1)
    assert placed[:3] == [order[0], urgent, late] and placed[3:] == order[1:]


def test_who_was_served_longest_ago_goes_first_and_only_so_many_are_remembered() -> None:
    turns: Turns[tuple[int, bytes]] = Turns(lambda item: item)
    served: list[bytes] = []

    def once(item: tuple[int, bytes]) -> bool:
        if item[1] in served:
            return False
        served.append(item[1])
        return True

    turns.serve([(0, b"a"), (1, b"b"), (0, b"c")], once)
    assert served == [b"b", b"a", b"c"]
    served.clear()
    turns.serve([(0, b"c"), (0, b"d"), (0, b"a")], once)
    assert served == [b"d", b"a", b"c"]
    for number in range(JOBS_KEPT + 10):
        served.clear()
        turns.serve([(0, number.to_bytes(4, "big"))], once)
    assert len(turns._served) == JOBS_KEPT
