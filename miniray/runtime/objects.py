"""Object bytes: between this node's store and its spill files, and to and from other nodes.

::

    SpillObjects   store ──▶ file, then out of the store          `objects_spilled`
    RestoreObject  file ──▶ store, as a secondary copy            `object_restored`
    StartFetch     other node ──▶ store, as a secondary copy      `fetch_ended`
    open_source()  store or file ──▶ other node                   what is on its way here, too

Bytes are read from and written into the segment directly (`runtime.bulk`). Loop's thread; file
I/O runs in the loop's executor. Who is served and who is sent on is decided in `core.serving`. What is
passed on before it is complete is read only by the raylet, in its own memory that is not sealed yet: no
other process can take it for whole, and a reader that gets only a part of it aborts its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from miniray import _native
from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2
from miniray.core.memory import NOBODY, Owner
from miniray.core.node import Node
from miniray.core.node_effects import (
    DeleteObjects,
    DropSpilled,
    RestoreObject,
    SpillObjects,
    StartFetch,
    StopFetch,
)
from miniray.runtime.landing import Landing
from miniray.runtime.spill import Spilled, SpillFiles

CHUNK_BYTES = 5 << 20
DAMAGED_KEPT = 1000
VERSION_BYTES = 8
HELD_S = 1.0
"""Who asks for what is about to come waits so long for its first byte, and then asks somebody else."""


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
        self._awaiting: dict[bytes, list[asyncio.Future[None]]] = {}
        """Readers of objects that are about to come; told when one begins to, or does not."""
        self._versions: dict[bytes, bytes] = {}
        """Of copies that others have read or that were read from others."""
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

    def deleted(self, effect: DeleteObjects) -> None:
        """These have left the store; what comes under the same id later may have other bytes."""
        for object_id in effect.object_ids:
            if self._files.location(object_id) is None:
                self._versions.pop(object_id, None)

    def drop_spilled(self, effect: DropSpilled) -> None:
        """Forget spilled copies."""
        for object_id in effect.object_ids:
            self._versions.pop(object_id, None)
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
            landing.over(is_whole=False)
            self._store.abort(object_id)
        self._tell_readers(object_id)

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
        self._tell_readers(object_id)
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
                self._landings[object_id] = Landing(self._room(object_id, total), header.version)
                self._tell_readers(object_id)
            elif len(kept) != total or kept.version != header.version:
                self._drop(object_id)
                raise ConnectionError("its copy has other bytes than the one that was begun")
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
        landing = self._landings.pop(object_id)
        landing.over(is_whole=True)
        self._store.seal(object_id)
        if landing.version:
            self._versions[object_id] = landing.version
        return total, owner

    def _room(self, object_id: bytes, size: int) -> memoryview:
        try:
            return self._store.create_object(object_id, size, primary=False)
        except _native.StoreFull as error:
            failure = common.Failure(kind=common.STORE_FULL, message=str(error))
            raise FetchFailed(failure, [], size) from error

    # ---- serving ----

    async def open_source(self, request: raylet_pb2.FetchRequest) -> Source:
        """Begin to serve an object or a part; a source of no bytes with a failure when it is not here.

        What is on its way here is waited for, `HELD_S` at most.
        """
        object_id = request.object_id
        buffer = self._store.get(object_id)
        view = memoryview(buffer) if buffer is not None else None
        location = self._files.location(object_id) if view is None else None
        if view is None and location is None:
            return await self._open_coming(request)
        size = len(view) if view is not None else location.size if location is not None else 0
        refusal = self._refusal(request, size)
        return refusal or self._source(request, size, self._version(object_id), view, location)

    def _refusal(self, request: raylet_pb2.FetchRequest, size: int) -> Source | None:
        """It is to be read elsewhere, or later; None: it is to be served."""
        info = self._node.peers.get(request.reader)
        elsewhere = self._node.serving.asked(
            request.object_id, request.reader, size, begun=request.offset > 0,
            passes_on=info is None or not info.takes_no_work)
        return None if elsewhere is None else _refused(common.UNAVAILABLE, "its source is busy", elsewhere)

    async def _open_coming(self, request: raylet_pb2.FetchRequest) -> Source:
        """Serve what has come so far of an object that is on its way here, and then the rest."""
        object_id = request.object_id
        pull = self._node.transfer.pulls.get(object_id)
        if pull is None:
            return _refused(common.NOT_FOUND, self._damaged.get(object_id, "the copy is gone"))
        has_begun = request.reader in self._node.serving.readers(object_id)
        refusal = self._refusal(request, pull.size)
        if refusal is not None:
            return refusal
        landing = None
        try:
            if has_begun:
                landing = self._landings.get(object_id)
            else:
                landing = await asyncio.wait_for(self._coming(object_id, request.offset), HELD_S)
        except (ConnectionError, asyncio.TimeoutError):
            pass
        finally:
            if landing is None:
                self._served_one(request, False)
        if landing is None:
            return _refused(common.UNAVAILABLE, "it has not come here yet")
        return self._source(request, len(landing), landing.version, landing.view[:], landing=landing)

    async def _coming(self, object_id: bytes, offset: int) -> Landing | None:
        """The landing once more of it is there than `offset`; who asks cannot be behind us, then."""
        while object_id not in self._landings:
            if object_id not in self._node.transfer.pulls:
                return None
            news = self._loop.create_future()
            self._awaiting.setdefault(object_id, []).append(news)
            await news
        landing = self._landings[object_id]
        while landing.done <= offset:
            await landing.reached(offset)
            if landing.is_whole:
                return None
        return landing

    def _tell_readers(self, object_id: bytes) -> None:
        for news in self._awaiting.pop(object_id, []):
            if not news.done():
                news.set_result(None)

    def _version(self, object_id: bytes) -> bytes:
        """Of a whole copy; made up for one that came from nowhere."""
        if object_id not in self._versions:
            self._versions[object_id] = os.urandom(VERSION_BYTES)
        return self._versions[object_id]

    def _source(self, request: raylet_pb2.FetchRequest, size: int, version: bytes, view: memoryview | None,
                location: Spilled | None = None, landing: Landing | None = None) -> Source:
        start = min(request.offset, size)
        header = raylet_pb2.Chunk(
            total_size=size, offset=start, version=version, partial=landing is not None)
        header.owner = self._owner_of(request.object_id)
        length = min(request.length or size, size - start)
        return Source(header, view, location, lambda complete: self._served_one(request, complete), length,
                      lambda error: self._loop.call_soon_threadsafe(
                          self._unreadable, request.object_id, error), landing)

    def _owner_of(self, object_id: bytes) -> bytes:
        """Encoded; b"" when nobody has told us."""
        held = self._node.memory.held.get(object_id)
        if held is not None and held.owner != NOBODY:
            return held.address.SerializeToString()
        pull = self._node.transfer.pulls.get(object_id)
        return pull.owner.SerializeToString() if pull is not None else b""

    def _unreadable(self, object_id: bytes, error: OSError) -> None:
        """A copy on disk is damaged: it is none."""
        self._damaged[object_id] = str(error)
        if len(self._damaged) > DAMAGED_KEPT:
            del self._damaged[next(iter(self._damaged))]
        self._node.copy_damaged(self._loop.time(), object_id, str(error))
        self._turn()

    def _served_one(self, request: raylet_pb2.FetchRequest, complete: bool) -> None:
        self._node.serving.ended(request.object_id, request.reader, complete)

    async def serve(
        self, request: raylet_pb2.FetchRequest, reader: bytes = b""
    ) -> AsyncIterator[raylet_pb2.Chunk]:
        """The same over gRPC: chunks, the first one with the header's fields."""
        request.reader = reader
        source = await self.open_source(request)
        complete = False
        try:
            chunk = source.header
            at = 0
            while at < source.size:
                length = min(CHUNK_BYTES, await source.ready(at) - at)
                chunk.data = bytes(await self._loop.run_in_executor(None, source.piece, at, length))
                yield chunk
                at += length
                chunk = raylet_pb2.Chunk(offset=source.header.offset + at)
            if not source.size:
                yield chunk
            complete = True
        finally:
            source.close(complete)


