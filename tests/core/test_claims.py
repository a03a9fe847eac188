"""An actor that waits is not starved by tasks: what the GCS tells busy nodes, and what these keep for it."""

from __future__ import annotations

import pytest
from rig import JOB, UNIT, Rig, resource_map, scheduling_class

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2
from miniray.core.actor_queue import CLAIM_EVERY_S, CLAIMS_AT_ONCE
from miniray.core.claims import CLAIM_LASTS_S, PATIENCE_S
from miniray.core.contract import HEAD
from miniray.core.shares import SAME_JOB_SLICE_S
from tests.core.head_world import World

ACTOR = b"a" * 12 + JOB
OTHER = b"o" * 12 + JOB


# ---- the node


def waits(rig: Rig, actor_id: bytes = ACTOR, priority: int = 0, **amounts: float) -> None:
    demand = resource_map(**(amounts or {"CPU": 1}))
    rig.head(actor_waits=gcs.ActorWaits(actor_id=actor_id, demand=demand, priority=priority))


def create(rig: Rig, actor_id: bytes = ACTOR, keeps: float = 0, **amounts: float) -> None:
    """The GCS comes with the actor; it is made if there is room."""
    spec = common.ActorSpec(actor_id=actor_id, creation_class=scheduling_class("A", **amounts),
                            lifetime_resources=resource_map(CPU=keeps), class_name="A")
    rig.head(create_actor=gcs.CreateActor(spec=spec))
    assert rig.to(HEAD, "actor_created") == []
    rig.boot_all()
    rig.say(rig.node.hosting.actors[actor_id].worker_id, actor_ready=worker_pb2.ActorReady(actor_id=actor_id))


def lend(rig: Rig, worker_id: bytes) -> None:
    rig.say(worker_id, blocked=worker_pb2.WorkerBlocked(blocked=True))
    rig.boot_all()


def full_node(cpus: int = 1, priority: int = 0) -> tuple[Rig, bytes, list[worker_pb2.LeaseReply]]:
    """As many tasks as CPUs run, one more waits."""
    rig = Rig(CPU=cpus)
    driver = rig.driver()
    rig.boot_all()
    for _ in range(cpus):
        rig.ask(driver)
    rig.boot_all()
    running = rig.grants(driver)
    rig.ask(driver, scheduling_class(priority=priority))
    return rig, driver, running


def test_a_cpu_that_is_lent_is_kept_for_the_actor_that_waits_then_tasks_go_on() -> None:
    rig, driver, (running,) = full_node()
    waits(rig)
    lend(rig, running.worker.worker_id)
    assert not rig.grants(driver), "all tasks may be waiting for the actor"
    assert rig.node.resources.available["CPU"] == UNIT, "so the next heartbeat shows the GCS room for it"
    create(rig)
    rig.boot_all()
    assert rig.grants(driver) and not rig.node.leases.claims.by_actor


def test_a_claim_that_is_not_made_again_lapses() -> None:
    rig, driver, (running,) = full_node()
    waits(rig)
    lend(rig, running.worker.worker_id)
    rig.advance(CLAIM_LASTS_S / 2)
    waits(rig)
    rig.advance(CLAIM_LASTS_S * 0.75)
    assert not rig.grants(driver), "it was made again"
    rig.advance(CLAIM_LASTS_S)
    rig.boot_all()
    assert rig.grants(driver) and not rig.node.leases.claims.by_actor


def test_only_what_the_actor_needs_is_kept() -> None:
    rig, driver, running = full_node(cpus=2)
    waits(rig)
    lend(rig, running[0].worker.worker_id)
    assert not rig.grants(driver)
    lend(rig, running[1].worker.worker_id)
    assert rig.grants(driver), "one of two CPUs is enough for the actor"


def test_work_of_higher_priority_knows_no_claims() -> None:
    rig, driver, (running,) = full_node(priority=1)
    waits(rig)
    lend(rig, running.worker.worker_id)
    assert rig.grants(driver)
    rig, driver, (running,) = full_node(priority=1)
    waits(rig, priority=1)
    lend(rig, running.worker.worker_id)
    assert not rig.grants(driver)


def test_an_actor_that_needs_more_than_one_task_gives_back_is_patient_first() -> None:
    rig, driver, running = full_node(cpus=2)
    waits(rig, CPU=2)
    lend(rig, running[0].worker.worker_id)
    assert rig.grants(driver), "two CPUs may yet come free together"
    rig.ask(driver)
    for _ in range(int(PATIENCE_S) + 1):
        rig.advance(1.0)
        waits(rig, CPU=2)
    lend(rig, running[1].worker.worker_id)
    assert not rig.grants(driver), "else small tasks would slip past for ever"


