"""A census reaches every process, waits for nobody who has ended, and joins what several know of a task."""

from __future__ import annotations

from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2
from miniray.core import ids, inventory
from miniray.core.census import KEPT, merged
from miniray.core.contract import HEAD
from tests.core.head_world import World, node_id, worker_id
from tests.core.owner_rig import Rig as OwnerRig
from tests.core.rig import Rig

TASK = ids.task_id(b"t" * 8, ids.job_id(1))
TASKS = gcs.CensusQuery.TASKS


def asked(world: World, ticket: bytes = b"t1", finish: bool = False) -> gcs.Census:
    return world.ask(census=gcs.CensusQuery(ticket=ticket, kind=TASKS, finish=finish)).census


def part(world: World, node: int, **body: Any) -> None:
    world.say(node, counted=gcs.CensusPart(ticket=b"t1", **body))


def row(name: str, **fields: Any) -> gcs.TaskRow:
    return gcs.TaskRow(task_id=TASK, name=name, **fields)


def found(name: str) -> gcs.Census:
    return gcs.Census(tasks=[row(name)])


def test_the_gcs_waits_for_every_process_that_a_raylet_has_asked() -> None:
    world = World(CPU=1)
    world.join(2, CPU=1)
    assert asked(world).missing == 2
    assert [query.ticket for query in world.take(1, "census")] == [b"t1"]
    part(world, 1, asked=[worker_id(1), worker_id(2)])
    part(world, 2, asked=[])
    assert asked(world).missing == 2
    part(world, 1, worker_id=worker_id(1), found=found("f"))
    assert asked(world).missing == 1 and not asked(world).tasks
    part(world, 1, worker_id=worker_id(2), found=found("g"))
    census = asked(world)
    assert not census.missing and [task.name for task in census.tasks] == ["f", "g"]
    assert not world.take(1, "census"), "asking again asks nobody else again"


def test_whoever_waits_no_longer_gets_what_there_is() -> None:
    world = World(CPU=1)
    asked(world)
    part(world, 1, asked=[worker_id(1), worker_id(2)])
    part(world, 1, worker_id=worker_id(1), found=found("f"))
    census = asked(world, finish=True)
    assert census.missing == 1 and [task.name for task in census.tasks] == ["f"]


def test_nobody_waits_for_a_node_that_has_died() -> None:
    world = World(CPU=1)
    world.join(2, CPU=1)
    asked(world)
    part(world, 1, asked=[])
    part(world, 2, asked=[worker_id(5)])
    assert asked(world).missing == 1
    world.head.node_disconnected(world.now, node_id(2), refused=True)
    world.settle()
    world.sleep(3.0)
    assert not asked(world).missing


def test_answers_to_a_census_that_nobody_takes_any_more_are_dropped() -> None:
    world = World(CPU=1)
    for number in range(KEPT + 1):
        asked(world, b"many%d" % number)
    part(world, 1, asked=[worker_id(1)])
    assert asked(world).missing == 1, "a ticket that gave way is a new census"


def test_a_raylet_answers_for_workers_that_end_instead() -> None:
    rig = Rig()
    first, second = rig.driver(), rig.driver()
    rig.to(HEAD, "counted")
    rig.head(census=gcs.CensusQuery(ticket=b"t1", kind=TASKS))
    [start] = rig.to(HEAD, "counted")
    assert list(start.asked) == [first, second] and not start.worker_id
    assert rig.messages(first, "census") and rig.messages(second, "census")
    rig.say(first, counted=gcs.CensusPart(ticket=b"t1", found=found("f")))
    rig.say(first, counted=gcs.CensusPart(ticket=b"t1", found=found("again")))
    [answer] = rig.to(HEAD, "counted")
    assert answer.worker_id == first and answer.found.tasks[0].name == "f"
    rig.exit(second)
    [answer] = rig.to(HEAD, "counted")
    assert answer.worker_id == second and not answer.found.tasks


def test_a_raylet_lists_its_workers_and_those_that_ended() -> None:
    rig = Rig()
    first, second = rig.driver(), rig.driver()
    rig.now += 3.0
    rig.say(first, exiting=worker_pb2.Exiting(reason="bye", intended=True, ended_by=pb.BY_USER))
    rig.exit(first)
    rig.now += 2.0
    rig.head(census=gcs.CensusQuery(ticket=b"t1", kind=gcs.CensusQuery.WORKERS))
    [answer] = rig.to(HEAD, "counted")
    living, dead = answer.found.workers
    assert (living.address.worker_id, living.is_alive, living.is_driver) == (second, True, True)
    assert living.started_ago_s >= 2.0
    assert (dead.address.worker_id, dead.is_alive, dead.ended_ago_s) == (first, False, 2.0)
    assert (dead.started_ago_s, dead.ended_by, dead.intended) == (5.0, pb.BY_USER, True)


def test_an_owner_tells_what_its_tasks_wait_for() -> None:
    rig = OwnerRig()
    rig.submit("a")
    rig.submit("b", "a")
    states = [one.state for one in inventory.tasks(rig.owner, 0, 0.0)]
    assert states == ["PENDING_NODE_ASSIGNMENT", "PENDING_ARGS_AVAIL"]
    [one] = inventory.tasks(rig.owner, 1, 1000.0)
    assert one.submitted_at >= 1000.0


def test_objects_are_told_with_their_holder_and_the_state_of_their_task() -> None:
    rig = OwnerRig()
    rig.submit("a")
    [told] = inventory.objects(rig.owner, 0, 7, True)
    assert (told.state, told.task_state, told.size) == ("PENDING", "PENDING_NODE_ASSIGNMENT", 0)
    assert (told.pid, told.is_driver, told.holder.worker_id) == (7, True, rig.owner.me[1])


def test_an_end_beats_what_runs_and_what_runs_beats_what_waits() -> None:
    waits = row("C.m", state="SUBMITTED_TO_WORKER", submitted_at=5.0, parent_task_id=b"p")
    runs = row("m", state="RUNNING", pid=9, started_at=6.0)
    for live in ([waits, runs], [runs, waits]):
        copies = []
        for one in live:
            copies.append(gcs.TaskRow())
            copies[-1].CopyFrom(one)
        [one] = merged([], copies)
        assert (one.name, one.state, one.pid, one.submitted_at) == ("C.m", "RUNNING", 9, 5.0)
    ended = row("C.m", state="FINISHED", submitted_at=5.0)
    assert [one.state for one in merged([ended], [waits, runs])] == ["FINISHED"]
    again = row("C.m", state="PENDING_NODE_ASSIGNMENT", attempt=1, submitted_at=5.0)
    assert [one.attempt for one in merged([ended], [again])] == [0, 1]


def test_a_failure_says_how_a_worker_ended() -> None:
    from miniray.util.state.rows import exit_type

    def ended(kind: pb.ErrorKind, **fields: Any) -> str:
        return exit_type(gcs.WorkerRow(end=pb.Failure(kind=kind), **fields))

    assert ended(pb.WORKER_DIED) == "SYSTEM_ERROR"
    assert ended(pb.OUT_OF_MEMORY) == "NODE_OUT_OF_MEMORY"
    assert ended(pb.WORKER_DIED, intended=True) == "INTENDED_SYSTEM_EXIT"
    assert ended(pb.WORKER_DIED, intended=True, ended_by=pb.BY_USER) == "INTENDED_USER_EXIT"
    assert ended(pb.WORKER_DIED, intended=True, ended_by=pb.BY_USER_ERROR) == "USER_ERROR"
    assert ended(pb.WORKER_DIED, intended=True, is_driver=True) == "INTENDED_USER_EXIT"
