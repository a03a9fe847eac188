"""Nodes at the GCS: joining, silence, refusal, fencing, what the others are told."""

from __future__ import annotations

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from tests.core.head_world import World, node_id


def states(world: World) -> dict[int, str]:
    nodes = world.call(node_list=gcs.NodeList()).nodes.nodes
    return {info.node_id[0]: pb.NodeState.Name(info.state) for info in nodes}


def test_a_node_is_accepted_and_sees_the_whole_cluster() -> None:
    world = World(CPU=4)
    registered = world.one(1, "registered")
    assert registered.accepted and registered.epoch == 1 and len(registered.cluster_id) == 16
    view = world.one(1, "view")
    assert view.full and [info.node_id for info in view.nodes] == [node_id(1)]


def test_the_others_get_deltas_and_a_node_hears_nothing_of_itself_alone() -> None:
    world = World(CPU=4)
    world.join(2, CPU=8)
    world.sleep(0.2)
    world.take(1, "view"), world.take(2, "view")
    world.beat(2, CPU=3)
    world.sleep(0.2)
    (delta,) = world.take(1, "view")
    assert not delta.full and delta.figures[0].available.amounts["CPU"] == 3 * 10_000
    assert world.take(2, "view") == []
    world.beat(2, CPU=3)
    world.sleep(0.2)
    assert world.take(1, "view") == [], "nothing has changed"


def test_a_silent_node_is_dead_after_ten_seconds() -> None:
    world = World(CPU=4)
    world.join(2, CPU=8)
    for _ in range(19):
        world.sleep(0.5)
        world.beat(1)
    assert states(world) == {1: "NODE_ALIVE", 2: "NODE_ALIVE"}
    for _ in range(3):
        world.sleep(0.5)
        world.beat(1)
    assert states(world) == {1: "NODE_ALIVE", 2: "NODE_DEAD"}
    info = world.ask(node_list=gcs.NodeList(node_ids=[node_id(2), b"unknown"])).nodes.nodes[0]
    assert info.death.kind == pb.NODE_DIED
    assert info.death.message == "node node-2 (02020202) died: silent for 10 s"


def test_a_refusing_node_is_dead_after_two_seconds_unless_it_returns() -> None:
    world = World(CPU=4)
    world.join(2, CPU=8)
    world.join(3, CPU=8)
    for node in (2, 3):
        world.head.node_disconnected(world.now, node_id(node), True)
    world.sleep(1.5)
    world.head.node_connected(world.now, node_id(3))
    world.sleep(0.6)
    assert states(world) == {1: "NODE_ALIVE", 2: "NODE_DEAD", 3: "NODE_ALIVE"}


def test_a_broken_stream_alone_kills_nobody() -> None:
    world = World(CPU=4)
    world.head.node_disconnected(world.now, node_id(1), False)
    world.sleep(9)
    assert states(world) == {1: "NODE_ALIVE"}


def test_a_dead_node_is_refused_whatever_it_says() -> None:
    world = World(CPU=4)
    world.join(2, CPU=8)
    world.head.node_disconnected(world.now, node_id(2), True)
    world.sleep(3)
    world.take(2, "registered")
    world.beat(2)
    refused = world.one(2, "registered")
    assert not refused.accepted and "was declared dead" in refused.refusal
    world.join(2, CPU=8)
    assert not world.one(2, "registered").accepted
    world.start()
    world.join(2, CPU=8)
    assert not world.one(2, "registered").accepted, "not even after a restart of the head"


def test_a_dead_node_cannot_change_anything_any_more() -> None:
    """It was cut off and does not know yet that its work has moved on."""
    world = World(CPU=4)
    world.join(2, CPU=8)
    world.head.node_disconnected(world.now, node_id(2), True)
    world.sleep(3)
    world.take(2, "registered")
    request = gcs.ControlRequest(request_id=99, kv_put=gcs.KvPut(key=b"k", value=b"late"))
    world.say(2, request=request)
    assert not world.one(2, "registered").accepted and 99 not in world.replies
    assert not world.ask(kv_get=gcs.KvGet(key=b"k")).kv.found


def test_a_node_cannot_register_for_another() -> None:
    world = World(CPU=4)
    world.say(2, register=gcs.NodeRegister(info=pb.NodeInfo(node_id=node_id(3))))
    assert not world.one(2, "registered").accepted


def test_messages_before_registration_are_dropped() -> None:
    world = World()
    world.totals[1] = {"CPU": 1}
    world.beat(1)
    assert world.inbox == {} and world.head.members.living == {}


def test_after_a_restart_the_saved_nodes_are_awaited_and_then_dead() -> None:
    world = World(CPU=4)
    world.join(2, CPU=8)
    world.start()
    world.join(1, CPU=4)
    assert states(world) == {1: "NODE_ALIVE", 2: "NODE_ALIVE"}
    for _ in range(22):
        world.sleep(0.5)
        world.beat(1)
    assert states(world) == {1: "NODE_ALIVE", 2: "NODE_DEAD"}


def test_a_head_that_stood_still_does_not_blame_the_nodes() -> None:
    world = World(CPU=4)
    world.now += 30  # SIGSTOP, or a laptop's sleep: what the nodes said is still to be read
    world.settle()
    assert states(world) == {1: "NODE_ALIVE"}
    world.sleep(11)
    assert states(world) == {1: "NODE_DEAD"}


def test_draining_takes_no_work_and_leaving_is_no_crash() -> None:
    world = World(CPU=4)
    world.join(2, CPU=8)
    world.ask(drain=gcs.DrainRequest(node_id=node_id(2), deadline_s=30, reason="maintenance"))
    order = world.one(2, "drain")
    assert order.deadline_s == 30 and states(world)[2] == "NODE_DRAINING"
    assert world.ask(drain=gcs.DrainRequest(node_id=node_id(9))).failure.kind == pb.NOT_FOUND
    world.say(2, leaving=gcs.NodeLeaving(reason="drained"))
    assert states(world)[2] == "NODE_DEAD"
    info = world.ask(node_list=gcs.NodeList()).nodes.nodes[1]
    assert info.death.message == "node node-2 (02020202) left the cluster: drained"


def test_cluster_identity_survives_and_the_epoch_grows() -> None:
    world = World(CPU=4)
    first = world.one(1, "registered")
    world.start()
    world.join(1, CPU=4)
    second = world.one(1, "registered")
    assert second.cluster_id == first.cluster_id and second.epoch == first.epoch + 1


def test_pending_demand_is_summed_over_nodes() -> None:
    world = World(CPU=4)
    world.join(2, CPU=4)
    for node in (1, 2):
        demand = gcs.Demand(resources=pb.ResourceMap(amounts={"CPU": 10_000}), count=3, reason="busy")
        world.say(node, heartbeat=gcs.Heartbeat(demand=[demand]))
    status = world.ask(status=gcs.StatusQuery()).status
    assert [d.count for d in status.demand] == [6] and len(status.nodes) == 2
