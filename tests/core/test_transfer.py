"""Pulls: one per object, the right source, the next one after a failure, and an answer in every case."""

from __future__ import annotations

from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2
from miniray.core.contract import Stories
from miniray.core.memory import Held, Memory
from miniray.core.node_effects import (
    DeleteObjects,
    RestoreObject,
    StartFetch,
    StopFetch,
    SurveyStore,
    ToClient,
)
from miniray.core.relay import Relay
from miniray.core.transfer import (
    ACTIVE_PULLS,
    BUSY_RETRY_MAX_S,
    BUSY_RETRY_S,
    PULLS_PER_SOURCE,
    SILENT_RETRY_S,
    Transfer,
)

MIB = 1 << 20
HERE, A, B, C = b"h" * 28, b"a" * 28, b"b" * 28, b"C" * 28
CLIENT = b"c" * 28
OWNER = common.Address(node_id=HERE, worker_id=CLIENT)
GET, ARGUMENT = worker_pb2.PullRequest.GET, worker_pb2.PullRequest.ARGUMENT


def oid(number: int) -> bytes:
    return number.to_bytes(28, "big")


class Bench:
    def __init__(self, capacity: int = 1000 * MIB) -> None:
        self.out: list[Any] = []
        self.memory = Memory(self.out, Stories(), Relay(self.out, HERE, {CLIENT: None}), capacity)
        self.transfer = Transfer(self.out, HERE, self.memory)
        self.requests = 0

    def pull(self, number: int, *locations: bytes, mib: int = 1, priority: Any = GET) -> int:
        self.requests += 1
        self.transfer.pull_requested(0.0, CLIENT, worker_pb2.PullRequest(
            request_id=self.requests, object_id=oid(number), owner=OWNER, locations=locations,
            priority=priority, size=mib * MIB))
        self.transfer.check()
        return self.requests

    def fetches(self) -> list[tuple[int, bytes]]:
        found = [e for e in self.out if isinstance(e, StartFetch)]
        self.out[:] = [e for e in self.out if not isinstance(e, StartFetch)]
        return [(int.from_bytes(e.object_id, "big"), e.node_id) for e in found]

    def replies(self) -> list[worker_pb2.PullReply]:
        found = [e for e in self.out if isinstance(e, ToClient) and e.message.WhichOneof("body") == "pull"]
        self.out[:] = [e for e in self.out if e not in found]
        return [e.message.pull for e in found]

    def started(self) -> list[tuple[int, bytes, bool]]:
        fresh = [e.fresh for e in self.out if isinstance(e, StartFetch)]
        return [(*where, is_fresh) for where, is_fresh in zip(self.fetches(), fresh, strict=True)]

    def ended(self, number: int, kind: Any = None, elsewhere: tuple[bytes, ...] = (), mib: int = 1,
              now: float = 0.0) -> None:
        failure = None if kind is None else common.Failure(kind=kind, message="it failed")
        self.transfer.fetch_ended(now, oid(number), mib * MIB, (HERE, CLIENT), failure, list(elsewhere))
        self.transfer.check()


def test_requests_for_one_object_share_one_fetch_and_the_owner_learns_the_place() -> None:
    bench = Bench()
    first, second = bench.pull(1, A), bench.pull(1, A)
    assert bench.fetches() == [(1, A)]
    bench.ended(1)
    assert [r.request_id for r in bench.replies()] == [first, second]
    (update,) = bench.out
    assert update.message.location.node_id == HERE and not update.message.location.removed


def test_the_next_source_is_asked_and_the_failed_ones_are_named() -> None:
    bench = Bench()
    bench.pull(1, A, B)
    assert bench.fetches() == [(1, A)]
    bench.ended(1, common.NODE_DIED)
    assert bench.fetches() == [(1, B)]
    bench.ended(1)
    (reply,) = bench.replies()
    assert list(reply.failed_nodes) == [A] and not reply.HasField("failure")


