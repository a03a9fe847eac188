"""Object bytes: between this node's store and its spill files, and to and from other nodes.

::

    SpillObjects   store ──▶ file, then out of the store          `objects_spilled`
    RestoreObject  file ──▶ store, as a secondary copy            `object_restored`
    StartFetch     other node ──▶ store, as a secondary copy      `fetch_ended`
    open_source()  store or file ──▶ other node

Bytes are read from and written into the segment directly (`runtime.bulk`). Loop's thread; file
I/O runs in the loop's executor. At most `SERVES_PER_OBJECT` streams leave this node for one object at a time:
others wait, and are sent on to those who have a copy by now, so that a broadcast forms a tree.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from miniray import _native
from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2
from miniray.core.memory import NOBODY, Owner
from miniray.core.node import Node
from miniray.core.node_effects import DropSpilled, RestoreObject, SpillObjects, StartFetch, StopFetch
from miniray.runtime.landing import Landing
from miniray.runtime.spill import Spilled, SpillFiles

CHUNK_BYTES = 5 << 20
SERVES_PER_OBJECT = 3
DAMAGED_KEPT = 1000
ELSEWHERE_KEPT = 8
SPREADS_KEPT = 256
"""Objects of which is known who has read them. One who has it no more says so, and others are asked."""


Begin = Callable[[raylet_pb2.Chunk], Landing]


class FetchPort(Protocol):
    """Reads an object from another node: over `runtime.bulk`, or gRPC where there is no port for it."""

    async def __call__(self, node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
        """Call `begin` with the header and fill what it returns from `request.offset` on.

        OSError: the source is out of reach, or has broken off.
        """


class FetchFailed(Exception):
    """A fetch ended without the object."""

    def __init__(self, failure: common.Failure, elsewhere: list[bytes], size: int = 0) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.elsewhere = elsewhere
        self.size = size


class Objects:
    """See the module head. `turn` is called after each stimulus fed to the node."""

    def __init__(self, store: _native.Store, node: Node, spill_dir: str, turn: Callable[[], None]) -> None:
        self.fetch_port: FetchPort | None = None
        self._store = store
        self._node = node
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._files = SpillFiles(spill_dir)
        self._fetches: dict[bytes, asyncio.Task[None]] = {}
        self._stopping: dict[bytes, asyncio.Task[None]] = {}
        self._landings: dict[bytes, Landing] = {}
        """Objects of which not all bytes have come."""
        self._others: set[asyncio.Task[None]] = set()
        self._serving: dict[bytes, dict[bytes, int]] = {}
        self._spread: dict[bytes, Spread] = {}
        self._damaged: dict[bytes, str] = {}
        """What was found when copies on disk were read for others: their next attempt hears it."""

        node.transfer.arrived = self._arrived

    def _arrived(self, object_id: bytes) -> int:
        landing = self._landings.get(object_id)
        return landing.done if landing is not None else 0

    def close(self) -> None:
        """Stop all streams and remove the spill files."""
        for task in (*self._fetches.values(), *self._others):
            task.cancel()
        for object_id in [one for one in self._landings if one not in self._fetches | self._stopping]:
            self._drop(object_id)
        self._files.remove_all()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    # ---- spilling ----

    def spill(self, effect: SpillObjects) -> None:
        """Write a batch; the objects leave the store once they are on disk."""
        self._spawn(self._spill(effect))

    async def _spill(self, effect: SpillObjects) -> None:
        batch = [(oid, buffer) for oid in effect.object_ids if (buffer := self._store.get(oid)) is not None]
        failure = None
        written: dict[bytes, Spilled] = {}
        try:
            written = await self._loop.run_in_executor(None, self._files.write, batch)
        except OSError as error:
            failure = common.Failure(kind=common.OUT_OF_DISK, message=str(error))
        batch.clear()  # our pins
        for object_id, location in written.items():
            self._files.remember(object_id, location)
            self._store.delete(object_id)
        self._node.objects_spilled(self._loop.time(), effect.batch, list(written), failure)
        self._turn()

    def restore(self, effect: RestoreObject) -> None:
        """Read an object back into the store."""
        self._spawn(self._restore(effect.object_id))

    async def _restore(self, object_id: bytes) -> None:
        failure = None
        location = self._files.location(object_id)
        if location is None:
            failure = common.Failure(kind=common.OBJECT_LOST,
                                     message=f"object {object_id.hex()} is not on this node's disk")
        else:
            try:
                await self._read_back(object_id, location)
            except _native.ObjectExists:
                pass
            except _native.StoreFull as error:
                failure = common.Failure(kind=common.STORE_FULL, message=str(error))
            except OSError as error:
                failure = common.Failure(kind=common.OBJECT_LOST, message=str(error))
        self._node.object_restored(self._loop.time(), object_id, failure)
        self._turn()

    async def _read_back(self, object_id: bytes, location: Spilled) -> None:
        view = self._store.create_object(object_id, location.size, primary=False)
        try:
            await self._loop.run_in_executor(None, self._files.read_into, location, view)
        except BaseException:
            view.release()
            self._store.abort(object_id)
            raise
        view.release()
        self._store.seal(object_id)

    def drop_spilled(self, effect: DropSpilled) -> None:
        """Forget spilled copies."""
        unused = [last for object_id in effect.object_ids if (last := self._files.forget(object_id))]
        if unused:
            self._loop.run_in_executor(None, self._files.remove, unused)

    # ---- fetching ----

    def start_fetch(self, effect: StartFetch) -> None:
        """Copy an object here, or the rest of it."""
        object_id = effect.object_id
        before = self._stopping.get(object_id)
        if effect.fresh and before is None:
            self._drop(object_id)
        elif effect.fresh and before is not None:
            before.add_done_callback(lambda _: self._drop(object_id))
        self._fetches[object_id] = self._loop.create_task(self._fetch(object_id, effect.node_id, before))

    def stop_fetch(self, effect: StopFetch) -> None:
        """Nobody waits for it any more, or not from there."""
        object_id = effect.object_id
        task = self._fetches.pop(object_id, None)
        if task is not None:
            self._stopping[object_id] = task
            task.add_done_callback(lambda done: self._stopped(object_id, done))
            task.cancel()
        task = self._stopping.get(object_id)
        if not effect.keep:
            if task is None:
                self._drop(object_id)
            else:
                task.add_done_callback(lambda _: self._drop(object_id))

    def _stopped(self, object_id: bytes, task: asyncio.Task[None]) -> None:
        if self._stopping.get(object_id) is task:
            del self._stopping[object_id]

    def _drop(self, object_id: bytes) -> None:
        """Give the memory of an object back that did not come to its end."""
        landing = self._landings.pop(object_id, None)
        if landing is not None:
            landing.view.release()
            self._store.abort(object_id)

    async def _fetch(self, object_id: bytes, node_id: bytes, before: asyncio.Task[None] | None) -> None:
        size, owner = 0, NOBODY
        failure: common.Failure | None = None
        elsewhere: list[bytes] = []
        if before is not None and not before.done():
            await asyncio.wait([before])
        try:
            if not self._store.contains(object_id):
                size, owner = await self._copy(object_id, node_id)
        except FetchFailed as error:
            failure, elsewhere, size = error.failure, error.elsewhere, error.size
        except OSError as error:
            failure = common.Failure(kind=common.NODE_DIED, message=str(error))
        if self._fetches.get(object_id) is asyncio.current_task():
            del self._fetches[object_id]
        self._node.fetch_ended(self._loop.time(), object_id, size, owner, failure, elsewhere)
        self._turn()

    async def _copy(self, object_id: bytes, node_id: bytes) -> tuple[int, Owner]:
        """Stream the object into the store. Returns its size and owner; raises FetchFailed, OSError."""
        if node_id == self._node.node_id or self.fetch_port is None:
            raise FetchFailed(common.Failure(kind=common.NOT_FOUND, message="it is not in the store"), [])
        kept = self._landings.get(object_id)
        owner, total = NOBODY, 0

        def begin(header: raylet_pb2.Chunk) -> Landing:
            nonlocal owner, total
            if header.HasField("failure"):
                raise FetchFailed(header.failure, list(header.elsewhere))
            total, owner = header.total_size, _owner_of(header)
            if kept is None:
                self._landings[object_id] = Landing(self._room(object_id, total))
            elif len(kept) != total:
                self._drop(object_id)
                raise ConnectionError(f"its copy has {total} bytes, another one had more or less")
            return self._landings[object_id]

        request = raylet_pb2.FetchRequest(
            object_id=object_id, reader=self._node.node_id, offset=kept.done if kept is not None else 0)
        try:
            await self.fetch_port(node_id, request, begin)
        except _native.ObjectExists:
            return total, owner  # somebody here has made it meanwhile
        except (OSError, asyncio.CancelledError):
            if object_id in self._landings:
                self._landings[object_id].interrupted()
            raise
        self._landings.pop(object_id).view.release()
        self._store.seal(object_id)
        return total, owner

    def _room(self, object_id: bytes, size: int) -> memoryview:
        try:
            return self._store.create_object(object_id, size, primary=False)
        except _native.StoreFull as error:
            failure = common.Failure(kind=common.STORE_FULL, message=str(error))
            raise FetchFailed(failure, [], size) from error

    # ---- serving ----

    def open_source(self, request: raylet_pb2.FetchRequest) -> Source:
        """Begin to serve an object or a part; a source of no bytes with a failure when it is not here."""
        object_id = request.object_id
        readers = self._serving.get(object_id, {})
        begun = request.reader in readers or request.offset
        if not begun:
            spread = self._spread.get(object_id)
            elsewhere = spread.instead(request.reader) if spread is not None else []
            if elsewhere or len(readers) >= SERVES_PER_OBJECT:
                return Source(raylet_pb2.Chunk(
                    failure=common.Failure(kind=common.UNAVAILABLE, message="its source is busy"),
                    elsewhere=elsewhere))
        buffer = self._store.get(object_id)
        location = self._files.location(object_id) if buffer is None else None
        if buffer is None and location is None:
            why = self._damaged.get(object_id, "the copy is gone")
            return Source(raylet_pb2.Chunk(failure=common.Failure(kind=common.NOT_FOUND, message=why)))
        readers = self._serving.setdefault(object_id, readers)
        readers[request.reader] = readers.get(request.reader, 0) + 1
        view = memoryview(buffer) if buffer is not None else None
        size = len(view) if view is not None else location.size if location is not None else 0
        start = min(request.offset, size)
        header = raylet_pb2.Chunk(total_size=size, offset=start)
        held = self._node.memory.held.get(object_id)
        if held is not None and held.owner != NOBODY:
            header.owner = common.Address(node_id=held.owner[0], worker_id=held.owner[1]).SerializeToString()
        length = min(request.length or size, size - start)
        return Source(header, view, location, lambda complete: self._served_one(request, complete), length,
                      lambda error: self._loop.call_soon_threadsafe(self._unreadable, object_id, error))

    def _unreadable(self, object_id: bytes, error: OSError) -> None:
        """A copy on disk is damaged: it is none."""
        self._damaged[object_id] = str(error)
        if len(self._damaged) > DAMAGED_KEPT:
            del self._damaged[next(iter(self._damaged))]
        self._node.copy_damaged(self._loop.time(), object_id, str(error))
        self._turn()

    def _served_one(self, request: raylet_pb2.FetchRequest, complete: bool) -> None:
        """One stream has ended; the reader has a copy when the last of its streams ended well."""
        object_id, reader = request.object_id, request.reader
        readers = self._serving[object_id]
        readers[reader] -= 1
        if not readers[reader]:
            del readers[reader]
            if complete and reader:
                spread = self._spread[object_id] = self._spread.pop(object_id, Spread())
                spread.copies.append(reader)
                if len(self._spread) > SPREADS_KEPT:
                    del self._spread[next(iter(self._spread))]
        if not readers:
            del self._serving[object_id]

    async def serve(
        self, request: raylet_pb2.FetchRequest, reader: bytes = b""
    ) -> AsyncIterator[raylet_pb2.Chunk]:
        """The same over gRPC: chunks, the first one with the header's fields."""
        request.reader = reader
        source = self.open_source(request)
        complete = False
        try:
            chunk = source.header
            at = 0
            while at < source.size:
                length = min(CHUNK_BYTES, source.size - at)
                chunk.data = bytes(await self._loop.run_in_executor(None, source.piece, at, length))
                yield chunk
                at += length
                chunk = raylet_pb2.Chunk(offset=source.header.offset + at)
            if not source.size:
                yield chunk
            complete = True
        finally:
            source.close(complete)


