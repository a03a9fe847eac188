"""Room in the node's object store: what to evict, what to spill, what to restore, when to refuse.

Clients allocate in the shared segment without asking. One that finds no room sends `MakeRoom`;
this machine takes stock (`SurveyStore`) and, for the oldest waiting request first::

    enough free in one piece ──▶ RoomReply
    else delete unpinned secondary copies, oldest use first
    else write unpinned primary copies to disk, in batches (`SpillObjects`), and take stock again
    else wait for pins to go, `ROOM_WAIT_S` at most, then refuse, saying who holds the store

A request larger than the store is refused at once. A spilled object stays the node's copy: it is
served to other nodes from the file and restored for local readers as a secondary copy, so that
evicting it again costs nothing.

Python frees a cycle only when its collector runs, and a cycle of garbage may hold references to large
objects. So from `GARBAGE_FROM` of the store on clients are asked to run it, as Ray does, now and then.

Pure; runs inside `core.node.Node`. Limits: above `SPILL_FROM` of the store spilling starts
unasked; room is granted, not reserved: a client that loses a race asks again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2
from miniray.core import ids, store_refusals
from miniray.core.contract import Stories
from miniray.core.node_effects import (
    DeleteObjects,
    DropSpilled,
    RestoreObject,
    SpillObjects,
    StoredObject,
    Survey,
    SurveyStore,
    to_client,
)
from miniray.core.relay import Relay

MIB = 1 << 20
SPILL_FROM = 0.8
GARBAGE_FROM = 0.7
"""From this share of the store on, clients are asked to find references in cycles of garbage."""
GARBAGE_EVERY_S = 10.0
SPILL_BATCH_BYTES = 100 << 20
SPILL_BATCH_OBJECTS = 2000
ROOM_WAIT_S = 10.0
RETRY_S = 0.05
DISK_RETRY_S = 1.0
"""After a failure to write, the next attempt is made so much later, or when something was freed."""
HEADER_ALLOWANCE = 4096
"""Bytes beyond the payload that an allocation may need (alignment, block header)."""

FREED_EARLY_KEPT = 1024
SEALED_LATE_S = 2.0
"""An object whose maker has died may have been made again by then, and its owner heard of that before us."""
GONE_KEPT = 4096

FREED = -1
"""In place of a size: the object was freed while it was being written to disk."""

Done = Callable[[float, common.Failure | None], None]

Owner = tuple[bytes, bytes]
"""(node id, worker id) of the worker that owns an object."""

NOBODY: Owner = (b"", b"")
"""The owner of an object about which nobody told the raylet."""


@dataclass(slots=True)
class Held:
    """What the raylet knows of an object of this node."""

    size: int
    owner: Owner = NOBODY
    maker: bytes = b""
    """The worker that told us of it."""

    @property
    def address(self) -> common.Address:
        """The owner's, for a message."""
        return common.Address(node_id=self.owner[0], worker_id=self.owner[1])


UNKNOWN = Held(0)


@dataclass(slots=True)
class Room:
    """One request that waits for room; `worker_id` b"" is the raylet itself."""

    worker_id: bytes
    request_id: int
    size: int
    object_id: bytes
    deadline: float
    on_done: Done | None = None
    wait_s: float = ROOM_WAIT_S