class Source:
    """One object, or `size` bytes of it, that another node reads; see `runtime.bulk.Source`."""

    def __init__(self, header: raylet_pb2.Chunk, view: memoryview | None = None,
                 location: Spilled | None = None,
                 on_close: Callable[[bool], None] = lambda complete: None, size: int = 0,
                 on_damage: Callable[[OSError], object] = lambda error: None,
                 landing: Landing | None = None) -> None:
        self.header = header
        self.size = size
        self._view = view
        self._location = location
        self._on_close = on_close
        self._on_damage = on_damage
        self._landing = landing

    async def ready(self, offset: int) -> int:
        """Where the bytes end that are there, more than up to `offset`. OSError when no more will come."""
        if self._landing is None:
            return self.size
        end = await self._landing.reached(self.header.offset + offset) - self.header.offset
        return min(end, self.size)

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


def _refused(kind: common.ErrorKind, why: str, elsewhere: Sequence[bytes] = ()) -> Source:
    """No bytes, and the reason."""
    return Source(raylet_pb2.Chunk(failure=common.Failure(kind=kind, message=why), elsewhere=elsewhere))


def _owner_of(chunk: raylet_pb2.Chunk) -> Owner:
    if not chunk.owner:
        return NOBODY
    address = common.Address.FromString(chunk.owner)
    return (address.node_id, address.worker_id)
