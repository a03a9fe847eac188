"""Actors at the GCS: names, placing, refusals, restarts, ends, and a head that comes back."""

from __future__ import annotations

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import actor_queue, ids, policy
from tests.core.head_world import World, address, node_id, worker_id


@pytest.fixture
def world() -> World:
    """One node with four CPUs and one job, whose driver is worker 1."""
    world = World(CPU=4)
    world.job()
    return world


def unavailable() -> pb.Failure:
    return pb.Failure(kind=pb.UNAVAILABLE, message="no room")


# ---- creation


def test_an_actor_is_created_on_a_node_and_published(world: World) -> None:
    spec = world.spec(1)
    world.ask(subscribe=gcs.Subscribe(channel="actor", key=spec.actor_id))
    reply = world.register(spec)
    assert reply.actor.state == pb.PENDING_CREATION and not reply.actor.spec.creation_task
    create = world.one(1, "create_actor")
    assert create.spec.creation_task == b"construct" and create.attempt == 0
    world.created(1, create, 50)
    info = world.actor(spec.actor_id)
    assert info.state == pb.ALIVE and info.address == address(1, 50) and info.pid == 50
    (news,) = world.news(1, "actor")
    assert news.actor.state == pb.ALIVE and not news.actor.spec.creation_task
    assert [line.split(" ", 1)[1] for line in world.head.story(spec.actor_id)] == [
        "registered: Klass",
        f"to be created on {node_id(1).hex()[:12]}",
        f"ALIVE on {node_id(1).hex()[:12]}, pid 50",
    ]


def test_registering_twice_creates_once(world: World) -> None:
    spec = world.spec(1)
    world.register(spec)
    again = world.register(spec)
    assert not again.failure.kind and len(world.take(1, "create_actor")) == 1


def test_an_actor_of_an_ended_job_is_refused(world: World) -> None:
    world.ask(job_finish=gcs.JobFinish(job_id=ids.job_id(1)))
    refused = world.register(world.spec(1))
    assert refused.failure.kind == pb.INVALID_ARGUMENT and "has ended" in refused.failure.message


def test_creation_takes_its_cpu_until_the_constructor_has_run(world: World) -> None:
    for number in range(1, 7):
        world.register(world.spec(number))
    creates = world.take(1, "create_actor")
    assert len(creates) == 4
    waiting = world.actor(ids.actor_id(bytes([5]) * 12, ids.job_id(1)))
    assert waiting.pending_reason == "waiting for CPU: 1 needed, at most 0 free on node-1"
    world.created(1, creates[0], 50)
    assert len(world.take(1, "create_actor")) == 1, "the CPU was free at once, without a heartbeat"
    world.beat(1, seen=5, CPU=0)
    world.created(1, creates[1], 51)
    assert len(world.take(1, "create_actor")) == 1


def test_heartbeats_do_not_count_placements_twice(world: World) -> None:
    for number in range(1, 3):
        world.register(world.spec(number))
    world.beat(1, seen=2, CPU=2)
    world.register(world.spec(3))
    world.register(world.spec(4))
    assert len(world.take(1, "create_actor")) == 4
    world.beat(1, seen=3, CPU=1)
    world.register(world.spec(5))
    assert world.take(1, "create_actor") == [], "the fourth is not in the report yet"


def test_a_refusing_node_is_asked_again_after_its_next_heartbeat_others_at_once(world: World) -> None:
    world.register(world.spec(1))
    create = world.one(1, "create_actor")
    world.created(1, create, 0, unavailable())
    assert world.take(1, "create_actor") == []
    world.beat(1, seen=1)
    create = world.one(1, "create_actor")
    assert create.attempt == 0, "a refusal is no restart"
    world.join(2, CPU=4)
    world.created(1, create, 0, unavailable())
    assert len(world.take(2, "create_actor")) == 1


def test_an_infeasible_actor_waits_with_a_reason_until_a_node_comes(world: World) -> None:
    spec = world.spec(1, needs={"teapot": 1})
    world.ask(subscribe=gcs.Subscribe(channel="actor", key=spec.actor_id))
    reply = world.register(spec)
    assert reply.actor.pending_reason.startswith("node node-1 does not have 'teapot' (asked 1)")
    assert world.news(1, "actor")[-1].actor.pending_reason == reply.actor.pending_reason
    world.join(2, CPU=1, teapot=1)
    assert world.one(2, "create_actor").spec.actor_id == spec.actor_id


def test_an_affinity_to_a_dead_node_is_an_error_at_once(world: World) -> None:
    strategy = pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=node_id(9)))
    info = world.register(world.spec(1, strategy=strategy)).actor
    assert info.state == pb.DEAD and info.death.kind == pb.ACTOR_UNSCHEDULABLE
    assert "is not alive" in info.death.message


