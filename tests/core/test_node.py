"""The whole node: actors, bundles, channels, relays, requests to the GCS, jobs, drain, other nodes."""

from __future__ import annotations

from typing import Any

import pytest
from rig import JOB, NODE, PEER, UNIT, Rig, node_info, resource_map, scheduling_class

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, raylet_pb2, worker_pb2
from miniray.core.claims import CLAIM_LASTS_S
from miniray.core.contract import HEAD
from miniray.core.memory import GARBAGE_EVERY_S
from miniray.core.node_effects import (
    CloseFd,
    ConnectWorkers,
    DeleteObjects,
    DropClient,
    ForgetPeer,
    StopNode,
    ToClient,
)

ACTOR = b"a" * 12 + JOB
GROUP = b"g" * 14 + JOB


def actor_spec(detached: bool = False, **amounts: float) -> common.ActorSpec:
    return common.ActorSpec(
        actor_id=ACTOR, creation_class=scheduling_class("A"), lifetime_resources=resource_map(**amounts),
        class_name="A", detached=detached)


def create(rig: Rig, attempt: int = 0, **spec: Any) -> None:
    rig.head(create_actor=gcs_pb2.CreateActor(spec=actor_spec(**spec), attempt=attempt))


def ready_actor(rig: Rig, **spec: Any) -> bytes:
    """An actor whose constructor has run. Returns its worker."""
    create(rig, **spec)
    if rig.starts:
        rig.boot_all()
    worker_id = rig.node.hosting.actors[ACTOR].worker_id
    (start,) = rig.messages(worker_id, "start_actor")
    assert start.spec.actor_id == ACTOR
    rig.say(worker_id, actor_ready=worker_pb2.ActorReady(actor_id=ACTOR))
    return worker_id


def cpu_free(rig: Rig) -> float:
    return rig.node.resources.available.get("CPU", 0) / UNIT


def test_workers_are_started_ahead_for_each_cpu_and_none_without() -> None:
    with_cpus, without = Rig(CPU=2), Rig(CPU=0, GPU=1)
    with_cpus.driver()
    without.driver()
    assert len(with_cpus.starts) == 2
    assert not without.starts


# ---- actors ----


def test_an_actor_gets_resources_a_worker_and_keeps_only_its_lifetime_share() -> None:
    rig = Rig()
    rig.driver()
    rig.boot_all()
    worker_id = ready_actor(rig)
    (created,) = rig.to(HEAD, "actor_created")
    assert created.address.worker_id == worker_id and not created.HasField("failure") and created.pid
    assert cpu_free(rig) == 2
    rig.exit(worker_id)
    (failed,) = rig.to(HEAD, "worker_failed")
    assert failed.actor_id == ACTOR and not failed.intended


def test_a_full_node_refuses_an_actor_at_once() -> None:
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    create(rig)
    (created,) = rig.to(HEAD, "actor_created")
    assert created.failure.kind == common.UNAVAILABLE


def refused_actor_beside_a_waiting_task() -> tuple[Rig, bytes, Any]:
    """One CPU: a task has it, a second task waits, and so does an actor. Then the first one lends it."""
    rig = Rig(CPU=1)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (first,) = rig.grants(driver)
    rig.ask(driver)
    create(rig)
    assert rig.to(HEAD, "actor_created")[0].failure.kind == common.UNAVAILABLE
    rig.say(first.worker.worker_id, blocked=worker_pb2.WorkerBlocked(blocked=True))
    rig.boot_all()
    return rig, driver, first


def test_a_cpu_that_is_lent_goes_to_the_refused_actor_before_further_tasks() -> None:
    rig, driver, _ = refused_actor_beside_a_waiting_task()
    assert not rig.grants(driver) and cpu_free(rig) == 1, "the tasks may all be waiting for the actor"
    ready_actor(rig)
    rig.boot_all()
    assert rig.grants(driver), "its constructor has run, and it needs no CPU any more"
    assert not rig.node.leases.claims.by_actor


def test_a_refused_actor_that_does_not_come_again_holds_up_tasks_for_a_short_time_only() -> None:
    rig, driver, _ = refused_actor_beside_a_waiting_task()
    rig.advance(CLAIM_LASTS_S + 1)
    rig.boot_all()
    assert rig.grants(driver) and not rig.node.leases.claims.by_actor


def test_a_repeated_create_is_answered_again_and_makes_nothing_new() -> None:
    rig = Rig()
    rig.driver()
    rig.boot_all()
    worker_id = ready_actor(rig)
    create(rig)
    first, second = rig.to(HEAD, "actor_created")
    assert first == second and not rig.messages(worker_id, "start_actor")
    create(rig, attempt=1)
    assert rig.to(HEAD, "actor_created")[0].failure.kind == common.UNAVAILABLE, "its former worker lives"