@dataclass(slots=True)
class Memory:
    """See the module head. `client_name` turns a worker id into words for people."""

    out: list[Any]
    stories: Stories
    relay: Relay
    capacity: int
    held: dict[bytes, Held] = field(default_factory=dict)
    rooms: list[Room] = field(default_factory=list)
    adopted: dict[bytes, None] = field(default_factory=dict)
    """Fetched from a node that has left: these copies are not to be evicted, they may be the last."""
    spilled: dict[bytes, Held] = field(default_factory=dict)
    spilling: dict[int, dict[bytes, int]] = field(default_factory=dict)
    """Batch -> object id -> size, while the shell writes it."""
    restoring: dict[bytes, list[Done]] = field(default_factory=dict)
    client_name: Callable[[bytes], str] = lambda worker_id: worker_id.hex()[:8]
    freed_early: dict[bytes, float] = field(default_factory=dict)
    """Freed before anybody told us of them, or of their second making, and until when that may still come:
    owner and maker speak on sockets of their own."""
    gone: dict[Owner, None] = field(default_factory=dict)
    """Owners, or with worker id b"" whole nodes, that have ended: what is made for them is not kept."""
    ended_jobs: dict[bytes, dict[bytes, None]] = field(default_factory=dict)
    """Jobs whose objects the next survey frees, with the workers that outlive each."""
    disk_full: str = ""
    """Why the last spill failed, "" when it did not or something was freed since."""
    disk_retry_at: float = 0.0
    batch_bytes: int = SPILL_BATCH_BYTES
    """How much is written at once where less would do; a disk that refuses a batch is asked for less."""
    spill_limit: int = 0
    """Bytes that may be on disk at a time; 0: as many as the disk takes."""
    next_batch: int = 1
    surveying: bool = False
    retry_at: float | None = None
    garbage_after: float = 0.0
    """Nobody is asked to collect garbage before this time."""

    # ---- knowledge ----

    def object_sealed(
        self, object_id: bytes, size: int, owner: Owner, now: float = 0.0, maker: bytes = b""
    ) -> None:
        """A primary copy was made here, and this is its owner."""
        if now < self.freed_early.pop(object_id, -math.inf) or self._is_gone(owner):
            self.out.append(DeleteObjects([object_id]))
        else:
            self.held[object_id] = Held(size, owner, maker)

    def copy_arrived(self, object_id: bytes, size: int, owner: Owner) -> None:
        """A secondary copy was fetched from another node."""
        if self._is_gone(owner):
            self.out.append(DeleteObjects([object_id]))
        else:
            self.held.setdefault(object_id, Held(size, owner))

    def copy_adopted(self, object_id: bytes) -> None:
        """A copy that was fetched is the one that must not be lost from now on."""
        if object_id in self.held:
            self.adopted[object_id] = None

    def _is_gone(self, owner: Owner) -> bool:
        return owner in self.gone or (owner[0], b"") in self.gone

    def objects_freed(self, now: float, object_ids: list[bytes]) -> None:
        """No process can reach these any more: every copy here goes."""
        if not object_ids:
            return
        gone_from_disk = []
        for object_id in object_ids:
            self.adopted.pop(object_id, None)
            held = self.held.pop(object_id, None)
            if held is None:
                self._freed_early(object_id, math.inf)
            elif held.maker and held.maker not in self.relay.clients:
                self._freed_early(object_id, now + SEALED_LATE_S)
            if self.spilled.pop(object_id, None) is not None:
                gone_from_disk.append(object_id)
            for batch in self.spilling.values():
                if object_id in batch:
                    batch[object_id] = FREED
        self.out.append(DeleteObjects(list(object_ids)))
        if gone_from_disk:
            self.out.append(DropSpilled(gone_from_disk))
        self.disk_full = ""
        if self.rooms:
            self.survey()

    def _freed_early(self, object_id: bytes, until: float) -> None:
        self.freed_early[object_id] = until
        if len(self.freed_early) > FREED_EARLY_KEPT:
            del self.freed_early[next(iter(self.freed_early))]

    def owner_gone(self, now: float, node_id: bytes, worker_id: bytes) -> None:
        """A worker, or with `worker_id` b"" a whole node, has ended: what it owned goes.

        What is still made for it goes when it is announced.
        """
        self.gone[node_id, worker_id] = None
        if len(self.gone) > GONE_KEPT:
            del self.gone[next(iter(self.gone))]
        self.free_owned(now, node_id, worker_id)

    def free_owned(self, now: float, node_id: bytes, worker_id: bytes) -> None:
        """Free what a worker, or with `worker_id` b"" any worker of a node, owns."""
        self.objects_freed(now, [
            oid for oid, held in self.held.items()
            if held.owner[0] == node_id and (not worker_id or held.owner[1] == worker_id)])

    def job_ended(self, job_id: bytes, keep: dict[bytes, None]) -> None:
        """Objects of the job go, but those made or owned by the workers in `keep`."""
        self.ended_jobs[job_id] = keep
        self.survey()

    def _sweep_jobs(self, now: float, survey: Survey) -> bool:
        """Free what ended jobs left. True when the survey is out of date by that."""
        if not self.ended_jobs:
            return False
        victims: dict[bytes, None] = {}
        for object_id in [*(item.object_id for item in survey.objects), *self.spilled]:
            keep = self.ended_jobs.get(ids.job_of_task(object_id))
            if keep is not None and self.held.get(object_id, UNKNOWN).owner[1] not in keep:
                victims[object_id] = None
        for item in survey.objects:
            if item.creator in self.ended_jobs.get(ids.job_of_task(item.object_id), ()):
                victims.pop(item.object_id, None)
        self.ended_jobs.clear()
        self.objects_freed(now, list(victims))
        return bool(victims)

    # ---- room ----

    def room_requested(self, now: float, request: worker_pb2.MakeRoom, worker_id: bytes,
                       on_done: Done | None = None, wait_s: float = ROOM_WAIT_S) -> None:
        """A client, or the raylet itself (with `on_done`), needs room for one object within `wait_s`."""
        for known in self.rooms:
            if known.worker_id == worker_id and known.request_id == request.request_id and not on_done:
                return
        room = Room(worker_id, request.request_id, request.bytes, request.object_id,
                    now + wait_s, on_done, wait_s)
        if request.bytes + HEADER_ALLOWANCE > self.capacity:
            self._answer(now, room, store_refusals.never_fits(room.object_id, room.size, self.capacity))
            return
        self.rooms.append(room)
        self.survey()

    def client_gone(self, worker_id: bytes) -> None:
        """Its pins and unsealed objects were given back by the shell before this call."""
        self.rooms = [room for room in self.rooms if room.worker_id != worker_id]
        if self.rooms:
            self.survey()

    def usage_seen(self, used: int) -> None:
        """The periodic look at the store: start spilling ahead of need."""
        if used > SPILL_FROM * self.capacity and not self.spilling and not self.disk_full:
            self.survey()

    def garbage_due(self, now: float, used: int) -> bool:
        """Is it time to have every client collect its garbage? Then not again for a while."""
        due = used > GARBAGE_FROM * self.capacity and now >= self.garbage_after
        if due:
            self.garbage_after = now + GARBAGE_EVERY_S
        return due

    def survey(self) -> None:
        """Have the shell take stock; others look at the answer, too."""
        if not self.surveying:
            self.surveying = True
            self.out.append(SurveyStore())

    def store_surveyed(self, now: float, survey: Survey) -> None:
        """The stock is known: serve the oldest request, or make more room for it."""
        self.surveying = False
        self.retry_at = None
        for item in survey.objects:
            item.primary = item.primary or item.object_id in self.adopted
        if self._sweep_jobs(now, survey):
            self.survey()
            return
        objects = [o for o in survey.objects if o.sealed and not o.deleting and not o.pinned]
        if not self.rooms:
            evictable = sum(o.size for o in objects if not o.primary)
            excess = survey.used - evictable - int(SPILL_FROM * survey.capacity)
            if excess > 0 and not self.spilling and not self.disk_full:
                self._spill(now, [o for o in objects if o.primary], excess)
            return
        free_in_one = survey.largest_free
        while self.rooms and self.rooms[0].size + HEADER_ALLOWANCE <= free_in_one:
            room = self.rooms.pop(0)
            free_in_one -= room.size + HEADER_ALLOWANCE
            self._answer(now, room, None)
        if self.rooms:
            self._make_room(now, survey, objects)

    def _make_room(self, now: float, survey: Survey, objects: list[StoredObject]) -> None:
        room = self.rooms[0]
        # At least 1: enough in total but not in one piece, taking away anything may join two blocks.
        missing = max(1, room.size + HEADER_ALLOWANCE - (survey.capacity - survey.used))
        evicted = 0
        victims = []
        for item in objects:
            if evicted >= missing:
                break
            if not item.primary or item.object_id in self.spilled:
                victims.append(item.object_id)
                evicted += item.size
        if victims:
            for object_id in victims:
                self._evicted(now, object_id)
            self.out.append(DeleteObjects(victims))
            self.survey()
            return
        if self.spilling:
            return  # more room is on its way
        may_write = not self.disk_full or now >= self.disk_retry_at
        if may_write and self._spill(now, [o for o in objects if o.primary], missing):
            return
        late = [room] if self.disk_full else [one for one in self.rooms if now >= one.deadline]
        self.rooms = [one for one in self.rooms if one not in late]
        for one in late:
            self._answer(now, one, store_refusals.full(
                one.object_id, one.size, survey, self.client_name, one.wait_s - max(0.0, one.deadline - now),
                self.disk_full))
        if late and self.rooms:
            self.survey()
        elif self.rooms:
            self.retry_at = now + RETRY_S

    def _evicted(self, now: float, object_id: bytes) -> None:
        self.stories.note(now, object_id, "evicted: the store is full")
        if object_id in self.spilled:
            return  # the file stays this node's copy
        self._forget_copy(object_id)

    def _forget_copy(self, object_id: bytes, why: str = "") -> None:
        """This node has no copy any more: tell the owner."""
        held = self.held.pop(object_id, UNKNOWN)
        self.adopted.pop(object_id, None)
        if held.owner != NOBODY:
            self.relay.location_changed(worker_pb2.LocationUpdate(
                object_id=object_id, node_id=self.relay.node_id, removed=True, reason=why,
                owner=held.address))

    def _answer(self, now: float, room: Room, failure: common.Failure | None) -> None:
        if room.on_done is not None:
            room.on_done(now, failure)
        else:
            reply = worker_pb2.RoomReply(request_id=room.request_id, failure=failure)
            self.out.append(to_client(room.worker_id, room=reply))

    # ---- spilling ----

    def _spill(self, now: float, primaries: list[StoredObject], missing: int) -> bool:
        """Start one batch that frees at least `missing` bytes, if there is anything to write."""
        batch: dict[bytes, int] = {}
        total = 0
        wanted = max(missing, self.batch_bytes)
        busy = {oid for ids in self.spilling.values() for oid in ids}
        left = self._disk_left()
        for item in primaries:
            if total >= wanted or len(batch) >= SPILL_BATCH_OBJECTS:
                break
            if item.object_id in busy or item.object_id in self.spilled:
                continue
            if total + item.size > left:
                if not batch:
                    self._disk_failed(now, f"only {max(0, left) / MIB:.1f} MiB are left of the "
                                      f"{self.spill_limit / MIB:.1f} that MINIRAY_SPILL_MAX_BYTES allows")
                break
            batch[item.object_id] = item.size
            total += item.size
        if not batch:
            return False
        number = self.next_batch
        self.next_batch += 1
        self.spilling[number] = batch
        self.out.append(SpillObjects(number, list(batch)))
        return True

    def _disk_left(self) -> float:
        """Bytes that may still be written."""
        if not self.spill_limit:
            return math.inf
        writing = sum(size for batch in self.spilling.values() for size in batch.values() if size != FREED)
        return self.spill_limit - writing - sum(held.size for held in self.spilled.values())

    def _disk_failed(self, now: float, why: str) -> None:
        self.disk_full = why
        self.disk_retry_at = now + DISK_RETRY_S

    def objects_spilled(self, now: float, batch: int, object_ids: list[bytes],
                        failure: common.Failure | None) -> None:
        """A batch was written (those in `object_ids`) and taken out of the store."""
        sizes = self.spilling.pop(batch)
        orphans = []
        for object_id in object_ids:
            if sizes[object_id] == FREED:
                orphans.append(object_id)
                continue
            self.spilled[object_id] = self.held.setdefault(object_id, Held(sizes[object_id]))
            self.stories.note(now, object_id, "spilled to disk")
        if failure is not None and self.batch_bytes and len(sizes) > 1:
            self.batch_bytes = 0    # perhaps there is room for what is needed just now
        elif failure is not None:
            self._disk_failed(now, failure.message)
        elif object_ids:
            self.disk_full = ""
            self.batch_bytes = min(max(1, 2 * sum(sizes.values())), SPILL_BATCH_BYTES)
        if orphans:
            self.out.append(DropSpilled(orphans))
        if self.rooms:
            self.survey()

    # ---- restoring ----

    def is_spilled(self, object_id: bytes) -> bool:
        """Whether this node's copy is on disk."""
        return object_id in self.spilled

    def restore(self, now: float, object_id: bytes, on_done: Done) -> None:
        """Bring a spilled object back; `on_done` gets None or the failure."""
        waiting = self.restoring.get(object_id)
        if waiting is not None:
            waiting.append(on_done)
            return
        self.restoring[object_id] = [on_done]
        self.out.append(RestoreObject(object_id, self.spilled[object_id].size))

    def object_restored(self, now: float, object_id: bytes, failure: common.Failure | None) -> None:
        """The shell has read it back, or could not; without room it is tried again with room."""
        if failure is not None and failure.kind == common.STORE_FULL:
            held = self.spilled.get(object_id)
            if held is not None:
                request = worker_pb2.MakeRoom(bytes=held.size, object_id=object_id)
                self.room_requested(now, request, b"", lambda at, why: self._room_for(at, object_id, why))
                return
        if failure is not None:
            self.copy_damaged(now, object_id, failure.message)
        elif object_id not in self.spilled:  # freed while it was read back
            self.out.append(DeleteObjects([object_id]))
        for on_done in self.restoring.pop(object_id, []):
            on_done(now, failure)

    def copy_damaged(self, now: float, object_id: bytes, why: str) -> None:
        """What is on disk of it cannot be used: this node has no copy any more, and its owner hears."""
        if self.spilled.pop(object_id, None) is None:
            return
        self.stories.note(now, object_id, f"lost on this node: {why}")
        self.out.append(DropSpilled([object_id]))
        self.out.append(DeleteObjects([object_id]))
        self._forget_copy(object_id, why)

    def _room_for(self, now: float, object_id: bytes, failure: common.Failure | None) -> None:
        held = self.spilled.get(object_id)
        if held is None and failure is None:
            failure = common.Failure(kind=common.OBJECT_LOST,
                                     message=f"object {object_id.hex()} was freed while it was restored")
        if failure is not None:
            for on_done in self.restoring.pop(object_id, []):
                on_done(now, failure)
        else:
            assert held is not None
            self.out.append(RestoreObject(object_id, held.size))

    # ---- time, people, tests ----

    def told(self, object_id: bytes) -> list[str]:
        """How an object stands with this node's room, for people."""
        here = f"node {self.relay.node_id.hex()[:12]}"
        wanted = [room for room in self.rooms if room.object_id == object_id and room.worker_id]
        links = [f"{here} makes room in its full store for its {room.size} bytes, for "
                 f"{self.client_name(room.worker_id)}" for room in wanted]
        if self.disk_full and links:
            links.append(f"nothing can be spilled: {self.disk_full}")
        if object_id in self.spilled:
            links.append(f"its copy on {here} is spilled to disk: {self.spilled[object_id].size} bytes")
        elif any(object_id in batch for batch in self.spilling.values()):
            links.append(f"its copy on {here} is being written to disk")
        return links

    def next_deadline(self) -> float | None:
        """When a waiting request is looked at again."""
        return self.retry_at

    def tick(self, now: float) -> None:
        """Look again whether pins have gone."""
        if self.retry_at is not None and self.retry_at <= now:
            self.retry_at = None
            self.survey()

    def check(self) -> None:
        """A waiting request always has a next step under way."""
        if self.rooms:
            assert self.surveying or self.spilling or self.retry_at is not None, "room request is stuck"

    def dump(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "capacity": self.capacity, "objects_known": len(self.held), "spilled": len(self.spilled),
            "spilled_bytes": sum(held.size for held in self.spilled.values()),
            "rooms_waiting": [(room.object_id.hex(), room.size) for room in self.rooms],
            "restoring": len(self.restoring), "disk_full": self.disk_full,
        }