def test_spread_goes_round_the_nodes(world: World) -> None:
    world.join(2, CPU=4)
    for number in range(1, 5):
        world.register(world.spec(number, strategy=pb.SchedulingStrategy(spread=True)))
    assert len(world.take(1, "create_actor")) == len(world.take(2, "create_actor")) == 2


def test_a_constructor_that_raises_ends_the_actor_with_its_error(world: World) -> None:
    spec = world.spec(1, max_restarts=5)
    world.register(spec)
    error = pb.Failure(kind=pb.USER_ERROR, message="ValueError", payload=b"pickled")
    world.created(1, world.one(1, "create_actor"), 0, error)
    info = world.actor(spec.actor_id)
    assert info.state == pb.DEAD and info.death.payload == b"pickled"


def test_a_late_answer_from_a_node_that_is_not_asked_any_more_is_killed(world: World) -> None:
    spec = world.spec(1)
    world.register(spec)
    create = world.one(1, "create_actor")
    world.ask(actor_kill=gcs.ActorKill(actor_id=spec.actor_id, no_restart=True))
    assert world.one(1, "kill_worker").actor_id == spec.actor_id
    world.created(1, create, 50)
    assert world.one(1, "kill_worker").worker_id == worker_id(50)
    assert world.state(spec.actor_id) == "DEAD"


# ---- names


def test_a_name_is_taken_until_its_actor_ends(world: World) -> None:
    first = world.make_actor(world.spec(1, name="boss"))
    refused = world.register(world.spec(2, name="boss"))
    assert refused.failure.kind == pb.ALREADY_EXISTS and "'boss' exists" in refused.failure.message
    same = world.register(world.spec(3, name="boss"), get_if_exists=True)
    assert same.actor.spec.actor_id == first
    found = world.ask(actor_lookup=gcs.ActorLookup(name="boss", namespace="ns"))
    assert found.actor.spec.actor_id == first
    assert world.ask(actor_lookup=gcs.ActorLookup(name="boss", namespace="x")).failure.kind == pb.NOT_FOUND
    world.ask(actor_kill=gcs.ActorKill(actor_id=first, no_restart=True))
    assert not world.register(world.spec(4, name="boss")).failure.kind


def test_listing_filters(world: World) -> None:
    world.make_actor(world.spec(1, name="a"))
    dead = world.make_actor(world.spec(2), worker=51)
    world.ask(actor_kill=gcs.ActorKill(actor_id=dead, no_restart=True))

    def count(**fields: object) -> int:
        return len(world.ask(actor_list=gcs.ActorList(**fields)).actors.actors)

    assert count(all_namespaces=True) == 2
    assert count(namespace="ns", named_only=True) == 1
    assert count(namespace="other") == 0
    assert count(all_namespaces=True, alive_only=True) == 1


# ---- restarts


def test_a_crashed_actor_stays_dead_by_default_and_says_why(world: World) -> None:
    actor = world.make_actor(world.spec(1))
    world.fail_worker(1, 50, actor)
    info = world.actor(actor)
    assert info.state == pb.DEAD and info.death.message == "killed by SIGKILL"


def test_a_crashed_actor_restarts_as_often_as_allowed(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=2))
    for attempt in (1, 2):
        world.fail_worker(1, 50, actor)
        info = world.actor(actor)
        assert info.state == pb.RESTARTING and info.death.message == "killed by SIGKILL"
        world.sleep(1)
        create = world.one(1, "create_actor")
        assert create.attempt == attempt
        world.created(1, create, 50)
        assert world.actor(actor).restarts == attempt
    world.fail_worker(1, 50, actor)
    assert world.state(actor) == "DEAD"


def test_a_crash_in_the_constructor_counts_as_a_restart(world: World) -> None:
    spec = world.spec(1, max_restarts=1)
    world.register(spec)
    world.one(1, "create_actor")
    world.fail_worker(1, 50, spec.actor_id)
    assert world.one(1, "create_actor").attempt == 1
    world.fail_worker(1, 51, spec.actor_id)
    assert world.state(spec.actor_id) == "DEAD"


def test_restarts_of_an_actor_that_dies_young_are_spaced_out(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=-1))
    pauses = []
    for _ in range(5):
        world.fail_worker(1, 50, actor)
        before = world.now
        while not (creates := world.take(1, "create_actor")):
            world.sleep(0.05)
            world.beat(1, seen=100)
        pauses.append(round(world.now - before, 1))
        world.created(1, creates[0], 50)
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8]
    for _ in range(30):
        world.sleep(0.5)
        world.beat(1, seen=100)
    world.fail_worker(1, 50, actor)
    assert len(world.take(1, "create_actor")) == 1, "it lived long: no pause"


def test_exit_actor_ends_even_an_actor_that_may_restart(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=-1))
    world.fail_worker(1, 50, actor, intended=True)
    assert world.state(actor) == "DEAD"