def test_a_constructor_that_raises_is_reported_and_its_worker_goes() -> None:
    rig = Rig()
    rig.driver()
    rig.boot_all()
    create(rig)
    worker_id = rig.node.hosting.actors[ACTOR].worker_id
    failure = common.Failure(kind=common.USER_ERROR, payload=b"pickled")
    rig.say(worker_id, actor_ready=worker_pb2.ActorReady(actor_id=ACTOR, failure=failure))
    (created,) = rig.to(HEAD, "actor_created")
    assert created.failure.payload == b"pickled" and cpu_free(rig) == 2
    rig.exit(worker_id)
    (failed,) = rig.to(HEAD, "worker_failed")
    assert failed.actor_id == b"" and failed.intended


def test_kill_ends_an_actor_at_once_or_after_its_queue() -> None:
    rig = Rig()
    rig.driver()
    rig.boot_all()
    worker_id = ready_actor(rig)
    rig.head(kill_worker=gcs_pb2.KillWorker(actor_id=ACTOR, graceful=True, reason="out of scope"))
    assert rig.messages(worker_id, "exit")[0].graceful and not rig.stops()
    rig.advance(31)
    assert rig.stops()[0].force, "thirty seconds are enough"
    rig.exit(worker_id)
    (failed,) = rig.to(HEAD, "worker_failed")
    assert failed.intended and "out of scope" in failed.failure.message


def test_an_actor_killed_before_it_has_a_process_gives_its_resources_back() -> None:
    rig = Rig()
    rig.driver()
    create(rig)
    assert cpu_free(rig) == 1
    rig.head(kill_worker=gcs_pb2.KillWorker(actor_id=ACTOR))
    assert cpu_free(rig) == 2
    rig.boot_all()
    assert not rig.node.hosting.actors


def test_a_detached_actor_outlives_its_job() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    worker_id = ready_actor(rig, detached=True)
    rig.exit(driver)
    assert worker_id not in [stop.worker_id for stop in rig.stops()]
    assert worker_id in rig.node.pool.workers


def test_tasks_of_a_detached_actor_outlive_its_job_but_not_the_actor() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    actor = ready_actor(rig, detached=True)
    rig.ask(actor, scheduling_class(CPU=0.1))
    rig.ask(driver, scheduling_class("g", CPU=0.1))
    rig.boot_all()
    [helper], [other] = rig.grants(actor), rig.grants(driver)
    rig.ask(actor, scheduling_class("waits", CPU=2))
    rig.exit(driver)
    stopped = [stop.worker_id for stop in rig.stops()]
    assert other.worker.worker_id in stopped and helper.worker.worker_id not in stopped
    assert [queue.cls.function_name for queue in rig.node.requests.queues.values()] == ["waits"]
    rig.head(job_ended=gcs_pb2.JobEnded(job_id=JOB))
    assert helper.worker.worker_id not in [stop.worker_id for stop in rig.stops()]
    rig.exit(actor)
    assert helper.worker.worker_id in [stop.worker_id for stop in rig.stops()]


# ---- bundles ----


def bundle(step: int, *indices: int, attempt: int = 1) -> dict[str, Any]:
    bundles = [common.BundleInfo(index=i, resources=resource_map(CPU=1), node_id=NODE) for i in indices]
    return {"bundle_request": gcs_pb2.BundleRequest(
        step=step, placement_group_id=GROUP, bundles=bundles, attempt=attempt)}


PREPARE, COMMIT, RETURN, GRANT = (gcs_pb2.BundleRequest.PREPARE, gcs_pb2.BundleRequest.COMMIT,
                                  gcs_pb2.BundleRequest.RETURN, gcs_pb2.BundleRequest.GRANT)


def in_bundle(index: int) -> Any:
    return common.SchedulingStrategy(bundle=common.BundleChoice(placement_group_id=GROUP, bundle_index=index))


def test_bundles_are_prepared_all_or_none_and_returned_whole() -> None:
    rig = Rig(CPU=2)
    rig.head(**bundle(PREPARE, 0, 1, 2))
    (reply,) = rig.to(HEAD, "bundle_reply")
    assert not reply.ok and "bundle 2" in reply.reason and cpu_free(rig) == 2
    rig.head(**bundle(PREPARE, 0, 1))
    rig.head(**bundle(PREPARE, 0, 1))
    rig.head(**bundle(COMMIT, 0, 1))
    rig.head(**bundle(COMMIT, 0, 1))
    assert all(r.ok for r in rig.to(HEAD, "bundle_reply")) and cpu_free(rig) == 0
    rig.head(**bundle(RETURN, 0, 1))
    rig.head(**bundle(RETURN, 0, 1))
    assert cpu_free(rig) == 2 and rig.node.resources.total == {"CPU": 2 * UNIT}