class Spread:
    """Who has read an object from here, oldest first."""

    def __init__(self) -> None:
        self.copies: list[bytes] = []
        self._sent_on: dict[bytes, None] = {}

    def instead(self, reader: bytes) -> list[bytes]:
        """Who is to be asked in our place, the last ones that have it: [] until there are enough, and
        for whoever was sent on and has come back."""
        if len(self.copies) < SERVES_PER_OBJECT or reader in self._sent_on or reader in self.copies:
            self._sent_on.pop(reader, None)
            return []
        self._sent_on[reader] = None
        del self.copies[:-ELSEWHERE_KEPT]
        return list(self.copies)


class Source:
    """One object, or `size` bytes of it, that another node reads; see `runtime.bulk.Source`."""

    def __init__(self, header: raylet_pb2.Chunk, view: memoryview | None = None,
                 location: Spilled | None = None,
                 on_close: Callable[[bool], None] = lambda complete: None, size: int = 0,
                 on_damage: Callable[[OSError], object] = lambda error: None) -> None:
        self.header = header
        self.size = size
        self._view = view
        self._location = location
        self._on_close = on_close
        self._on_damage = on_damage

    def piece(self, offset: int, length: int) -> Any:
        """A buffer with these bytes of the segment, or read from the spill file; OSError if they are bad."""
        offset += self.header.offset
        if self._view is not None:
            return self._view[offset : offset + length]
        assert self._location is not None
        try:
            return SpillFiles.read_part(self._location, offset, length)
        except OSError as error:
            self._on_damage(error)
            raise

    def close(self, complete: bool) -> None:
        """Unpin."""
        self._view = None
        self._on_close(complete)


def _owner_of(chunk: raylet_pb2.Chunk) -> Owner:
    if not chunk.owner:
        return NOBODY
    address = common.Address.FromString(chunk.owner)
    return (address.node_id, address.worker_id)