def test_an_object_without_a_copy_left_is_lost_and_says_what_was_tried() -> None:
    bench = Bench()
    bench.pull(1, A)
    bench.fetches()
    bench.ended(1, common.NOT_FOUND)
    (reply,) = bench.replies()
    assert reply.failure.kind == common.OBJECT_LOST and "it failed" in reply.failure.message
    bench.pull(2)
    assert bench.replies()[0].failure.kind == common.OBJECT_LOST


def test_gets_overtake_arguments() -> None:
    bench = Bench()
    for number in range(ACTIVE_PULLS):
        bench.pull(number, A, priority=ARGUMENT)
    bench.fetches()
    bench.pull(100, A, priority=ARGUMENT)
    bench.pull(101, A, priority=GET)
    assert not bench.fetches()
    bench.ended(0)
    assert bench.fetches() == [(101, A)]


def test_bytes_under_way_are_bounded_but_one_pull_always_runs() -> None:
    bench = Bench(capacity=100 * MIB)
    bench.pull(1, A, mib=80)
    bench.pull(2, A, mib=10)
    assert bench.fetches() == [(1, A)]
    bench.ended(1, mib=80)
    assert bench.fetches() == [(2, A)]


def test_sources_share_the_load() -> None:
    bench = Bench()
    for number in range(4):
        bench.pull(number, A, B)
    assert [node for _, node in bench.fetches()] == [A, B, A, B]


def test_a_busy_source_sends_us_to_those_it_has_served() -> None:
    bench = Bench()
    bench.pull(1, A)
    bench.fetches()
    bench.ended(1, common.UNAVAILABLE, elsewhere=(B,))
    assert bench.fetches() == [(1, B)], "at once"
    bench.ended(1, common.NOT_FOUND)
    assert not bench.fetches(), "the busy one is given time"
    bench.transfer.tick(BUSY_RETRY_S)
    assert bench.fetches() == [(1, A)]


def test_a_source_that_stays_busy_is_asked_ever_less_often() -> None:
    bench = Bench()
    bench.pull(1, A)
    now, pauses = 0.0, []
    for _ in range(8):
        assert bench.fetches() == [(1, A)]
        bench.ended(1, common.UNAVAILABLE, now=now)
        due = bench.transfer.next_deadline()
        assert due is not None
        pauses.append(round(due - now, 6))
        now = due
        bench.transfer.tick(now)
    assert pauses[0] == BUSY_RETRY_S and pauses[-1] == BUSY_RETRY_MAX_S
    assert pauses == sorted(pauses)


def test_a_source_that_falls_silent_is_replaced_at_once_and_not_started_over() -> None:
    bench = Bench()
    bench.transfer.peers[A] = bench.transfer.peers[B] = None
    bench.pull(1, A, B)
    assert bench.started() == [(1, A, False)]
    bench.ended(1, common.NODE_DIED)
    assert bench.started() == [(1, B, False)], "B goes on where A stopped"
    bench.ended(1, common.NODE_DIED)
    assert not bench.started(), "both are given time"
    bench.transfer.tick(SILENT_RETRY_S)
    assert bench.started() == [(1, A, False)]
    bench.ended(1)
    assert not [e for e in bench.out if isinstance(e, StopFetch)]


def test_bytes_of_copies_that_may_differ_are_not_put_together() -> None:
    bench = Bench()
    bench.transfer.peers[A] = bench.transfer.peers[B] = None
    bench.pull(1, A)
    bench.fetches()
    bench.ended(1, common.NODE_DIED)
    bench.pull(1, B)    # made anew, for all that we know
    assert bench.started() == [(1, B, True)]
    bench.ended(1, common.NODE_DIED)
    bench.pull(1, B, C)
    assert bench.started() == [(1, C, False)], "its owner says that B and C have the same"