def test_bundles_are_granted_all_or_none_and_are_open_at_once() -> None:
    rig = Rig(CPU=2)
    rig.head(**bundle(GRANT, 0, 1, 2))
    (reply,) = rig.to(HEAD, "bundle_reply")
    assert not reply.ok and "bundle 2" in reply.reason and cpu_free(rig) == 2
    assert rig.node.resources.total == {"CPU": 2 * UNIT}
    rig.head(**bundle(GRANT, 0, 1))
    rig.head(**bundle(GRANT, 0, 1))
    replies = rig.to(HEAD, "bundle_reply")
    assert [(r.ok, r.step) for r in replies] == [(True, GRANT)] * 2 and cpu_free(rig) == 0
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver, scheduling_class(strategy=in_bundle(1)))
    assert len(rig.grants(driver)) == 1
    rig.head(**bundle(RETURN, 0, 1))
    assert cpu_free(rig) == 2 and rig.node.resources.total == {"CPU": 2 * UNIT}


def test_a_removed_group_ends_whoever_runs_in_it() -> None:
    rig = Rig(CPU=2)
    driver = rig.driver()
    rig.boot_all()
    rig.head(**bundle(PREPARE, 0))
    rig.head(**bundle(COMMIT, 0))
    rig.ask(driver, scheduling_class(strategy=in_bundle(0)))
    rig.ask(driver, scheduling_class(strategy=in_bundle(-1)))
    (grant,) = rig.grants(driver)
    rig.head(**bundle(RETURN, 0))
    assert [s.worker_id for s in rig.stops()] == [grant.worker.worker_id]
    assert cpu_free(rig) == 2
    rig.exit(grant.worker.worker_id)
    assert rig.messages(driver, "worker_gone")[0].intended


def test_the_constructor_of_an_actor_may_return_when_its_group_is_gone() -> None:
    rig = Rig(CPU=2)
    rig.driver()
    rig.boot_all()
    rig.head(**bundle(GRANT, 0))
    spec = actor_spec()
    spec.creation_class.strategy.CopyFrom(in_bundle(0))
    rig.head(create_actor=gcs_pb2.CreateActor(spec=spec))
    worker_id = rig.node.hosting.actors[ACTOR].worker_id
    rig.head(**bundle(RETURN, 0))
    assert [stop.worker_id for stop in rig.stops()] == [worker_id]
    rig.say(worker_id, actor_ready=worker_pb2.ActorReady(actor_id=ACTOR))
    assert not rig.to(HEAD, "actor_created"), "its process is ending"
    rig.exit(worker_id)
    assert cpu_free(rig) == 2 and not rig.node.hosting.actors


# ---- channels and relays ----


def test_a_channel_is_offered_to_its_target_with_its_descriptor() -> None:
    rig = Rig()
    driver = rig.driver()
    worker_id, _ = rig.boot_all()
    rig.say(driver, 55, channel_open=worker_pb2.ChannelOpen(target_worker_id=worker_id, capacity=4096))
    (effect,) = [e for e in rig.take(ToClient) if e.message.WhichOneof("body") == "channel_offer"]
    assert effect.worker_id == worker_id and effect.fd == 55
    assert effect.message.channel_offer.source.worker_id == driver
    rig.exit(worker_id)
    assert rig.messages(driver, "worker_gone")


def test_a_channel_to_nobody_is_refused_and_its_descriptor_closed() -> None:
    rig = Rig()
    driver = rig.driver()
    (first, second) = rig.boot_all()
    rig.ask(driver)
    (grant,) = rig.grants(driver)
    rig.exit(grant.worker.worker_id)
    rig.say(driver, 55, channel_open=worker_pb2.ChannelOpen(target_worker_id=grant.worker.worker_id))
    assert rig.take(CloseFd) == [CloseFd(55)]
    (refused,) = rig.messages(driver, "channel_refused")
    assert "SIGKILL" in refused.failure.message, "the cause of the death is remembered"
    assert {first, second}


def relay(source: tuple[bytes, bytes], destination: tuple[bytes, bytes]) -> worker_pb2.RelayBatch:
    return worker_pb2.RelayBatch(
        source=common.Address(node_id=source[0], worker_id=source[1]),
        destination=common.Address(node_id=destination[0], worker_id=destination[1]), frames=b"frames")


