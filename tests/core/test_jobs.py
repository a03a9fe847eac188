"""Jobs: numbers are given once, a driver has one job, ends are told to everybody."""

from __future__ import annotations

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from tests.core.head_world import World, address, node_id


def jobs(world: World) -> list[pb.JobInfo]:
    return list(world.ask(job_list=gcs.JobList()).jobs.jobs)


def test_numbers_count_up_and_are_never_given_again() -> None:
    world = World(CPU=1)
    assert [world.job(driver=1), world.job(driver=2)] == [ids.job_id(1), ids.job_id(2)]
    world.ask(job_finish=gcs.JobFinish(job_id=ids.job_id(2)))
    world.start()
    world.join(1, CPU=1, jobs=[ids.job_id(1)])
    assert world.job(driver=3) == ids.job_id(3)


def test_a_driver_that_asks_twice_has_one_job_even_after_a_restart() -> None:
    world = World(CPU=1)
    assert world.job() == world.job()
    world.start()
    world.join(1, CPU=1, jobs=[ids.job_id(1)])
    assert world.job() == ids.job_id(1) and len(jobs(world)) == 1


def test_a_job_that_names_no_namespace_gets_one_of_its_own() -> None:
    world = World(CPU=1)
    spaces = [
        world.ask(job_start=gcs.JobStart(driver=address(1, n))).job.namespace for n in (1, 2)
    ]  # fmt: skip
    assert len(set(spaces)) == 2 and all(len(space) == 32 for space in spaces)


def test_ends_are_told_to_all_nodes_and_published() -> None:
    world = World(CPU=1)
    world.join(2, CPU=1)
    world.ask(node=2, subscribe=gcs.Subscribe(channel="job"))
    world.job()
    world.ask(job_finish=gcs.JobFinish(job_id=ids.job_id(1)))
    world.ask(job_finish=gcs.JobFinish(job_id=ids.job_id(1), failed=True))
    assert world.one(1, "job_ended") == world.one(2, "job_ended")
    assert [p.job.state for p in world.news(2, "job")] == [pb.JOB_RUNNING, pb.JOB_FINISHED]
    (job,) = jobs(world)
    assert job.started_at == job.ended_at == 1100.0, "wall-clock seconds"


def test_a_node_takes_its_drivers_along() -> None:
    world = World(CPU=1)
    world.join(2, CPU=1)
    world.job(node=2)
    world.head.node_disconnected(world.now, node_id(2), True)
    world.sleep(3)
    assert jobs(world)[0].state == pb.JOB_FAILED


def test_a_node_that_still_runs_an_ended_job_is_told_on_its_return() -> None:
    world = World(CPU=1)
    world.job()
    world.join(2, CPU=1)
    world.ask(job_finish=gcs.JobFinish(job_id=ids.job_id(1)))
    world.start()
    world.join(2, CPU=1, jobs=[ids.job_id(1)])
    assert world.one(2, "job_ended").job_id == ids.job_id(1)
