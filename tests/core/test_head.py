"""The head as a whole: order of saving and telling, single calls, what it shows."""

from __future__ import annotations

from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.contract import Persist, Send
from miniray.core.head import Answer
from tests.core.head_world import World, address, node_id


def test_rows_come_before_what_acknowledges_them() -> None:
    world = World(CPU=4)
    world.job()
    requests: list[dict[str, Any]] = [
        {"actor_register": gcs.ActorRegister(spec=world.spec(1, name="a"))},
        {"kv_put": gcs.KvPut(key=b"k", value=b"v")},
        {"job_finish": gcs.JobFinish(job_id=ids.job_id(1))},
    ]
    for number, body in enumerate(requests, 1000):
        request = gcs.ControlRequest(request_id=number, sender=address(1, 1), **body)
        world.head.node_message(world.now, node_id(1), gcs.NodeMessage(request=request))
        kinds = [type(effect) for effect in world.head.out]
        sends = [i for i, e in enumerate(world.head.out) if type(e) is Send]
        reply = max(i for i in sends if world.head.out[i].message.HasField("reply"))
        assert Persist in kinds and kinds.index(Persist) < reply
        last_row = max(i for i, kind in enumerate(kinds) if kind is Persist)
        assert last_row < reply, f"{list(body)} is acknowledged before it is saved"
        world.settle()


def test_a_single_call_is_answered_by_its_ticket() -> None:
    world = World(CPU=4)
    world.head.request(world.now, gcs.ControlRequest(request_id=5, status=gcs.StatusQuery()), 42)
    (answer,) = [e for e in world.head.out if isinstance(e, Answer)]
    assert answer.ticket == 42 and answer.reply.request_id == 5 and len(answer.reply.status.nodes) == 1
    world.head.request(world.now, gcs.ControlRequest(subscribe=gcs.Subscribe(channel="log")), 43)
    assert world.head.out[-1].reply.failure.kind == pb.INVALID_ARGUMENT


def test_an_unknown_request_is_refused_in_words() -> None:
    world = World(CPU=4)
    assert "does not know this request" in world.ask().failure.message


def test_status_counts() -> None:
    world = World(CPU=4)
    world.job()
    world.make_actor(world.spec(1))
    world.register(world.spec(2, needs={"teapot": 1}))
    world.sleep(5)
    status = world.ask(status=gcs.StatusQuery()).status
    assert (status.actors_alive, status.actors_pending, status.jobs_running) == (1, 1, 1)
    assert status.epoch == 1 and status.uptime_s == 5.0


def test_dump_and_story_show_the_state() -> None:
    world = World(CPU=4)
    world.job()
    actor = world.make_actor(world.spec(1))
    dump = world.head.dump()
    assert dump["nodes"]["node-1"]["available"] == "{CPU: 4}"
    assert dump["actors"][f"Klass {actor.hex()[:12]}"]["state"] == "ALIVE"
    assert world.head.story(node_id(1)) == ["100.000 registered"]