def test_batches_cross_nodes_unread_and_ends_are_told_both_ways() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    there = (PEER, b"x" * 28)
    rig.say(driver, relay=relay((NODE, driver), there))
    assert rig.to(PEER, "relay")[0].frames == b"frames"
    rig.from_peer(relay=relay(there, (NODE, driver)))
    assert rig.messages(driver, "relay")[0].source.worker_id == b"x" * 28
    gone = worker_pb2.WorkerGone(address=common.Address(node_id=PEER, worker_id=b"x" * 28))
    rig.from_peer(worker_gone=gone)
    assert len(rig.messages(driver, "worker_gone")) == 1
    rig.exit(driver)
    assert rig.to(PEER, "worker_gone")[0].address.worker_id == driver


def test_a_batch_for_a_worker_that_has_ended_is_answered() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    rig.from_peer(relay=relay((PEER, b"x" * 28), (NODE, b"q" * 28)))
    assert rig.to(PEER, "worker_gone")[0].address.worker_id == b"q" * 28
    rig.say(driver, relay=relay((NODE, driver), (NODE, b"q" * 28)))
    assert rig.messages(driver, "worker_gone")[0].failure.kind == common.WORKER_DIED


STRANGER = b"z" * 28


def questions(rig: Rig) -> list[Any]:
    """What the GCS was asked about nodes since the last call."""
    return [r for r in rig.to(HEAD, "request") if r.WhichOneof("body") == "node_list"]


def answer(rig: Rig, question: Any, *nodes: common.NodeInfo) -> None:
    """The GCS answers it."""
    rig.head(reply=gcs_pb2.ControlReply(
        request_id=question.request_id, nodes=gcs_pb2.NodeInfos(nodes=nodes)))


def test_what_goes_to_a_node_that_no_view_has_named_waits_for_it() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.say(driver, relay=relay((NODE, driver), (STRANGER, b"q" * 28)))
    rig.say(driver, lease_return=worker_pb2.LeaseReturn(lease_id=7, node_id=STRANGER))
    assert rig.to(STRANGER, "relay") and rig.to(STRANGER, "lease_return"), "their link keeps them"
    assert not questions(rig)
    rig.peer(STRANGER)
    rig.advance(5.0)
    assert not questions(rig) and not rig.messages(driver, "worker_gone"), "a view has named it"


def test_a_node_that_no_view_names_is_asked_about_and_lives_or_is_dead_by_the_answer() -> None:
    rig = Rig()
    driver = rig.driver()
    for other in (STRANGER, b"y" * 28, b"x" * 28):
        rig.say(driver, relay=relay((NODE, driver), (other, b"q" * 28)))
    assert not questions(rig), "views need a while"
    rig.advance(1.5)
    question = questions(rig)[0]
    assert list(question.node_list.node_ids) == [STRANGER, b"y" * 28, b"x" * 28]
    rig.advance(5.0)
    assert not questions(rig), "asked once"
    assert not rig.messages(driver, "worker_gone"), "silence is no answer"
    dead = node_info(b"y" * 28)
    dead.state = common.NODE_DEAD
    dead.death.kind = common.NODE_DIED
    dead.death.message = "it went silent"
    answer(rig, question, node_info(STRANGER), dead)
    gone = {news.address.node_id: news.failure for news in rig.messages(driver, "worker_gone")}
    assert set(gone) == {b"y" * 28, b"x" * 28}
    assert gone[b"y" * 28].message == "it went silent" and "does not know" in gone[b"x" * 28].message
    assert [effect.node_id for effect in rig.take(ForgetPeer)] == [b"y" * 28, b"x" * 28]
    assert rig.node.peers[STRANGER].node_name, "it can be dialled now"
    rig.say(driver, relay=relay((NODE, driver), (b"y" * 28, b"q" * 28)))
    assert rig.messages(driver, "worker_gone")[0].failure.kind == common.NODE_DIED, "known dead: at once"


def test_a_node_that_speaks_before_any_view_names_it_is_asked_about_too() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.from_peer(STRANGER, relay=relay((STRANGER, b"x" * 28), (NODE, driver)))
    assert rig.messages(driver, "relay")
    rig.advance(1.5)
    answer(rig, questions(rig)[0])
    assert rig.messages(driver, "worker_gone")[0].address.node_id == STRANGER


def test_a_stranger_that_a_full_view_leaves_out_is_asked_about_again() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.say(driver, relay=relay((NODE, driver), (STRANGER, b"q" * 28)))
    rig.advance(1.5)
    answer(rig, questions(rig)[0], node_info(STRANGER))
    rig.head(view=gcs_pb2.ClusterView(full=True, nodes=[node_info(PEER)]))
    assert not rig.messages(driver, "worker_gone"), "it may have joined after this view was made"
    rig.advance(1.5)
    answer(rig, questions(rig)[0])
    assert rig.messages(driver, "worker_gone")


