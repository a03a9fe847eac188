"""The worker library at its edges: what it says to raylet and workers, and what it makes of answers.

Everything around one driver is played by the test (`worker_rig`), so the order of events is
the test's to choose.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from miniray import exceptions
from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import ids
from miniray.core.directory import INLINE
from miniray.core.tasks import MethodTemplate, TaskTemplate
from miniray.runtime import departures, frames
from tests.runtime.worker_rig import ELSEWHERE, JOB, ME, NODE, InBackground, Rig, address, reply, until

W1 = (NODE, b"1" * 28)
FAR = (ELSEWHERE, b"f" * 28)
ACTOR = ids.actor_id(b"a" * 12, JOB)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def double(x: int) -> int:
    return 2 * x


def template(**options: Any) -> TaskTemplate:
    return TaskTemplate(double, "double", resources={"CPU": 10_000}, **options)


# ---- tasks


def test_a_task_asks_for_a_lease_introduces_its_function_and_gets_its_result(rig: Rig) -> None:
    double_it = template()
    ref = rig.worker.submit_task(double_it, (21,), {})
    request = rig.raylet.heard("lease_request")
    assert dict(request.scheduling_class.resources.amounts) == {"CPU": 10_000}
    assert request.scheduling_class.function_name == "double"
    rig.grant(W1)
    worker = rig.hand(W1)
    worker.accept()
    lease, function, push = worker.next(), worker.next(), worker.next()
    assert lease[0] == frames.LEASE
    assert wire.LeaseTerms.FromString(lease[1:]).scheduling_class == request.scheduling_class
    assert function[0] == frames.FUNCTION and pickle.loads(function[8:])[0]["name"] == "double"
    _, _, attempt, call, number, returns, tid = frames.PUSH_HEADER.unpack_from(push)
    assert (attempt, number, returns) == (0, 1, 1) and ref.binary() == tid + b"\1\0\0\0"
    assert pickle.loads(push[frames.PUSH_HEADER.size :]) == (21,)
    worker.reply(call, 42)
    assert rig.worker.get([ref], 10) == [42]
    again = rig.worker.submit_task(double_it, (1,), {})
    assert worker.next()[0] == frames.PUSH, "the function and the lease are known by now"
    worker.reply(call + 1, 2)
    assert rig.worker.get([again], 10) == [2]


@pytest.mark.parametrize("frame", [
    pytest.param(b"", id="empty"),
    pytest.param(b"\x63", id="of no kind"),
    pytest.param(bytes((frames.REPLY_ONE, 0)), id="a short reply"),
    pytest.param(bytes((frames.PUSH, 0, 0)), id="a short task"),
    pytest.param(bytes((frames.BORROW_ADD,)), id="a short loan"),
])  # fmt: skip
def test_a_frame_that_makes_no_sense_ends_who_sent_it_and_nothing_else(
    rig: Rig, caplog: pytest.LogCaptureFixture, frame: bytes
) -> None:
    ref = rig.worker.submit_task(template(), (21,), {})
    rig.grant(W1)
    worker = rig.hand(W1)
    worker.accept()
    call, _ = worker.push()
    worker.send(frame, rung=False)
    worker.send(frame, rung=False)
    worker.reply(call, 42)      # in the same batch
    assert rig.worker.get([ref], 10) == [42]
    kill = rig.raylet.heard("kill")
    assert kill.worker == address(W1) and "a frame that its caller could not handle" in kill.reason
    assert caplog.text.count("sent a frame that cannot be handled") == 1, "told once"
    called = threading.Event()
    later = rig.worker.submit_task(template(), (1,), {})
    rig.worker.when_ready(later, called.set)
    rig.grant(W1)
    worker.reply(worker.push()[0], 2)
    assert called.wait(10), "the helper drains as before"


def test_a_get_that_times_out_says_what_is_missing_and_why(rig: Rig) -> None:
    ref = rig.worker.submit_task(template(), (1,), {})
    request = rig.raylet.heard("lease_request")
    with pytest.raises(exceptions.GetTimeoutError, match=ref.hex()):
        rig.worker.get([ref], 0.01)
    why = "all 2 CPUs are in use by 2 tasks of f"
    rig.raylet.tell(lease_reply=wire.LeaseReply(request_id=request.request_id, pending_reason=why))
    until(lambda: why in rig.worker.owner.why(ref.entry), "the reason arrives")
    with pytest.raises(exceptions.GetTimeoutError, match=why):
        rig.worker.get([ref], 0.01)


def test_a_refused_lease_fails_the_task_by_name(rig: Rig) -> None:
    ref = rig.worker.submit_task(template(), (1,), {})
    request = rig.raylet.heard("lease_request")
    failure = pb.Failure(kind=pb.INFEASIBLE, message="no node has 8 GPUs")
    rig.raylet.tell(lease_reply=wire.LeaseReply(request_id=request.request_id, failure=failure))
    with pytest.raises(exceptions.TaskUnschedulableError, match="no node has 8 GPUs"):
        rig.worker.get([ref], 10)


def test_a_bounced_task_is_sent_again(rig: Rig) -> None:
    ref = rig.worker.submit_task(template(max_retries=0), (4,), {})
    rig.grant(W1)
    worker = rig.hand(W1)
    worker.accept()
    call, _ = worker.push()
    worker.send(frames.pack_bounce([call]))
    call, args = worker.push()
    assert args == (4,)
    worker.reply(call, 8)
    assert rig.worker.get([ref], 10) == [8]


# ---- the end of other processes


def test_what_a_dead_worker_had_written_counts_whoever_tells_of_its_death(rig: Rig) -> None:
    """It replied and died before it rang the bell."""
    short = template(max_retries=0, cost_us=10.0)  # so short that several are in flight
    done, running = (rig.worker.submit_task(short, (n,), {}) for n in (1, 2))
    rig.grant(W1)
    worker = rig.hand(W1)
    worker.accept()
    call, _ = worker.push()
    worker.push()
    worker.reply(call, "done", rung=False)
    rig.gone(W1, "worker 1 ended with signal SIGKILL")
    assert rig.worker.get([done], 10) == ["done"]
    with pytest.raises(exceptions.WorkerCrashedError, match="SIGKILL"):
        rig.worker.get([running], 10)


def test_a_task_whose_worker_died_runs_elsewhere_with_the_next_attempt(rig: Rig) -> None:
    ref = rig.worker.submit_task(template(max_retries=1), (1,), {})
    rig.grant(W1)
    first = rig.hand(W1)
    first.accept()
    first.push()
    rig.gone(W1)
    second_at = (NODE, b"2" * 28)
    rig.grant(second_at, request=2, lease=2)
    rig.raylet.heard("channel_open", 2)
    second = rig.hand(second_at)
    second.accept()
    while (frame := second.next())[0] != frames.PUSH:
        pass
    _, _, attempt, call, *_ = frames.PUSH_HEADER.unpack_from(frame)
    assert attempt == 1
    second.reply(call, "at last")
    assert rig.worker.get([ref], 10) == ["at last"]


class Actor:
    """An actor that the driver has a handle of, played by a `Hand`."""

    def __init__(self, rig: Rig, where: Any = W1) -> None:
        self.rig = rig
        self.client = rig.worker.actor_client(ACTOR)
        self.hand = rig.hand(where)
        self.methods = {retries: MethodTemplate("m", max_task_retries=retries) for retries in (0, 1)}
        self.news(pb.ALIVE, where)

    def news(self, state: int, where: Any = None, restarts: int = 0, message: str = "") -> None:
        """What the GCS publishes."""
        spec = pb.ActorSpec(actor_id=ACTOR, class_name="A", max_pending_calls=-1)
        info = pb.ActorInfo(spec=spec, state=state, restarts=restarts)
        if where is not None:
            info.address.CopyFrom(address(where))
        if message:
            info.death.CopyFrom(pb.Failure(kind=pb.WORKER_DIED, message=message))
        self.rig.raylet.tell(publication=gcs.Publication(channel="actor", key=ACTOR, actor=info))

    def call(self, *args: Any, retries: int = 0) -> Any:
        return self.rig.worker.submit_actor_task(self.client, self.methods[retries], args, {})


@pytest.mark.parametrize("state", [pb.DEAD, pb.RESTARTING])
def test_news_of_an_actors_end_do_not_overtake_its_last_answers(rig: Rig, state: int) -> None:
    actor = Actor(rig)
    answered, lost = actor.call(1), actor.call(2)
    actor.hand.accept()
    call, _ = actor.hand.push()
    actor.hand.push()
    actor.hand.reply(call, "answer", rung=False)
    actor.news(state, restarts=1, message="it ran away")
    rig.gone(W1, "worker 1 ended with exit status 1")
    assert rig.worker.get([answered], 10) == ["answer"]
    with pytest.raises(exceptions.RayActorError, match="it ran away"):
        rig.worker.get([lost], 10)


def test_calls_that_may_be_retried_wait_for_the_next_life_in_order(rig: Rig) -> None:
    actor = Actor(rig)
    refs = [actor.call(n, retries=1) for n in range(3)]
    actor.hand.accept()
    first, _ = actor.hand.push()
    actor.hand.reply(first, "done in the first life", rung=False)
    second_at = (NODE, b"2" * 28)
    actor.news(pb.RESTARTING, restarts=1, message="it died")
    actor.news(pb.ALIVE, second_at, restarts=1)
    rig.gone(W1)
    rig.raylet.heard("channel_open", 2)
    second = rig.hand(second_at)
    second.accept()
    seen = []
    for _ in range(2):
        call, args = second.push()
        seen.append(args)
        second.reply(call, args)
    assert seen == [(1,), (2,)], "the answered one is not run again"
    assert rig.worker.get(refs, 10) == ["done in the first life", (1,), (2,)]


def test_an_actors_death_is_told_even_if_the_raylet_says_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "NEWS_WAIT_S", 0.05)
    actor = Actor(rig)
    ref = actor.call(1)
    actor.hand.accept()
    actor.hand.push()
    actor.news(pb.DEAD, message="its node was lost")
    with pytest.raises(exceptions.ActorDiedError, match="its node was lost"):
        rig.worker.get([ref], 10)


# ---- channels


def test_if_both_open_a_channel_each_sends_on_its_own(rig: Rig) -> None:
    actor = Actor(rig)
    first = actor.call("first")
    actor.hand.accept()     # the worker's own channel, at the same time as
    theirs = actor.hand.channel
    actor.hand.open()       # this one
    call, _ = actor.hand.push()
    actor.hand.reply(call, "answer")
    assert rig.worker.get([first], 10) == ["answer"], "told on the channel that the hand opened"
    second = actor.call("second")
    call, args = actor.hand.push()
    assert args == ("second",)
    actor.hand.channel = theirs
    actor.hand.reply(call, "another")
    assert rig.worker.get([second], 10) == ["another"]


def test_workers_of_other_nodes_are_reached_through_the_raylet(rig: Rig) -> None:
    actor = Actor(rig, FAR)
    refs = [actor.call(n) for n in range(3)]
    until(lambda: len(rig.relayed()) == 4, "one definition and three calls")
    pushes = [frame for frame in rig.relayed() if frame[0] == frames.PUSH]
    calls = [frames.PUSH_HEADER.unpack_from(push)[3] for push in pushes]
    rig.relay(FAR, *(reply(call, n) for n, call in enumerate(calls)))
    assert rig.worker.get(refs, 10) == [0, 1, 2]
    assert not rig.raylet.fds, "no ring reaches there"


# ---- objects of this owner


def test_whoever_asks_for_a_pending_object_is_answered_when_it_is_ready(rig: Rig) -> None:
    ref = rig.worker.submit_task(template(), (5,), {})
    asker = rig.hand((NODE, b"q" * 28))
    asker.open()
    asker.send(frames.pack_object(frames.ASK, ref.binary()))
    rig.grant(W1)
    worker = rig.hand(W1)
    worker.accept()
    call, _ = worker.push()
    worker.reply(call, 10)
    oid, state, _, _, payload = frames.unpack_answer(asker.next())
    assert (oid, state, pickle.loads(payload)) == (ref.binary(), INLINE, 10)


def test_a_borrower_keeps_an_object_until_it_says_so(rig: Rig) -> None:
    ref = rig.worker.put("precious")
    oid = ref.binary()
    borrower = rig.hand((NODE, b"b" * 28))
    borrower.open()
    borrower.send(frames.pack_object(frames.BORROW_ADD, oid, borrower.address))
    told, who, known = frames.unpack_object(borrower.next())
    assert (told, who, known) == (oid, borrower.address, 1)
    del ref
    rig.worker.collect_released()
    assert rig.worker.owner.directory.find(oid) is not None
    borrower.send(frames.pack_object(frames.BORROW_DROP, oid))
    until(lambda: rig.worker.owner.directory.find(oid) is None, "it is freed")


def test_an_object_nobody_knows_any_more_is_answered_as_lost(rig: Rig) -> None:
    asker = rig.hand((NODE, b"q" * 28))
    asker.open()
    gone = ids.object_id(rig.worker.new_task_id(), 1)
    asker.send(frames.pack_object(frames.ASK, gone))
    oid, state, _, _, payload = frames.unpack_answer(asker.next())
    assert oid == gone and state != INLINE and b"ObjectLostError" in payload


# ---- the control plane


def test_a_request_is_answered_refused_or_timed_out(rig: Rig) -> None:
    asked = InBackground(lambda: rig.worker.request("kv_get", gcs.KvGet(key=b"k")))
    request = rig.raylet.heard("control")
    assert request.kv_get.key == b"k" and request.job_id == JOB
    assert (request.sender.node_id, request.sender.worker_id) == ME
    rig.raylet.tell(control=gcs.ControlReply(request_id=request.request_id, kv=gcs.KvValue(value=b"v")))
    assert asked.result().kv.value == b"v"
    asked = InBackground(lambda: rig.worker.request("kv_get", gcs.KvGet(key=b"k")))
    failure = pb.Failure(kind=pb.NOT_FOUND, message="there is no such key")
    number = rig.raylet.heard("control", 2).request_id
    rig.raylet.tell(control=gcs.ControlReply(request_id=number, failure=failure))
    with pytest.raises(ValueError, match="there is no such key"):
        asked.result()
    with pytest.raises(exceptions.GetTimeoutError, match="kv_get"):
        rig.worker.request("kv_get", gcs.KvGet(key=b"k"), timeout=0.01)


def test_a_topic_is_subscribed_once_and_told_to_all_who_listen(rig: Rig) -> None:
    heard: list[tuple[str, bytes]] = []
    for name in ("a", "b"):
        rig.worker.subscribe("news", b"key", lambda p, name=name: heard.append((name, p.data)))
    rig.worker.subscribe("news", b"", lambda p: heard.append(("all", p.data)))
    rig.raylet.tell(publication=gcs.Publication(channel="news", key=b"key", data=b"1"))
    rig.raylet.tell(publication=gcs.Publication(channel="news", key=b"other", data=b"2"))
    until(lambda: len(heard) == 4, "four calls")
    assert heard == [("a", b"1"), ("b", b"1"), ("all", b"1"), ("all", b"2")]
    subscribed = [m for m in rig.raylet.said if m.control.WhichOneof("body") == "subscribe"]
    assert [m.control.subscribe.key for m in subscribed] == [b"key", b""]


def test_a_driver_that_loses_its_raylet_is_told_in_every_wait(rig: Rig) -> None:
    pending = rig.worker.submit_task(template(), (1,), {})
    ready = rig.worker.put("here")
    waits = [
        InBackground(lambda: rig.worker.get([pending])),
        InBackground(lambda: rig.worker.request("kv_get", gcs.KvGet(key=b"k"))),
    ]
    rig.raylet.heard("control")
    rig.raylet.hang_up()
    for wait in waits:
        with pytest.raises(exceptions.RayError, match="raylet"):
            wait.result()
    assert rig.worker.get([ready], 10) == ["here"], "what is here stays"
    with pytest.raises(exceptions.NodeDiedError, match="raylet"):
        rig.worker.request("kv_get", gcs.KvGet(key=b"k"))


# ---- the end of this process's session


def test_shutdown_says_goodbye_and_ends_the_waits_of_other_threads(rig: Rig) -> None:
    ref = rig.worker.submit_task(template(), (1,), {})
    waits = [InBackground(lambda: rig.worker.get([ref])) for _ in range(2)]
    until(lambda: rig.worker.pump._holder is not None and rig.worker.pump._queue, "both wait")
    began = time.monotonic()
    rig.worker.shutdown()
    assert time.monotonic() - began < 10.0
    assert rig.raylet.heard("exiting").intended
    for wait in waits:
        with pytest.raises(exceptions.RaySystemError, match="shutdown"):
            wait.result()
    rig.worker.shutdown()


def test_values_outlive_the_session_they_came_from(rig: Rig) -> None:
    import numpy

    array = rig.worker.get([rig.worker.put(numpy.arange(100_000))])[0]
    rig.close()
    assert array.sum() == sum(range(100_000))