def test_a_fetch_from_a_node_that_died_goes_on_elsewhere_at_once() -> None:
    bench = Bench()
    bench.pull(1, A, B)
    bench.fetches()
    bench.transfer.peer_lost(0.0, A)
    bench.transfer.check()
    assert bench.out == [StopFetch(oid(1), keep=True), StartFetch(oid(1), B)]
    bench.out.clear()
    bench.transfer.peer_lost(0.0, B)
    bench.transfer.check()
    stop, drop, answer = bench.out
    assert stop == StopFetch(oid(1), keep=True) and answer.message.pull.failure.kind == common.OBJECT_LOST
    assert drop == StopFetch(oid(1)), "what has come is dropped"


def test_one_source_has_only_a_part_of_the_pulls() -> None:
    bench = Bench()
    for number in range(ACTIVE_PULLS):
        bench.pull(number, A, priority=GET)
    assert len(bench.fetches()) == PULLS_PER_SOURCE
    bench.pull(100, B, priority=ARGUMENT)
    assert bench.fetches() == [(100, B)], "others are not held up"


def test_a_full_store_makes_room_and_fetches_again() -> None:
    bench = Bench()
    bench.pull(1, A)
    bench.fetches()
    bench.ended(1, common.STORE_FULL)
    assert any(isinstance(e, SurveyStore) for e in bench.out)
    (room,) = bench.memory.rooms
    assert room.on_done is not None
    bench.memory.rooms.clear()
    room.on_done(0.0, None)
    assert bench.fetches() == [(1, A)]


def test_a_spilled_copy_is_restored_not_fetched() -> None:
    bench = Bench()
    bench.memory.spilled[oid(1)] = Held(MIB)
    bench.pull(1, A)
    assert bench.out == [RestoreObject(oid(1), MIB)]
    bench.memory.object_restored(0.0, oid(1), None)
    assert not bench.replies()[0].HasField("failure")


def test_a_broken_spill_file_falls_back_to_other_nodes() -> None:
    bench = Bench()
    bench.memory.spilled[oid(1)] = Held(MIB)
    bench.pull(1, A)
    bench.out.clear()
    del bench.memory.spilled[oid(1)]
    broken = common.Failure(kind=common.OBJECT_LOST, message="wrong checksum")
    bench.memory.object_restored(0.0, oid(1), broken)
    assert bench.fetches() == [(1, A)]


def test_a_pull_nobody_waits_for_is_stopped() -> None:
    bench = Bench()
    request = bench.pull(1, A)
    bench.fetches()
    bench.transfer.pull_cancelled(0.0, CLIENT, request)
    assert bench.out == [StopFetch(oid(1))] and not bench.transfer.pulls
    bench.out.clear()
    bench.ended(1)
    assert not bench.replies()
    assert bench.out == [DeleteObjects([oid(1)])], "a copy that nobody knows of would never be freed"


def test_the_end_of_a_client_ends_its_pulls() -> None:
    bench = Bench()
    bench.pull(1, A)
    bench.pull(2, B)
    bench.transfer.client_gone(0.0, CLIENT)
    bench.transfer.check()
    assert not bench.transfer.pulls


def test_a_freed_object_is_not_waited_for() -> None:
    bench = Bench()
    for number in range(PULLS_PER_SOURCE + 1):
        bench.pull(number, A)
    bench.fetches()
    bench.transfer.freed(0.0, [oid(PULLS_PER_SOURCE), oid(0)])
    bench.transfer.check()
    assert [r.failure.kind for r in bench.replies()] == [common.OBJECT_LOST] * 2
    assert bench.out == [StopFetch(oid(0))]


def test_a_dead_node_is_no_source() -> None:
    bench = Bench()
    for number in range(ACTIVE_PULLS + 1):
        bench.pull(number, A, B)
    assert [node for _, node in bench.fetches()] == [A, B] * PULLS_PER_SOURCE
    bench.transfer.peer_lost(0.0, A)
    assert not bench.fetches(), "B has enough to do"
    bench.ended(1)
    assert bench.fetches() == [(0, B)]