def connection_offers(rig: Rig, worker_id: bytes) -> list[Any]:
    return [effect for effect in rig.take(ToClient)
            if effect.worker_id == worker_id and effect.message.channel_offer.connection]


def test_workers_of_two_nodes_get_a_connection_and_hear_of_each_others_end() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    rig.say(driver, channel_open=worker_pb2.ChannelOpen(target_node_id=PEER, target_worker_id=b"x" * 28))
    assert rig.take(ConnectWorkers) == [ConnectWorkers(driver, PEER, b"x" * 28)]
    rig.from_peer(worker_gone=worker_pb2.WorkerGone(
        address=common.Address(node_id=PEER, worker_id=b"x" * 28)))
    assert rig.messages(driver, "worker_gone"), "whether it came to a connection or not"


def test_a_connection_that_comes_in_goes_to_its_worker() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    source = common.Address(node_id=PEER, worker_id=b"x" * 28)
    hello = raylet_pb2.ChannelHello(source=source, target_worker_id=driver)
    rig.node.connection_came(rig.now, hello, 77)
    rig.settle()
    (offer,) = connection_offers(rig, driver)
    assert offer.fd == 77 and offer.message.channel_offer.source == source
    rig.exit(driver)
    assert rig.to(PEER, "worker_gone")[0].address.worker_id == driver


def test_connections_to_the_dead_and_of_the_dead_are_closed() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    hello = raylet_pb2.ChannelHello(
        source=common.Address(node_id=PEER, worker_id=b"x" * 28), target_worker_id=b"q" * 28)
    rig.node.connection_came(rig.now, hello, 77)
    rig.settle()
    assert rig.take(CloseFd) == [CloseFd(77)], "nobody is there"
    rig.node.peer_lost(rig.now, PEER, common.Failure())
    hello.target_worker_id = driver
    rig.node.connection_came(rig.now, hello, 78)
    rig.settle()
    assert rig.take(CloseFd) == [CloseFd(78)], "its node is dead for all that we know"
    rig.say(driver, channel_open=worker_pb2.ChannelOpen(target_node_id=PEER, target_worker_id=b"x" * 28))
    assert not rig.take(ConnectWorkers) and not connection_offers(rig, driver)


def watch(*address: bytes) -> worker_pb2.WatchWorker:
    return worker_pb2.WatchWorker(address=common.Address(node_id=address[0], worker_id=address[1]))


def test_a_watched_worker_needs_no_channel_for_its_end_to_be_told() -> None:
    rig = Rig()
    driver, other = rig.driver(), rig.driver(b"\2\0\0\0")
    rig.peer()
    rig.say(driver, watch=watch(NODE, other))
    rig.say(driver, watch=watch(PEER, b"x" * 28))
    assert rig.to(PEER, "watch")[0].address.worker_id == b"x" * 28
    rig.exit(other)
    rig.from_peer(worker_gone=worker_pb2.WorkerGone(
        address=common.Address(node_id=PEER, worker_id=b"x" * 28)))
    ended = [gone.address.worker_id for gone in rig.messages(driver, "worker_gone")]
    assert ended == [other, b"x" * 28]


def test_who_asks_to_watch_a_worker_that_has_ended_hears_so_at_once() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    rig.say(driver, watch=watch(NODE, b"q" * 28))
    assert rig.messages(driver, "worker_gone")[0].failure.kind == common.WORKER_DIED
    rig.from_peer(watch=watch(NODE, b"q" * 28))
    assert rig.to(PEER, "worker_gone")[0].address.worker_id == b"q" * 28
    rig.node.peer_lost(rig.now, PEER, common.Failure())
    rig.say(driver, watch=watch(PEER, b"x" * 28))
    assert rig.messages(driver, "worker_gone")[0].failure.kind == common.NODE_DIED


def test_another_node_hears_of_the_end_of_a_worker_it_watches() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    rig.from_peer(watch=watch(NODE, driver))
    rig.exit(driver)
    assert rig.to(PEER, "worker_gone")[0].address.worker_id == driver


def test_senders_hear_when_a_worker_cannot_keep_up() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    rig.from_peer(relay=relay((PEER, b"x" * 28), (NODE, driver)))
    for congested in (True, False):
        rig.node.relay.client_congested(driver, congested)
        rig.settle()
        (hold,) = rig.to(PEER, "relay_hold")
        assert hold.destination.worker_id == driver and hold.hold == congested
    hold.destination.node_id, hold.destination.worker_id = PEER, b"x" * 28
    rig.from_peer(relay_hold=hold)
    assert rig.messages(driver, "relay_hold") == [hold]