def test_nothing_is_kept_for_what_actors_hold_for_good() -> None:
    rig = Rig(CPU=2)
    driver = rig.driver()
    rig.boot_all()
    create(rig, OTHER, keeps=1)
    rig.ask(driver)
    rig.boot_all()
    (running,) = rig.grants(driver)
    rig.ask(driver)
    for _ in range(int(PATIENCE_S) + 2):
        waits(rig, CPU=2)
        rig.advance(1.0)
    assert not rig.messages(driver, "lease_revoked")
    lend(rig, running.worker.worker_id)
    assert rig.grants(driver), "two CPUs cannot come free: tasks go on with the one there is"


def test_a_lease_that_goes_from_task_to_task_is_asked_back() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (running,) = rig.grants(driver)
    waits(rig)
    rig.advance(SAME_JOB_SLICE_S / 2)
    assert not rig.messages(driver, "lease_revoked"), "it has its time first"
    rig.advance(SAME_JOB_SLICE_S)
    (revoked,) = rig.messages(driver, "lease_revoked")
    assert revoked.lease_id == running.lease_id
    rig.advance(CLAIM_LASTS_S)
    assert not rig.messages(driver, "lease_revoked"), "once"


# ---- the GCS


@pytest.fixture
def world() -> World:
    """Two nodes with a CPU each, which tasks have."""
    world = World(CPU=1)
    world.join(2, CPU=1)
    world.job()
    for node in (1, 2):
        world.beat(node, CPU=0)
    return world


def told(world: World, *nodes: int) -> dict[int, list[bytes]]:
    return {node: [one.actor_id for one in world.take(node, "actor_waits")] for node in nodes}


def test_full_nodes_are_told_in_turn_who_waits_until_there_is_room(world: World) -> None:
    spec = world.spec(1)
    world.register(spec)
    assert told(world, 1, 2) == {1: [spec.actor_id], 2: []}, "the owner's node first"
    world.sleep(CLAIM_EVERY_S)
    assert told(world, 1, 2) == {1: [], 2: [spec.actor_id]}
    world.sleep(CLAIM_EVERY_S)
    assert sum(len(ids) for ids in told(world, 1, 2).values()) == 1, "and again, for claims lapse"
    world.beat(2)
    assert world.one(2, "create_actor").spec.actor_id == spec.actor_id
    world.sleep(10 * CLAIM_EVERY_S)
    assert told(world, 1, 2) == {1: [], 2: []}


def test_what_is_told_names_the_demand_and_the_priority(world: World) -> None:
    world.register(world.spec(1, priority=7))
    claim = world.one(1, "actor_waits")
    assert claim.priority == 7 and claim.demand.amounts == {"CPU": UNIT}


def test_the_next_actor_of_a_shape_has_its_claim_as_soon_as_the_first_is_placed(world: World) -> None:
    first, second = world.spec(1), world.spec(2)
    world.register(first)
    world.register(second)
    assert told(world, 1, 2) == {1: [first.actor_id], 2: []}, "one claim for all of a shape"
    world.beat(1)
    assert world.one(1, "create_actor").spec.actor_id == first.actor_id
    assert [second.actor_id] in told(world, 1, 2).values()


def test_nobody_is_told_of_what_no_node_could_do(world: World) -> None:
    world.register(world.spec(1, needs={"CPU": 2}))
    world.register(world.spec(2, needs={"teapot": 1}))
    world.sleep(5 * CLAIM_EVERY_S)
    assert told(world, 1, 2) == {1: [], 2: []}


def test_claims_are_few_at_a_time_and_every_shape_gets_its_turn(world: World) -> None:
    shapes = 2 * CLAIMS_AT_ONCE
    specs = [world.spec(number, needs={"CPU": number / 100}) for number in range(1, shapes + 1)]
    for spec in specs:
        world.register(spec)
    world.sleep(1.0)
    told(world, 1, 2)
    heard: dict[bytes, None] = {}
    for _ in range(4):
        world.sleep(CLAIM_EVERY_S)
        now = told(world, 1, 2)
        assert sum(len(ids) for ids in now.values()) <= 2 * CLAIMS_AT_ONCE
        heard.update(dict.fromkeys(one for ids in now.values() for one in ids))
    assert heard.keys() == {spec.actor_id for spec in specs}
