"""Before a node leaves, what only it has goes to another one; what cannot go is named."""

from __future__ import annotations

import pytest

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, raylet_pb2, worker_pb2
from miniray.core.contract import HEAD
from miniray.core.evacuation import MOVES
from miniray.core.node_effects import Notice, StartFetch, StopNode, StoredObject, Survey, SurveyStore
from tests.core.rig import NODE, Rig

MIB = 1 << 20
A, B = b"a" * 28, b"b" * 28
ELSEWHERE = (A, b"o" * 28)
"""The owner, on another node."""


def oid(number: int) -> bytes:
    return number.to_bytes(28, "big")


def stored(number: int, primary: bool = True) -> StoredObject:
    return StoredObject(oid(number), MIB, True, False, primary, False)


class Leaver(Rig):
    """A node with copies of objects that is told to leave; A has most room, then B."""

    def __init__(self, *objects: StoredObject, owner: tuple[bytes, bytes] = ELSEWHERE) -> None:
        super().__init__()
        self.objects = list(objects)
        for item in objects:
            self.node.memory.object_sealed(item.object_id, item.size, owner)

    def drain(self, deadline_s: float = 30) -> None:
        self.head(drain=gcs_pb2.DrainNode(deadline_s=deadline_s, reason="scale down"))
        self.surveys()

    def surveys(self) -> None:
        """The shell takes stock as often as it is asked to."""
        while self.take(SurveyStore):
            used = sum(item.size for item in self.objects)
            self.node.store_surveyed(self.now, Survey(1 << 30, used, 1 << 29, self.objects))
            self.settle()

    def asked(self, node_id: bytes) -> list[int]:
        """What a node was asked to take over since the last look."""
        return [int.from_bytes(one.object_id, "big") for one in self.to(node_id, "take_over")]

    def answer(self, node_id: bytes, number: int, refusal: str = "") -> None:
        failure = common.Failure(kind=common.STORE_FULL, message=refusal) if refusal else None
        self.from_peer(node_id, taken_over=raylet_pb2.TakenOver(object_id=oid(number), failure=failure))
        self.surveys()

    def has_left(self) -> bool:
        return bool(self.take(StopNode)) and bool(self.to(HEAD, "leaving"))


def roomy(rig: Rig) -> None:
    rig.peer(A, CPU=4, object_store_memory=3 * MIB)
    rig.peer(B, CPU=4, object_store_memory=2.5 * MIB)


def test_a_node_leaves_when_what_it_holds_for_others_has_been_taken_over() -> None:
    rig = Leaver(stored(1), stored(2), stored(3, primary=False))
    roomy(rig)
    rig.drain()
    assert rig.asked(A) == [1] and rig.asked(B) == [2], "most room first; a secondary copy has its primary"
    rig.answer(A, 1)
    assert not rig.has_left()
    rig.answer(B, 2)
    assert rig.has_left() and not rig.take(Notice)


def test_what_nobody_else_refers_to_holds_up_no_leave() -> None:
    rig = Leaver(stored(1), owner=(NODE, b"w" * 28))
    roomy(rig)
    rig.drain()
    assert rig.has_left() and not rig.asked(A) and not rig.take(Notice)


def test_results_of_work_that_ends_later_go_too() -> None:
    rig = Leaver(stored(1))
    roomy(rig)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    (grant,) = rig.grants(driver)
    rig.drain()
    assert rig.asked(A) == [1]
    rig.answer(A, 1)
    rig.objects.append(stored(2))
    rig.node.memory.object_sealed(oid(2), MIB, ELSEWHERE)
    rig.give_back(driver, grant.lease_id)
    rig.surveys()
    (number, where), = [(n, at) for at in (A, B) for n in rig.asked(at)]
    assert number == 2 and not rig.has_left(), "and what has gone does not go again"
    rig.answer(where, 2)
    assert rig.has_left()


def test_a_node_that_refuses_or_dies_is_replaced_by_the_next() -> None:
    rig = Leaver(stored(1))
    roomy(rig)
    rig.drain()
    assert rig.asked(A) == [1]
    rig.answer(A, 1, refusal="no room")
    assert rig.asked(B) == [1]
    rig.peer(b"c" * 28, CPU=4)
    dead = common.NodeInfo(node_id=B, state=common.NODE_DEAD)
    rig.head(view=gcs_pb2.ClusterView(nodes=[dead]))
    assert rig.asked(b"c" * 28) == [1]
    rig.answer(b"c" * 28, 1)
    assert rig.has_left()