def test_the_end_of_a_node_is_told_to_all_who_were_in_contact() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    rig.say(driver, relay=relay((NODE, driver), (PEER, b"x" * 28)))
    info = common.NodeInfo(node_id=PEER, state=common.NODE_DEAD,
                           death=common.Failure(kind=common.NODE_DIED, message="it went silent"))
    rig.head(view=gcs_pb2.ClusterView(nodes=[info]))
    (gone,) = rig.messages(driver, "worker_gone")
    assert gone.address.worker_id == b"x" * 28 and gone.failure.message == "it went silent"


# ---- the GCS ----


def test_requests_are_forwarded_under_ids_of_our_own_and_answered_under_theirs() -> None:
    rig = Rig()
    one, two = rig.driver(), rig.driver(b"\2\0\0\0")
    rig.to(HEAD, "request")
    for client in (one, two):
        rig.say(client, control=gcs_pb2.ControlRequest(request_id=1, kv_get=gcs_pb2.KvGet(key=b"k")))
    first, second = rig.to(HEAD, "request")
    assert first.request_id != second.request_id and first.sender.worker_id == one
    rig.head(reply=gcs_pb2.ControlReply(request_id=second.request_id, kv=gcs_pb2.KvValue(found=True)))
    assert rig.messages(two, "control")[0].request_id == 1 and not rig.messages(one, "control")


def test_after_a_restart_of_the_gcs_what_was_unanswered_is_asked_again() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    worker_id = ready_actor(rig)
    rig.say(driver, control=gcs_pb2.ControlRequest(request_id=1, kv_get=gcs_pb2.KvGet(key=b"k")))
    rig.say(driver, control=gcs_pb2.ControlRequest(
        request_id=2, subscribe=gcs_pb2.Subscribe(channel="actor", key=ACTOR)))
    before = [r for r in rig.to(HEAD, "request") if r.WhichOneof("body") == "kv_get"]
    rig.head(publication=gcs_pb2.Publication(channel="actor", key=ACTOR, cursor=7, actor=common.ActorInfo()))
    rig.to(HEAD, "register")
    rig.node.head_restarted(rig.now)
    rig.settle()
    (register,) = rig.to(HEAD, "register")
    assert register.actors[0].worker_id == worker_id
    again = rig.to(HEAD, "request")
    assert [r for r in again if r.WhichOneof("body") == "kv_get"] == before
    cursors = {r.subscribe.channel: r.subscribe.cursor for r in again if r.HasField("subscribe")}
    assert cursors == {"worker": 0, "actor": 7}


def test_after_a_restart_of_the_gcs_nothing_is_asked_for_whose_owner_has_ended() -> None:
    """The new GCS hears of the owner's end first, and would keep an actor or a group for ever."""
    rig = Rig()
    driver = rig.driver()
    for number, detached in ((1, False), (2, True)):
        spec = common.ActorSpec(actor_id=bytes([number]) * 16, detached=detached)
        spec.owner.node_id, spec.owner.worker_id = NODE, driver
        register = gcs_pb2.ActorRegister(spec=spec)
        rig.say(driver, control=gcs_pb2.ControlRequest(request_id=number, actor_register=register))
        create = gcs_pb2.GroupCreate(info=common.PlacementGroupInfo(detached=detached))
        rig.say(driver, control=gcs_pb2.ControlRequest(request_id=10 + number, group_create=create))
    rig.exit(driver)
    rig.to(HEAD, "request")
    rig.node.head_restarted(rig.now)
    rig.settle()
    again = rig.to(HEAD, "request")
    assert [r.actor_register.spec.detached for r in again if r.HasField("actor_register")] == [True]
    assert [r.group_create.info.detached for r in again if r.HasField("group_create")] == [True]


def test_one_subscription_serves_all_clients_and_late_ones_get_the_present_state() -> None:
    rig = Rig()
    one, two = rig.driver(), rig.driver(b"\2\0\0\0")
    subscribe = gcs_pb2.Subscribe(channel="actor", key=ACTOR)
    rig.to(HEAD, "request")
    rig.say(one, control=gcs_pb2.ControlRequest(request_id=1, subscribe=subscribe))
    assert len(rig.to(HEAD, "request")) == 1
    alive = common.ActorInfo(state=common.ALIVE)
    news = gcs_pb2.Publication(channel="actor", key=ACTOR, cursor=1, actor=alive)
    rig.head(publication=news)
    rig.say(two, control=gcs_pb2.ControlRequest(request_id=1, subscribe=subscribe))
    assert not rig.to(HEAD, "request")
    assert rig.messages(one, "publication") == rig.messages(two, "publication") == [news]
    for client in (one, two):
        rig.exit(client)
    unsubscribed = [r.subscribe for r in rig.to(HEAD, "request") if r.HasField("subscribe")]
    assert [s.unsubscribe for s in unsubscribed] == [True]