def test_an_old_report_does_not_hit_the_new_process(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=1))
    world.fail_worker(1, 50, actor)
    world.created(1, world.one(1, "create_actor"), 51)
    world.fail_worker(1, 50, actor)
    assert world.state(actor) == "ALIVE"


def test_node_death_moves_actors_that_may_restart(world: World) -> None:
    world.join(2, CPU=4)
    there = pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=node_id(2), soft=True))
    strong = world.make_actor(world.spec(1, max_restarts=1, strategy=there), node=2)
    weak = world.make_actor(world.spec(2, strategy=there), node=2, worker=51)
    starting = world.spec(3, strategy=there)
    world.register(starting)
    world.one(2, "create_actor")
    world.head.node_disconnected(world.now, node_id(2), True)
    world.sleep(2.1)
    assert world.state(weak) == "DEAD" and world.actor(weak).death.kind == pb.NODE_DIED
    creates = {c.spec.actor_id: c.attempt for c in world.take(1, "create_actor")}
    assert creates == {strong: 1, starting.actor_id: 0}


def test_a_drained_node_costs_no_restart(world: World) -> None:
    world.join(2, CPU=4)
    there = pb.SchedulingStrategy(affinity=pb.NodeAffinity(node_id=node_id(2), soft=True))
    actor = world.make_actor(world.spec(1, max_restarts=1, strategy=there), node=2)
    world.say(2, leaving=gcs.NodeLeaving(reason="drained"))
    create = world.one(1, "create_actor")
    assert create.attempt == 1
    world.created(1, create, 51)
    world.fail_worker(1, 51, actor)
    assert world.state(actor) == "RESTARTING", "its one restart was still there"


# ---- ends


def test_kill_is_final_at_once(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=-1))
    world.ask(actor_kill=gcs.ActorKill(actor_id=actor, no_restart=True))
    assert world.state(actor) == "DEAD"
    kill = world.one(1, "kill_worker")
    assert kill.worker_id == worker_id(50) and not kill.graceful
    world.fail_worker(1, 50, actor, intended=True)
    assert world.state(actor) == "DEAD"


def test_kill_with_restart_restarts_if_it_may(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=1))
    world.ask(actor_kill=gcs.ActorKill(actor_id=actor))
    assert world.state(actor) == "ALIVE"
    world.one(1, "kill_worker")
    world.fail_worker(1, 50, actor, intended=True)
    assert world.one(1, "create_actor").attempt == 1


def test_a_kill_that_is_repeated_after_a_head_restart_kills_once(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=5))
    kill = gcs.ActorKill(actor_id=actor)
    world.ask(request_id=77, actor_kill=kill)
    world.fail_worker(1, 50, actor, intended=True)
    world.created(1, world.one(1, "create_actor"), 51)
    world.start()
    live = gcs.LiveActor(actor_id=actor, worker_id=worker_id(51), pid=51)
    world.join(1, CPU=4, actors=[live], jobs=[ids.job_id(1)])
    world.ask(request_id=77, actor_kill=kill)
    assert world.take(1, "kill_worker") == []


def test_out_of_scope_ends_gracefully_and_frees_the_name(world: World) -> None:
    actor = world.make_actor(world.spec(1, name="boss", max_restarts=-1))
    world.ask(actor_handle_gone=gcs.ActorHandleGone(actor_id=actor))
    assert world.one(1, "kill_worker").graceful
    assert world.state(actor) == "ALIVE", "it finishes what it has"
    assert not world.register(world.spec(2, name="boss")).failure.kind
    world.fail_worker(1, 50, actor, intended=True)
    info = world.actor(actor)
    assert info.state == pb.DEAD


def test_a_detached_actor_outlives_handles_owner_and_job(world: World) -> None:
    actor = world.make_actor(world.spec(1, detached=True, name="d"))
    world.ask(actor_handle_gone=gcs.ActorHandleGone(actor_id=actor))
    world.fail_worker(1, 1, is_driver=True)
    assert world.take(1, "kill_worker") == [] and world.state(actor) == "ALIVE"
    assert not world.register(world.spec(2, owner=50)).failure.kind, "and may make actors of its own"


def test_an_owner_takes_its_actors_along(world: World) -> None:
    actor = world.make_actor(world.spec(1, owner=7, max_restarts=-1))
    grandchild = world.make_actor(world.spec(2, owner=50), worker=51)
    world.fail_worker(1, 7)
    assert world.actor(actor).death.kind == pb.OWNER_DIED
    assert [k.worker_id for k in world.take(1, "kill_worker")] == [worker_id(50)]
    world.fail_worker(1, 50, actor, intended=True)
    assert world.state(grandchild) == "DEAD"


