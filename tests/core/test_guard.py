"""The memory guard: who ends when the machine is full, and what the owner is told."""

from __future__ import annotations

from rig import JOB, Rig, resource_map, scheduling_class

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, worker_pb2

GIB = 1 << 30


def measure(rig: Rig, used: int = 98, sizes: dict[bytes, int] | None = None) -> bool:
    ended = rig.node.memory_measured(rig.now, used * GIB, 100 * GIB, 0.95, sizes or {})
    rig.settle()
    return ended


def test_the_newest_task_of_the_owner_with_most_workers_ends() -> None:
    rig = Rig(CPU=4)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver, scheduling_class("parent"))
    (parent,) = rig.grants(driver)
    for _ in range(2):
        rig.advance(0.1)
        rig.ask(parent.worker.worker_id, scheduling_class("child"))
    first, second = rig.grants(parent.worker.worker_id)
    assert not measure(rig, used=95)
    assert measure(rig, sizes={second.worker.worker_id: 3 * GIB, driver: 50 * GIB})
    assert [s.worker_id for s in rig.stops()] == [second.worker.worker_id]
    assert not measure(rig), "one at a time"
    rig.exit(second.worker.worker_id)
    (failed,) = rig.to(b"head", "worker_failed")
    assert failed.failure.kind == common.OUT_OF_MEMORY and not failed.intended
    for part in ("3.00 GiB", "98.00 of 100.00 GiB", "95%", "child",
                 "50.00 GiB of the driver, which is never ended (pid"):
        assert part in failed.failure.message
    assert measure(rig), "and the next, if that was not enough"
    assert first


def test_a_task_without_retries_outlives_those_that_may_run_again() -> None:
    rig = Rig(CPU=4)
    driver = rig.driver()
    rig.boot_all()
    again, final = scheduling_class("again"), scheduling_class("final")
    final.final = True
    rig.ask(driver, again)
    rig.advance(0.1)
    rig.ask(driver, final)
    first, newest = rig.grants(driver)
    measure(rig)
    assert rig.stops()[0].worker_id == first.worker.worker_id, "though the other one is newer"
    rig.exit(first.worker.worker_id)
    measure(rig)
    assert rig.stops()[0].worker_id == newest.worker.worker_id


def test_what_cannot_run_again_goes_last() -> None:
    rig = Rig(CPU=4)
    driver = rig.driver()
    rig.boot_all()
    spec = common.ActorSpec(actor_id=b"a" * 12 + JOB, creation_class=scheduling_class("A"),
                            lifetime_resources=resource_map(CPU=1))
    rig.head(create_actor=gcs_pb2.CreateActor(spec=spec))
    rig.boot_all()
    actor = rig.node.hosting.actors[spec.actor_id].worker_id
    rig.say(actor, actor_ready=worker_pb2.ActorReady(actor_id=spec.actor_id))
    rig.ask(driver)
    rig.boot_all()
    (task,) = rig.grants(driver)
    measure(rig)
    assert rig.stops()[0].worker_id == task.worker.worker_id
    rig.exit(task.worker.worker_id)
    measure(rig)
    assert rig.stops()[0].worker_id == actor
    rig.exit(actor)
    assert not measure(rig), "nothing is left to end"