def test_publications_that_come_together_reach_clients_one_by_one() -> None:
    rig = Rig()
    client = rig.driver()
    subscribe = gcs_pb2.Subscribe(channel="worker")
    rig.say(client, control=gcs_pb2.ControlRequest(request_id=1, subscribe=subscribe))
    ends = [
        gcs_pb2.Publication(channel="worker", key=bytes([number]) * 28, cursor=number,
                            worker=gcs_pb2.WorkerFailed(job_id=bytes([number])))
        for number in (1, 2, 3)
    ]  # fmt: skip
    rig.head(publications=gcs_pb2.Publications(publications=ends).SerializeToString())
    assert rig.messages(client, "publication") == ends


def test_heartbeats_come_on_time_and_soon_after_a_change() -> None:
    rig = Rig(CPU=2)
    driver = rig.driver()
    rig.boot_all()
    rig.advance(2.0)
    assert len(rig.to(HEAD, "heartbeat")) == 4
    rig.ask(driver)
    rig.ask(driver, scheduling_class(CPU=9))
    rig.advance(0.1)
    (beat,) = rig.to(HEAD, "heartbeat")
    assert beat.available.amounts["CPU"] == UNIT and beat.demand[0].count == 1


def test_a_refused_node_ends() -> None:
    rig = Rig()
    rig.head(registered=gcs_pb2.NodeRegistered(accepted=False, refusal="declared dead"))
    (stop,) = rig.take(StopNode)
    assert stop.failed and "declared dead" in stop.reason


def test_a_worker_of_an_unknown_job_starts_when_the_job_is_known() -> None:
    rig = Rig()
    rig.peer()
    rig.boot_all()
    other = b"\7\0\0\0"
    requester = common.Address(node_id=PEER, worker_id=b"y" * 28)
    rig.from_peer(lease_request=worker_pb2.LeaseRequest(
        request_id=5, requester=requester, scheduling_class=scheduling_class(job=other), hops=1))
    assert not rig.to(PEER, "lease_reply")
    (asked,) = [r for r in rig.to(HEAD, "request") if r.HasField("job_list")]
    jobs = gcs_pb2.JobInfos(jobs=[common.JobInfo(job_id=other, sys_path=["/somewhere"])])
    rig.head(reply=gcs_pb2.ControlReply(request_id=asked.request_id, jobs=jobs))
    (reply,) = rig.to(PEER, "lease_reply")
    assert rig.messages(reply.worker.worker_id, "assign_job")[0].job.sys_path == ["/somewhere"]


# ---- clients ----


def test_a_process_we_did_not_start_is_refused() -> None:
    rig = Rig()
    rig.node.worker_registered(rig.now, b"s" * 28, 1, 1, worker_pb2.Register(startup_token=b"guess"))
    rig.settle()
    assert rig.messages(b"s" * 28, "registered")[0].failure.kind == common.INVALID_ARGUMENT
    assert rig.take(DropClient)


def test_a_driver_that_says_goodbye_has_not_failed() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.say(driver, exiting=worker_pb2.Exiting(reason="shutdown", intended=True))
    assert rig.take(DropClient)
    rig.exit(driver, "driver has disconnected")
    (finish,) = [r.job_finish for r in rig.to(HEAD, "request") if r.HasField("job_finish")]
    assert not finish.failed


def test_a_kill_request_reaches_the_worker_wherever_it_is() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    rig.peer()
    rig.ask(driver)
    (grant,) = rig.grants(driver)
    rig.say(driver, kill=worker_pb2.KillRequest(worker=grant.worker, reason="cancelled"))
    assert rig.stops()[0].worker_id == grant.worker.worker_id
    there = common.Address(node_id=PEER, worker_id=b"x" * 28)
    rig.say(driver, kill=worker_pb2.KillRequest(worker=there))
    assert rig.to(PEER, "kill")[0].worker == there


def test_unknown_and_malformed_messages_do_no_harm() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.say(driver, 9)
    assert rig.take(CloseFd) == [CloseFd(9)]
    rig.say(b"nobody" + b"0" * 22, lease_cancel=worker_pb2.LeaseCancel())
    rig.say(driver, lease_return=worker_pb2.LeaseReturn(lease_id=12345))
    rig.say(driver, pull_cancel=worker_pb2.PullCancel(request_id=3))
    rig.head()