def test_the_end_of_a_driver_ends_its_job_and_actors(world: World) -> None:
    actor = world.make_actor(world.spec(1, owner=7))
    world.fail_worker(1, 1, is_driver=True)
    assert world.one(1, "job_ended").job_id == ids.job_id(1)
    assert world.state(actor) == "DEAD"
    (job,) = world.ask(job_list=gcs.JobList()).jobs.jobs
    assert job.state == pb.JOB_FAILED


# ---- a head that comes back


def test_living_actors_go_on_after_a_restart_of_the_head(world: World) -> None:
    actor = world.make_actor(world.spec(1, name="boss"))
    world.start()
    live = gcs.LiveActor(actor_id=actor, worker_id=worker_id(50), pid=50)
    world.join(1, CPU=4, actors=[live], jobs=[ids.job_id(1)])
    info = world.ask(actor_lookup=gcs.ActorLookup(name="boss", namespace="ns")).actor
    assert info.state == pb.ALIVE and info.address == address(1, 50)
    assert world.take(1, "create_actor") == world.take(1, "kill_worker") == []


def test_an_actor_that_died_while_the_head_was_away_restarts(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=1))
    world.start()
    world.join(1, CPU=4, jobs=[ids.job_id(1)])
    create = world.one(1, "create_actor")
    assert create.attempt == 1 and create.spec.creation_task == b"construct"
    assert "while the head was away" in world.actor(actor).death.message


def test_a_creation_in_progress_is_asked_for_again_on_the_same_node(world: World) -> None:
    world.join(2, CPU=400)
    spec = world.spec(1, needs={"CPU": 300})
    world.register(spec)
    world.one(2, "create_actor")
    world.start()
    world.join(1, CPU=4, jobs=[ids.job_id(1)])
    assert world.take(1, "create_actor") == []
    world.join(2, CPU=400)
    create = world.one(2, "create_actor")
    world.created(2, create, 50)
    assert world.state(spec.actor_id) == "ALIVE"


def test_a_creation_that_finished_unheard_is_found(world: World) -> None:
    spec = world.spec(1)
    world.register(spec)
    world.one(1, "create_actor")
    world.start()
    live = gcs.LiveActor(actor_id=spec.actor_id, worker_id=worker_id(50), pid=50)
    world.join(1, CPU=4, actors=[live], jobs=[ids.job_id(1)])
    assert world.state(spec.actor_id) == "ALIVE" and world.take(1, "create_actor") == []


def test_actors_that_nobody_wants_any_more_are_killed_on_return(world: World) -> None:
    actor = world.make_actor(world.spec(1))
    world.ask(actor_kill=gcs.ActorKill(actor_id=actor, no_restart=True))
    world.start()
    live = gcs.LiveActor(actor_id=actor, worker_id=worker_id(50), pid=50)
    stranger = gcs.LiveActor(actor_id=b"?" * 16, worker_id=worker_id(60), pid=60)
    world.join(1, CPU=4, actors=[live, stranger], jobs=[ids.job_id(1)])
    assert [k.worker_id for k in world.take(1, "kill_worker")] == [worker_id(50), worker_id(60)]


def test_waiting_actors_wait_on_after_a_restart(world: World) -> None:
    spec = world.spec(1, needs={"teapot": 1})
    world.register(spec)
    world.start()
    world.join(1, CPU=4, teapot=1, jobs=[ids.job_id(1)])
    assert world.one(1, "create_actor").spec.actor_id == spec.actor_id


def test_an_owner_that_ended_while_the_head_was_away_takes_its_actors_along(world: World) -> None:
    orphan = world.make_actor(world.spec(1, owner=7))
    kept = world.make_actor(world.spec(2, owner=8), worker=51)
    world.start()
    live = [gcs.LiveActor(actor_id=a, worker_id=worker_id(w)) for a, w in ((orphan, 50), (kept, 51))]
    world.join(1, CPU=4, actors=live, jobs=[ids.job_id(1)], workers=[1, 8, 50, 51])
    assert world.actor(orphan).death.kind == pb.OWNER_DIED and world.state(kept) == "ALIVE"


def test_a_driver_that_ended_while_the_head_was_away_ends_its_job(world: World) -> None:
    actor = world.make_actor(world.spec(1))
    world.start()
    live = gcs.LiveActor(actor_id=actor, worker_id=worker_id(50), pid=50)
    world.join(1, CPU=4, actors=[live])
    assert world.state(actor) == "DEAD"
    assert world.one(1, "job_ended").job_id == ids.job_id(1)


def test_waiting_actors_of_one_shape_cost_one_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 50):
        world.register(world.spec(number, needs={"CPU": 4}))
    assert len(world.take(1, "create_actor")) == 1
    looks = []
    monkeypatch.setattr(actor_queue, "choose", lambda *a, **k: looks.append(1) or policy.choose(*a, **k))
    world.join(2, CPU=2)
    assert looks == [1] and world.head.actors.count() == (0, 49)
