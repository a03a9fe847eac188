"""Room in the store: eviction, then spilling, then a refusal that says who holds the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2
from miniray.core.contract import Stories
from miniray.core.memory import DISK_RETRY_S, ROOM_WAIT_S, SEALED_LATE_S, SPILL_BATCH_BYTES, Memory
from miniray.core.node_effects import (
    DeleteObjects,
    DropSpilled,
    RestoreObject,
    SpillObjects,
    StoredObject,
    Survey,
    SurveyStore,
    ToClient,
)
from miniray.core.relay import Relay

MIB = 1 << 20
NODE = b"n" * 28
OWNER = (NODE, b"o" * 28)


def oid(number: int, job: int = 1) -> bytes:
    return b"t" * 8 + b"\xff" * 12 + job.to_bytes(4, "little") + number.to_bytes(4, "little")


class Store:
    """A store in words: what the survey says, and what effects do to it."""

    def __init__(self, capacity: int = 100 * MIB) -> None:
        self.out: list[Any] = []
        self.clients: dict[bytes, Any] = {OWNER[1]: None}
        self.memory = Memory(self.out, Stories(), Relay(self.out, NODE, self.clients), capacity,
                             client_name=lambda worker_id: worker_id[:1].decode())
        self.capacity = capacity
        self.objects: dict[bytes, StoredObject] = {}
        self.replies: list[worker_pb2.RoomReply] = []
        self.spilled: list[bytes] = []
        self.now = 0.0
        self.disk_full = False
        self.disk_left = math.inf
        """Bytes."""

    def put(
        self, number: int, mib: int, *, primary: bool = True, pinned: bool = False, job: int = 1
    ) -> bytes:
        object_id = oid(number, job)
        readers = (b"r" * 28,) * pinned
        self.objects[object_id] = StoredObject(
            object_id, mib * MIB, True, False, primary, pinned, b"w" * 28, readers)
        return object_id

    def used(self) -> int:
        return sum(o.size for o in self.objects.values())

    def run(self) -> list[Any]:
        """Carry out effects until none is left; returns those of no concern here."""
        others = []
        while self.out:
            effect = self.out.pop(0)
            if isinstance(effect, SurveyStore):
                free = self.capacity - self.used()
                self.memory.store_surveyed(
                    self.now, Survey(self.capacity, self.used(), free, list(self.objects.values())))
            elif isinstance(effect, DeleteObjects):
                for object_id in effect.object_ids:
                    if not getattr(self.objects.get(object_id), "pinned", False):
                        self.objects.pop(object_id, None)
            elif isinstance(effect, SpillObjects):
                self._spill(effect)
            elif isinstance(effect, ToClient) and effect.message.WhichOneof("body") == "room":
                self.replies.append(effect.message.room)
            else:
                others.append(effect)
            self.memory.check()
        return others

    def _spill(self, effect: SpillObjects) -> None:
        size = sum(self.objects[object_id].size for object_id in effect.object_ids)
        if self.disk_full or size > self.disk_left:
            failure = common.Failure(kind=common.OUT_OF_DISK, message="the disk is 96 % full")
            self.memory.objects_spilled(self.now, effect.batch, [], failure)
            return
        self.disk_left -= size
        for object_id in effect.object_ids:
            self.spilled.append(object_id)
            self.objects.pop(object_id, None)
        self.memory.objects_spilled(self.now, effect.batch, effect.object_ids, None)

    def ask(self, mib: int, request_id: int = 1) -> list[Any]:
        self.memory.room_requested(self.now, worker_pb2.MakeRoom(
            request_id=request_id, bytes=mib * MIB, object_id=oid(999)), b"w" * 28)
        return self.run()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.memory.next_deadline()) is not None and due <= end:
            self.now = due
            self.memory.tick(due)
            self.run()
        self.now = end


def test_free_room_is_granted_at_once() -> None:
    store = Store()
    store.ask(50)
    assert [r.request_id for r in store.replies] == [1] and not store.replies[0].HasField("failure")


def test_secondary_copies_go_first_oldest_use_first_and_their_owner_hears() -> None:
    store = Store()
    old, new = store.put(1, 20, primary=False), store.put(2, 20, primary=False)
    kept = store.put(3, 50)
    store.memory.copy_arrived(old, 20 * MIB, OWNER)
    others = store.ask(25)
    assert list(store.objects) == [new, kept]
    assert store.replies and not store.spilled
    (update,) = others
    assert update.message.location.object_id == old and update.message.location.removed


def test_primaries_are_spilled_in_batches_when_nothing_else_is_left() -> None:
    store = Store(capacity=400 * MIB)
    for number in range(40):
        store.put(number, 10)
    store.ask(5)
    assert sum(10 * MIB for _ in store.spilled) >= SPILL_BATCH_BYTES
    assert store.spilled[0] == oid(0) and store.memory.is_spilled(oid(0))
    assert not store.replies[0].HasField("failure")


def test_pinned_objects_are_left_alone_and_the_request_waits_for_them() -> None:
    store = Store()
    pinned = store.put(1, 90, pinned=True)
    store.ask(50)
    assert not store.replies and store.memory.next_deadline() is not None
    store.objects[pinned].pinned = False
    store.wait(1.0)
    assert store.spilled == [pinned] and not store.replies[0].HasField("failure")


def test_what_can_never_fit_is_refused_at_once_with_both_sizes() -> None:
    store = Store()
    store.ask(101)
    failure = store.replies[0].failure
    assert failure.kind == common.STORE_FULL
    for part in ("101.0 MiB", "100.0 MiB", oid(999).hex()):
        assert part in failure.message


def test_a_store_held_by_readers_is_refused_in_the_end_and_says_by_whom() -> None:
    store = Store()
    store.put(1, 90, pinned=True)
    store.ask(50)
    store.wait(ROOM_WAIT_S + 1)
    failure = store.replies[0].failure
    assert failure.kind == common.STORE_FULL and "90.0 MiB read by r" in failure.message


def test_who_waits_less_patiently_is_refused_first_also_from_behind() -> None:
    store = Store()
    store.put(1, 90, pinned=True)
    store.ask(50)
    refused: list[Any] = []
    store.memory.room_requested(
        store.now, worker_pb2.MakeRoom(bytes=20 * MIB, object_id=oid(998)), b"",
        lambda now, failure: refused.append(failure), wait_s=2.0)
    store.run()
    store.wait(3.0)
    assert [failure.kind for failure in refused] == [common.STORE_FULL] and "after 2 s" in refused[0].message
    assert not store.replies, "the first one goes on waiting"
    store.wait(ROOM_WAIT_S)
    assert store.replies[0].failure.kind == common.STORE_FULL


def test_a_full_disk_is_an_error_and_no_loss() -> None:
    store = Store()
    store.disk_full = True
    store.put(1, 90)
    store.ask(50)
    failure = store.replies[0].failure
    assert failure.kind == common.OUT_OF_DISK and "96 % full" in failure.message
    assert oid(1) in store.objects
    store.disk_full = False
    store.memory.objects_freed(0.0, [oid(7)])
    store.run()
    store.ask(50, 2)
    assert not store.replies[1].HasField("failure"), "spilling is tried again after something was freed"


def test_a_disk_without_room_for_a_whole_batch_takes_what_it_can() -> None:
    store = Store(capacity=400 * MIB)
    for number in range(40):
        store.put(number, 10)
    store.disk_left = 45 * MIB
    for request in range(4):
        store.ask(9, request)
        store.put(100 + request, 9)
    assert len(store.spilled) == 4 and not any(reply.HasField("failure") for reply in store.replies)
    store.ask(9, 5)
    assert store.replies[-1].failure.kind == common.OUT_OF_DISK
    store.disk_left, store.now = math.inf, store.now + DISK_RETRY_S
    for request in range(6, 10):
        store.ask(30, request)
        store.put(100 + request, 30)
    assert sum(10 for _ in store.spilled) * MIB > SPILL_BATCH_BYTES, "batches have grown again"
    assert not any(reply.HasField("failure") for reply in store.replies[-4:])


def test_requests_are_served_in_turn() -> None:
    store = Store()
    pinned = store.put(1, 90, pinned=True)
    for number in (1, 2, 3):
        store.ask(30, number)
    del store.objects[pinned]
    store.wait(1.0)
    assert [r.request_id for r in store.replies] == [1, 2, 3]


def test_freed_objects_leave_store_and_disk() -> None:
    store = Store()
    store.put(1, 90)
    store.ask(50)
    assert store.memory.is_spilled(oid(1))
    store.memory.objects_freed(0.0, [oid(1)])
    assert DropSpilled([oid(1)]) in store.run()
    assert not store.memory.is_spilled(oid(1))


def test_an_object_freed_while_it_is_written_leaves_the_disk_at_once() -> None:
    store = Store()
    store.put(1, 90)
    store.memory.room_requested(0.0, worker_pb2.MakeRoom(bytes=50 * MIB, object_id=oid(999)), b"w" * 28)
    store.out.clear()
    store.memory.store_surveyed(0.0, Survey(100 * MIB, 90 * MIB, 10 * MIB, list(store.objects.values())))
    (spill,) = store.out
    store.out.clear()
    store.memory.objects_freed(0.0, [oid(1)])
    store.memory.objects_spilled(0.0, spill.batch, [oid(1)], None)
    assert DropSpilled([oid(1)]) in store.out and not store.memory.is_spilled(oid(1))


def test_spilling_starts_ahead_of_need() -> None:
    store = Store()
    for number in range(9):
        store.put(number, 10)
    store.memory.usage_seen(70 * MIB)
    assert not store.run() and not store.spilled
    store.memory.usage_seen(90 * MIB)
    store.run()
    assert store.spilled


def test_what_can_simply_be_evicted_is_no_reason_to_spill() -> None:
    store = Store()
    for number in range(9):
        store.put(number, 10, primary=number < 5)
    store.memory.usage_seen(90 * MIB)
    store.run()
    assert not store.spilled


def test_restoring_makes_room_when_there_is_none() -> None:
    store = Store()
    store.put(1, 60)
    store.ask(50)
    store.put(2, 60, primary=False)
    done: list[Any] = []
    store.memory.restore(0.0, oid(1), lambda now, failure: done.append(failure))
    store.memory.restore(0.0, oid(1), lambda now, failure: done.append(failure))
    assert store.out == [RestoreObject(oid(1), 60 * MIB)], "one restore serves both"
    store.out.clear()
    store.memory.object_restored(0.0, oid(1), common.Failure(kind=common.STORE_FULL))
    assert store.run() == [RestoreObject(oid(1), 60 * MIB)] and not store.objects
    store.memory.object_restored(0.0, oid(1), None)
    assert done == [None, None] and store.memory.is_spilled(oid(1)), "the file stays: evicting again is free"


def test_an_object_freed_while_it_is_read_back_does_not_stay() -> None:
    store = Store()
    store.put(1, 60)
    store.ask(50)
    store.memory.restore(0.0, oid(1), lambda now, failure: None)
    store.memory.objects_freed(0.0, [oid(1)])
    store.out.clear()
    store.memory.object_restored(0.0, oid(1), None)
    assert store.out == [DeleteObjects([oid(1)])]


@pytest.mark.parametrize("kept", [False, True])
def test_the_end_of_a_job_frees_its_objects_but_not_those_of_its_detached_actors(kept: bool) -> None:
    store = Store()
    mine, other = store.put(1, 10), store.put(2, 10, job=2)
    store.memory.job_ended(b"\1\0\0\0", {b"w" * 28: None} if kept else {})
    store.run()
    assert (mine in store.objects) == kept and other in store.objects


def test_the_end_of_an_owner_frees_what_it_owned() -> None:
    store = Store()
    mine, other = store.put(1, 10), store.put(2, 10)
    store.memory.object_sealed(mine, 10 * MIB, OWNER)
    store.memory.object_sealed(other, 10 * MIB, (NODE, b"x" * 28))
    store.memory.owner_gone(0.0, *OWNER)
    store.run()
    assert list(store.objects) == [other]


def test_what_is_announced_after_its_end_goes() -> None:
    """Its owner frees it by another socket than that by which its maker tells us."""
    store = Store()
    mine = store.put(1, 10)
    store.memory.objects_freed(0.0, [mine])
    store.put(1, 10)
    store.memory.object_sealed(mine, 10 * MIB, OWNER, 60.0)
    store.run()
    assert not store.objects and not store.memory.held


@pytest.mark.parametrize("later, is_kept", [(0.1, False), (SEALED_LATE_S + 1.0, True)])
def test_so_does_what_was_made_a_second_time_after_its_first_maker_died(later: float, is_kept: bool) -> None:
    store = Store()
    store.clients[b"w" * 28] = None
    mine = store.put(1, 10)
    store.memory.object_sealed(mine, 10 * MIB, OWNER, 0.0, b"w" * 28)
    del store.clients[b"w" * 28]
    store.memory.objects_freed(1.0, [mine])
    store.memory.object_sealed(mine, 10 * MIB, OWNER, 1.0 + later, b"x" * 28)
    store.run()
    assert bool(store.memory.held) == is_kept, "much later it is another's: made again from lineage"


def spilled(store: Store, number: int, mib: int) -> bytes:
    """An object that was written to disk to make room."""
    object_id = store.put(number, mib)
    store.memory.object_sealed(object_id, mib * MIB, OWNER)
    store.ask(store.capacity // MIB - mib + 1)
    assert store.spilled[-1] == object_id
    return object_id


def test_a_copy_that_cannot_be_read_back_is_none_and_its_owner_hears() -> None:
    store = Store()
    object_id = spilled(store, 1, 90)
    heard: list[Any] = []
    store.memory.restore(0.0, object_id, lambda at, failure: heard.append(failure))
    (restore,) = store.run()
    assert isinstance(restore, RestoreObject)
    failure = common.Failure(kind=common.OBJECT_LOST, message="wrong checksum")
    store.memory.object_restored(0.0, object_id, failure)
    dropped, told = store.run()
    assert dropped == DropSpilled([object_id])
    assert told.message.location.removed and told.message.location.reason == "wrong checksum"
    assert heard == [failure] and not store.memory.is_spilled(object_id)


def test_a_copy_that_was_found_damaged_by_another_reader_goes_once() -> None:
    store = Store()
    object_id = spilled(store, 1, 90)
    for _ in range(2):
        store.memory.copy_damaged(0.0, object_id, "wrong checksum")
    assert len(store.run()) == 2


def test_no_more_is_written_than_the_limit_allows() -> None:
    store = Store()
    store.memory.spill_limit = 50 * MIB
    store.put(1, 40)
    store.put(2, 40)
    store.ask(30)
    assert store.spilled == [oid(1)] and store.replies[-1].failure.kind == common.ERROR_NONE
    store.put(3, 55)
    store.ask(40, request_id=2)
    assert store.replies[-1].failure.kind == common.OUT_OF_DISK
    assert "10.0 MiB are left of the 50.0" in store.replies[-1].failure.message
    store.memory.objects_freed(0.0, [oid(1)])
    store.run()
    store.ask(40, request_id=3)
    assert store.spilled == [oid(1), oid(2)] and store.replies[-1].failure.kind == common.ERROR_NONE


def test_a_disk_that_was_full_is_tried_again_after_a_while() -> None:
    store = Store()
    store.put(1, 90)
    store.disk_full = True
    store.ask(50)
    assert store.replies[-1].failure.kind == common.OUT_OF_DISK
    store.disk_full = False
    store.ask(50, request_id=2)
    assert store.replies[-1].failure.kind == common.OUT_OF_DISK, "not yet"
    store.now += DISK_RETRY_S
    store.ask(50, request_id=3)
    assert store.spilled == [oid(1)] and store.replies[-1].failure.kind == common.ERROR_NONE