# ---- leaving ----


@pytest.mark.parametrize("busy", [False, True])
def test_a_draining_node_leaves_when_its_work_is_done_or_its_time_is_up(busy: bool) -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (grant,) = rig.grants(driver)
    rig.head(drain=gcs_pb2.DrainNode(deadline_s=30, reason="scale down"))
    assert not rig.take(StopNode)
    rig.ask(driver)
    assert not rig.grants(driver), "no new work"
    if busy:
        rig.advance(30)
    else:
        rig.give_back(driver, grant.lease_id)
    assert rig.to(HEAD, "leaving")[0].reason == "scale down" and len(rig.take(StopNode)) == 1


def test_a_node_that_is_told_to_end_takes_leave_though_something_runs() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    rig.head(drain=gcs_pb2.DrainNode(deadline_s=30, reason="scale down"))
    rig.node.end_requested(rig.now, "a second signal")
    rig.node.end_requested(rig.now, "a third one")
    rig.settle()
    [leaving] = rig.to(HEAD, "leaving")
    assert leaving.reason == "a second signal" and leaving.abrupt and len(rig.take(StopNode)) == 1


def test_the_same_stimuli_give_the_same_effects() -> None:
    def run() -> list[str]:
        rig = Rig(seed=3, CPU=2)
        driver = rig.driver()
        rig.peer()
        for function in "abcabc":
            rig.ask(driver, scheduling_class(function))
        rig.boot_all()
        rig.advance(2.0)
        return [repr(effect) for effect in rig.sent]

    assert run() == run()


def test_an_actor_keeps_its_cpu_while_it_waits() -> None:
    rig = Rig(CPU=1)
    rig.driver()
    rig.boot_all()
    worker_id = ready_actor(rig, CPU=1)
    assert cpu_free(rig) == 0
    rig.say(worker_id, blocked=worker_pb2.WorkerBlocked(blocked=True))
    assert cpu_free(rig) == 0, "tasks lend, actors do not"
    rig.say(worker_id, blocked=worker_pb2.WorkerBlocked(blocked=False))
    assert cpu_free(rig) == 0


def test_heartbeats_tell_the_stores_room_as_it_is() -> None:
    rig = Rig(CPU=1, object_store_memory=1000)
    rig.node.store_used(rig.now, 300)
    rig.advance(2.0)
    beat = rig.to(HEAD, "heartbeat")[-1]
    assert beat.available.amounts["object_store_memory"] == 700 * UNIT
    assert beat.total.amounts["object_store_memory"] == 1000 * UNIT


def test_clients_of_a_store_that_fills_are_asked_to_collect_garbage_now_and_then() -> None:
    rig = Rig(CPU=1, store_bytes=1000)
    driver = rig.driver()
    rig.take(ToClient)

    def asked(used: int) -> int:
        rig.node.store_used(rig.now, used)
        rig.settle()
        said = [one for one in rig.take(ToClient) if one.worker_id == driver]
        return sum(one.message.WhichOneof("body") == "collect_garbage" for one in said)

    assert [asked(700), asked(710), asked(900)] == [0, 1, 0]
    rig.advance(GARBAGE_EVERY_S)
    assert [asked(600), asked(900)] == [0, 1]


def test_ids_that_are_none_free_nothing_and_are_not_held() -> None:
    rig = Rig()
    driver = rig.driver()
    rig.peer()
    rig.take(DeleteObjects)
    rig.from_peer(free_objects=worker_pb2.FreeObjects(object_ids=[b"short", b"x" * 82, b"o" * 28]))
    assert [effect.object_ids for effect in rig.take(DeleteObjects)] == [[b"o" * 28]]
    rig.say(driver, object_sealed=worker_pb2.ObjectSealed(object_id=b"short", size=5))
    assert b"short" not in rig.node.memory.held
    rig.say(driver, pull=worker_pb2.PullRequest(request_id=9, object_id=b"short"))
    (reply,) = rig.messages(driver, "pull")
    assert "an object's id has 28 bytes, not 5" in reply.failure.message


def test_a_peer_that_answers_for_a_stranger_is_not_listened_to() -> None:
    rig = Rig()
    rig.peer()
    rig.from_peer(watch=worker_pb2.WatchWorker(address=common.Address(node_id=NODE, worker_id=b"s" * 28)))
    rig.node.relay.listen_from(b"s" * 28, PEER)
    rig.node.check()
