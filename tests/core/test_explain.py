"""What the GCS says when it is asked why: sentences, chains, stories. Questions to others: test_questions."""

from __future__ import annotations

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.events import pack_row
from tests.core.head_world import World, amounts, node_id, worker_id

JOB = ids.job_id(1)
TASK = ids.task_id(b"t" * 8, JOB)


def world() -> World:
    made = World(CPU=4)
    made.job()
    return made


def asked(made: World, key: bytes, ticket: bytes = b"") -> gcs.Explanation:
    return made.ask(explain=gcs.ExplainQuery(id=key, ticket=ticket)).explanation


def told(made: World, key: bytes) -> str:
    found = asked(made, key)
    return " < ".join([found.sentence, *found.chain])


def test_an_actor_without_room_says_what_is_missing() -> None:
    made = world()
    spec = made.spec(needs={"GPU": 1})
    made.register(spec)
    text = told(made, spec.actor_id)
    assert text.startswith("actor Klass (") and "is not alive yet < " in text and "'GPU' (asked 1)" in text


def test_an_actor_whose_constructor_runs_says_where() -> None:
    made = world()
    spec = made.spec()
    made.register(spec)
    assert made.one(1, "create_actor")
    text = told(made, spec.actor_id)
    assert "is not alive yet < it is being created on node node-1" in text


def test_an_actor_in_a_group_that_waits_has_the_groups_reason_behind_it() -> None:
    made = world()
    group = bytes(14) + JOB
    bundle = pb.BundleInfo(index=0, resources=amounts(CPU=9))
    info = pb.PlacementGroupInfo(placement_group_id=group, bundles=[bundle], creator_job_id=JOB)
    made.ask(group_create=gcs.GroupCreate(info=info))
    strategy = pb.SchedulingStrategy(bundle=pb.BundleChoice(placement_group_id=group))
    spec = made.spec(strategy=strategy)
    made.register(spec)
    text = told(made, spec.actor_id)
    assert "waits for room < bundle 0: no node has 9 CPU: the most is 4 on node-1" in text
    assert "< bundle 0, {CPU: 9}: nowhere" in told(made, group)


def test_a_live_actor_says_where_it_runs_and_a_dead_one_why_it_died() -> None:
    made = world()
    actor = made.make_actor(made.spec(name="counter"))
    assert "actor Klass 'counter'" in told(made, actor) and "runs on node node-1" in told(made, actor)
    made.fail_worker(1, 50, actor)
    found = asked(made, actor)
    assert found.sentence.endswith("is dead") and "killed by SIGKILL" in found.chain[0]
    made.sleep(2.0)
    story = asked(made, actor).story
    assert story[0].startswith("2.0 s ago: registered: Klass counter")
    assert "killed by SIGKILL" in story[-1]


def test_what_died_with_its_node_has_the_nodes_death_behind_it() -> None:
    made = world()
    made.join(2, CPU=4)
    made.sleep(9.0)
    made.beat(1)
    row = pack_row(task_id=TASK, name="f", state="FAILED", node_id=node_id(2), worker_id=worker_id(5),
                   error="the worker died", submitted_at=1.0, started_at=4.0, ended_at=5.0, attempt=1)
    made.say(1, task_events=gcs.TaskEventBatch(job_id=JOB, rows=row))
    made.sleep(3.0)
    made.beat(1)
    text = told(made, TASK)
    assert "task f (" in text and "failed after 1.000 s on node node-2" in text
    assert "attempt 2" in text and "the worker died" in text and "waited 3.0 s" in text
    assert "is dead: node node-2" in text and "silent" in text
    assert "node node-2" in told(made, node_id(2)) and "is dead" in told(made, node_id(2))
    assert told(made, ids.object_id(TASK, 1)).endswith(told(made, TASK))


def test_nodes_jobs_and_workers_are_known_by_their_ids() -> None:
    made = world()
    assert "is alive < free are {CPU: 4} of {CPU: 4}" in told(made, node_id(1))
    assert told(made, JOB).startswith(f"job {JOB.hex()} (x.py) runs < driver pid 7 on node node-1")
    actor = made.make_actor(made.spec())
    assert "hosts an actor < actor Klass (" in told(made, worker_id(50)) and actor
    assert "is the driver of a job" in told(made, worker_id(1))
    put = ids.object_id(TASK, ids.PUT_INDEX + 1)
    assert told(made, put).startswith(f"object {put.hex()} was put, not returned by a task < job ")
    for unknown in (b"", b"x", bytes(16), bytes(18), bytes(24), bytes(28), b"\xff" * 28):
        assert not asked(made, unknown).kind
