"""Publications: once per node, in order, never lost silently when a subscriber is slow."""

from __future__ import annotations

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray.core import pubsub
from tests.core.head_world import World, node_id


@pytest.fixture
def world() -> World:
    world = World(CPU=4)
    world.join(2, CPU=4)
    world.job()
    return world


def subscribe(world: World, channel: str, key: bytes = b"", node: int = 2, cursor: int = 0) -> None:
    world.ask(node=node, subscribe=gcs.Subscribe(channel=channel, key=key, cursor=cursor))


def say(world: World, text: bytes, key: bytes = b"", channel: str = "log") -> None:
    publication = gcs.Publication(channel=channel, key=key, data=text)
    world.ask(publish=gcs.Publish(publication=publication))


def heard(world: World, channel: str = "log", node: int = 2) -> list[bytes]:
    return [b"RESYNC" if p.resync else p.data for p in world.news(node, channel)]


def test_subscribers_of_a_key_and_of_all_keys_hear_it_once(world: World) -> None:
    subscribe(world, "log")
    subscribe(world, "log", b"k")
    subscribe(world, "log", b"k", node=1)
    say(world, b"one", b"k")
    say(world, b"two", b"other")
    assert heard(world) == [b"one", b"two"] and heard(world, node=1) == [b"one"]


def test_unsubscribing_ends_it(world: World) -> None:
    subscribe(world, "log")
    world.ask(node=2, subscribe=gcs.Subscribe(channel="log", unsubscribe=True))
    say(world, b"one")
    assert heard(world) == []


def test_cursors_grow_even_across_restarts(world: World) -> None:
    subscribe(world, "log")
    say(world, b"1")
    say(world, b"2")
    cursors = [p.cursor for p in world.news(2, "log")]
    world.start()
    world.join(1, CPU=4)
    world.join(2, CPU=4)
    subscribe(world, "log")
    say(world, b"3")
    cursors += [p.cursor for p in world.news(2, "log")]
    assert cursors == sorted(set(cursors)) and len(cursors) == 3


def test_a_new_subscriber_starts_from_the_present_state(world: World) -> None:
    actor = world.make_actor(world.spec(1))
    subscribe(world, "actor", actor)
    (present,) = world.news(2, "actor")
    assert present.actor.spec.actor_id == actor and present.key == actor
    subscribe(world, "node")
    assert [p.node.node_id for p in world.news(2, "node")] == [node_id(1), node_id(2)]
    subscribe(world, "actor", b"x" * 16)
    assert world.news(2, "actor") == []


def test_data_missed_while_away_means_resync(world: World) -> None:
    subscribe(world, "log")
    say(world, b"1")
    (seen,) = [p.cursor for p in world.news(2, "log")]
    subscribe(world, "log", cursor=seen)
    assert heard(world) == [], "nothing was missed"
    say(world, b"2")
    heard(world)
    subscribe(world, "log", cursor=seen)
    assert heard(world) == [b"RESYNC"]


def test_a_slow_subscriber_gets_the_latest_state_per_key_and_all_data(world: World) -> None:
    actor = world.make_actor(world.spec(1, max_restarts=-1))
    subscribe(world, "actor", actor)
    subscribe(world, "log")
    world.news(2, "actor")
    world.head.node_congested(world.now, node_id(2), True)
    for _ in range(3):
        world.fail_worker(1, 50, actor)
        world.sleep(1)
        world.created(1, world.one(1, "create_actor"), 50)
        say(world, b"line")
    assert world.news(2, "actor") == [] and heard(world) == []
    world.head.node_congested(world.now, node_id(2), False)
    world.settle()
    assert [p.actor.restarts for p in world.news(2, "actor")] == [3]
    assert heard(world) == [b"line"] * 3


def test_overflow_drops_the_oldest_data_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "PENDING_DATA", 3)
    subscribe(world, "log")
    world.head.node_congested(world.now, node_id(2), True)
    for number in range(5):
        say(world, b"%d" % number)
    world.head.node_congested(world.now, node_id(2), False)
    world.settle()
    assert heard(world) == [b"RESYNC", b"2", b"3", b"4"]


def test_dead_nodes_are_forgotten(world: World) -> None:
    subscribe(world, "log")
    world.head.node_congested(world.now, node_id(2), True)
    say(world, b"1")
    world.head.node_disconnected(world.now, node_id(2), True)
    world.sleep(3)
    say(world, b"2")
    assert world.head.pubsub.dump() == {"subscriptions": {}, "held": []}


def test_worker_deaths_are_published(world: World) -> None:
    subscribe(world, "worker")
    world.fail_worker(1, 77)
    (news,) = world.news(2, "worker")
    assert news.worker.failure.message == "killed by SIGKILL"
