"""Publications: once per node, in order, never lost silently when a subscriber is slow."""

from __future__ import annotations

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray.core import pubsub
from miniray.core.contract import Send
from miniray.core.head import REUNION_S
from tests.core.head_world import World, address, node_id, one_by_one, worker_id


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


def test_early_deaths_are_told_to_who_subscribes_late_but_not_for_ever(world: World) -> None:
    world.fail_worker(1, 77)
    subscribe(world, "worker")
    assert [p.worker.failure.message for p in world.news(2, "worker")] == ["killed by SIGKILL"]
    world.sleep(2 * REUNION_S)
    world.join(3, CPU=4)
    subscribe(world, "worker", node=3)
    assert world.news(3, "worker") == []


# ---- news for everybody, gathered


def deaths(world: World, node: int = 2) -> list[int]:
    """The workers whose ends the node has heard of since the last call, in order."""
    return [p.key[0] - 100 for p in world.news(node, "worker")]


def messages(world: World, node: int = 2) -> list[str]:
    """The kinds of the messages that carried publications, none taken."""
    kinds = [m.WhichOneof("body") or "" for m in world.inbox.get(node, [])]
    return [kind for kind in kinds if kind.startswith("publication")]


def test_a_single_death_is_told_at_once(world: World) -> None:
    subscribe(world, "worker")
    for worker in (50, 51):
        before = world.now
        world.fail_worker(1, worker)
        assert world.now == before and messages(world) == ["publication"] and deaths(world) == [worker]
        world.sleep(pubsub.GATHER_S)
        assert deaths(world) == [], "once"


def test_many_deaths_are_one_message_in_order(world: World) -> None:
    subscribe(world, "worker")
    subscribe(world, "worker", node=1)
    for worker in range(50, 80):
        world.fail_worker(1, worker)
    assert deaths(world) == [50], "the others gather"
    world.sleep(pubsub.GATHER_S)
    assert messages(world) == ["publications"] and messages(world, node=1) == ["publication", "publications"]
    news = world.news(2, "worker")
    assert [p.key[0] - 100 for p in news] == list(range(51, 80))
    assert [p.cursor for p in news] == sorted({p.cursor for p in news})
    assert all(p.worker.failure.message == "killed by SIGKILL" for p in news)
    assert deaths(world, node=1) == list(range(50, 80)) and world.head.pubsub.next_deadline() is None


def test_deaths_of_one_turn_go_together_and_are_encoded_once(world: World) -> None:
    world.join(3, CPU=4)
    for node in (2, 3):
        subscribe(world, "worker", node=node)
    for worker in (50, 51):
        failed = gcs.WorkerFailed(address=address(1, worker))
        world.head.node_message(world.now, node_id(1), gcs.NodeMessage(worker_failed=failed))
    world.head.tick(world.now)
    sent = [effect.message for effect in world.head.out if isinstance(effect, Send)]
    assert len(sent) == 2 and sent[0] is sent[1], "one message for both readers"
    world.settle()
    assert deaths(world) == deaths(world, node=3) == [50, 51]


def test_many_deaths_are_deflated(world: World) -> None:
    subscribe(world, "worker")
    for worker in range(50, 150):
        world.fail_worker(1, worker)
    assert deaths(world) == [50]
    world.sleep(1)
    (message,) = [m for m in world.inbox[2] if m.WhichOneof("body") == "publications"]
    plain = gcs.Publications(publications=[m.publication for m in one_by_one(message)])
    assert message.ByteSize() < plain.ByteSize() / 2
    assert deaths(world) == list(range(51, 150))


def test_where_many_read_of_deaths_they_are_told_more_rarely(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "URGENT_BYTES_PER_S", pubsub.MESSAGE_BYTES)   # two messages in two seconds
    subscribe(world, "worker", node=1)
    subscribe(world, "worker")
    for worker in (50, 51):
        world.fail_worker(1, worker)
    world.sleep(1.9)
    assert deaths(world) == [50] == deaths(world, node=1)
    world.sleep(0.5)
    assert deaths(world) == [51] == deaths(world, node=1)


def test_a_late_subscriber_hears_each_death_once(world: World) -> None:
    subscribe(world, "worker", node=1)
    for worker in (50, 51):
        world.fail_worker(1, worker)
    subscribe(world, "worker")
    world.fail_worker(1, 52)
    world.sleep(1)
    assert deaths(world, node=1) == [50, 51, 52]
    assert deaths(world) == [50, 51, 52], "the first two as the present state, for the head is young"


def test_who_leaves_gets_what_was_published_before(world: World) -> None:
    for node in (1, 2):
        subscribe(world, "worker", node=node)
    for worker in (50, 51):
        world.fail_worker(1, worker)
    world.ask(node=2, subscribe=gcs.Subscribe(channel="worker", unsubscribe=True))
    world.fail_worker(1, 52)
    world.sleep(1)
    assert deaths(world) == [50, 51] and deaths(world, node=1) == [50, 51, 52]


def test_a_reader_of_one_worker_hears_only_of_that_one(world: World) -> None:
    subscribe(world, "worker", worker_id(52))
    subscribe(world, "worker", node=1)
    subscribe(world, "worker", worker_id(52), node=1)
    for worker in range(50, 55):
        world.fail_worker(1, worker)
    world.sleep(1)
    assert deaths(world) == [52] and deaths(world, node=1) == list(range(50, 55))


def test_a_slow_reader_gets_what_gathered_when_it_can_take_it(world: World) -> None:
    subscribe(world, "worker")
    world.fail_worker(1, 50)
    world.fail_worker(1, 51)
    world.head.node_congested(world.now, node_id(2), True)
    world.fail_worker(1, 52)
    world.sleep(1)
    assert deaths(world) == [50]
    world.head.node_congested(world.now, node_id(2), False)
    world.settle()
    assert deaths(world) == [51, 52]


def test_a_dead_node_does_not_get_what_gathered(world: World) -> None:
    for node in (1, 2):
        subscribe(world, "worker", node=node)
    for worker in (50, 51):
        world.fail_worker(1, worker)
    world.say(2, leaving=gcs.NodeLeaving(reason="it was drained"))
    world.sleep(1)
    assert deaths(world) == [50] and deaths(world, node=1) == [50, 51]


def test_more_than_fit_one_message_do_not_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "GATHER_LIMIT", 3)
    subscribe(world, "worker")
    for worker in range(50, 55):
        world.fail_worker(1, worker)
    assert deaths(world) == [50, 51, 52, 53]
    world.sleep(1)
    assert deaths(world) == [54]