def test_a_copy_that_died_with_its_new_node_is_given_to_another() -> None:
    rig = Leaver(stored(1), stored(2))
    roomy(rig)
    rig.drain()
    rig.answer(A, 1)
    rig.asked(B)
    rig.head(view=gcs_pb2.ClusterView(nodes=[common.NodeInfo(node_id=A, state=common.NODE_DEAD)]))
    assert rig.asked(B) == [1]


@pytest.mark.parametrize("alone", [False, True])
def test_the_log_names_what_could_not_go(alone: bool) -> None:
    rig = Leaver(*(stored(number) for number in range(1, 9)))
    if not alone:
        rig.peer(A, CPU=4)
    rig.drain(deadline_s=5)
    if not alone:
        assert rig.asked(A) == list(range(1, MOVES + 1))
        rig.answer(A, 1, refusal="the store is full")
        rig.advance(4)
        assert not rig.has_left()
        rig.advance(1)
    assert rig.has_left()
    (notice,) = rig.take(Notice)
    assert notice.text.startswith("8 objects (8.0 MiB)") and "and 3 more" in notice.text
    assert ("no other node takes work" if alone else "has not got it in time") in notice.text


def test_what_is_freed_meanwhile_is_forgotten() -> None:
    rig = Leaver(stored(1), stored(2))
    roomy(rig)
    rig.drain()
    rig.objects.clear()
    rig.node.free(rig.now, [oid(1), oid(2)])
    rig.settle()
    rig.surveys()
    assert rig.has_left() and not rig.take(Notice)


def test_what_is_on_disk_goes_too() -> None:
    rig = Leaver(stored(1))
    roomy(rig)
    rig.node.memory.spilled[oid(1)] = rig.node.memory.held[oid(1)]
    rig.objects.clear()
    rig.drain()
    assert rig.asked(A) == [1]


def test_a_node_takes_over_by_a_pull_and_keeps_the_copy_from_then_on() -> None:
    rig = Rig()
    rig.peer(A)
    rig.from_peer(A, take_over=raylet_pb2.TakeOver(
        object_id=oid(1), size=MIB, owner=common.Address(node_id=B, worker_id=b"o" * 28)))
    assert rig.take(StartFetch) == [StartFetch(oid(1), A)]
    rig.node.fetch_ended(rig.now, oid(1), MIB, (B, b"o" * 28), None, [])
    rig.settle()
    (update,) = rig.to(B, "location")
    assert update.node_id == NODE, "its owner knows"
    (answer,) = rig.to(A, "taken_over")
    assert not answer.failure.kind
    memory = rig.node.memory
    memory.room_requested(rig.now, worker_pb2.MakeRoom(bytes=MIB), b"w")
    survey = Survey(MIB, MIB, 0, [stored(1, primary=False)])
    rig.node.store_surveyed(rig.now, survey)
    rig.settle()
    assert memory.spilling and oid(1) in memory.held, "written to disk, not thrown away"
    rig.node.free(rig.now, [oid(1)])
    assert not memory.adopted


def test_a_pull_that_fails_or_a_node_that_leaves_too_says_so() -> None:
    rig = Rig()
    rig.peer(A)
    wanted = raylet_pb2.TakeOver(object_id=oid(1), size=MIB)
    rig.from_peer(A, take_over=wanted)
    rig.node.fetch_ended(
        rig.now, oid(1), 0, (b"", b""), common.Failure(kind=common.NOT_FOUND, message="gone"), [])
    rig.settle()
    assert rig.to(A, "taken_over")[0].failure.kind == common.OBJECT_LOST
    rig.from_peer(A, take_over=wanted)
    rig.head(view=gcs_pb2.ClusterView(nodes=[common.NodeInfo(node_id=A, state=common.NODE_DEAD)]))
    assert not rig.node.transfer.pulls, "it has died: nobody waits"
    rig.peer(B)
    driver = rig.driver()
    rig.boot_all()
    rig.ask(driver)
    rig.head(drain=gcs_pb2.DrainNode(deadline_s=30))
    rig.from_peer(B, take_over=wanted)
    assert rig.to(B, "taken_over")[0].failure.message == "it is leaving, too"

