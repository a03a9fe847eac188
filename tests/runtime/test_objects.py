"""Object bytes: spilled and read back unharmed, streamed to other nodes; failures name themselves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from miniray import _native
from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2, worker_pb2
from miniray.core import serving
from miniray.core.memory import Held
from miniray.core.node import Node
from miniray.core.node_effects import DropSpilled, RestoreObject, SpillObjects, StartFetch, StopFetch
from miniray.runtime import bulk, objects, spill_places
from miniray.runtime.bulk import BulkReader, BulkServer
from miniray.runtime.cluster_links import _fill
from miniray.runtime.landing import Landing
from miniray.runtime.objects import CHUNK_BYTES, Begin, Objects
from miniray.runtime.spill import BLOCK_BYTES, SpillFiles
from tests.small_disk import small_disk

MIB = 1 << 20
STORE_BYTES = 64 * MIB


def oid(number: int) -> bytes:
    return number.to_bytes(28, "big")


class Place:
    """One node's store and its object I/O; stimuli for the node are recorded."""

    def __init__(self, directory: Path, name: bytes, capacity: int = STORE_BYTES) -> None:
        self.store = _native.Store.create(capacity)
        self.node = Node(common.NodeInfo(node_id=name * 28), random.Random(0), store_bytes=capacity)
        self.heard: list[tuple[Any, ...]] = []
        self.news = asyncio.Event()
        for stimulus in ("objects_spilled", "object_restored", "fetch_ended", "copy_damaged"):
            setattr(self.node, stimulus, lambda *args, _name=stimulus: self._heard(_name, *args[1:]))
        self.objects = Objects(self.store, self.node, str(directory / name.decode()), lambda: None)

    def _heard(self, *what: Any) -> None:
        self.heard.append(what)
        self.news.set()

    async def next(self) -> tuple[Any, ...]:
        """The next stimulus fed to the node."""
        while not self.heard:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 10)
        return self.heard.pop(0)

    def put(self, number: int, data: bytes) -> bytes:
        self.store.put(oid(number), [data])
        return oid(number)

    def damage(self, number: int) -> str:
        """Change a bit of an object on disk. Returns the file."""
        location = self.objects._files.location(oid(number))
        assert location is not None
        content = bytearray(Path(location.path).read_bytes())
        content[location.offset + location.size - 1] ^= 1
        Path(location.path).write_bytes(content)
        return location.path

    def read(self, object_id: bytes) -> bytes | None:
        buffer = self.store.get(object_id)
        return None if buffer is None else bytes(buffer)


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("not so within five seconds")


class Wires:
    """`reader` fetches from `source` over both carriers that exist."""

    def __init__(self, reader: Place, source: Place, carrier: str) -> None:
        self.server = BulkServer(
            "127.0.0.1", 0, "token", source.objects.open_source, lambda hello, fd: os.close(fd))
        self.client = BulkReader("token")

        async def fetch(node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
            assert node_id == source.node.node_id
            if carrier == "bulk":
                await self.client.fetch(("127.0.0.1", self.server.port), request, begin)
            else:
                await _fill(source.objects.serve(request, reader.node.node_id), begin)

        reader.objects.fetch_port = fetch

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture(params=["bulk", "chunks"])
async def wired(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Place, Place]]:
    """(here, there): `here` fetches from `there`, which has twice the room."""
    here, there = Place(tmp_path, b"a"), Place(tmp_path, b"b", 2 * STORE_BYTES)
    wires = Wires(here, there, request.param)
    yield here, there
    wires.close()
    here.objects.close()
    there.objects.close()
    await asyncio.sleep(0)


# ---- files ----


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_files_keep_several_objects_and_go_with_the_last(tmp_path: Path, scheme: str) -> None:
    files = SpillFiles(f"{scheme}{tmp_path}/spill")
    system = fsspec.filesystem("memory" if scheme.startswith("memory") else "file")
    data = {oid(n): os.urandom(n * 1000) for n in range(4)}
    assert files.write([]) == {} and not system.exists(f"{tmp_path}/spill")
    for object_id, location in files.write(list(data.items())).items():
        files.remember(object_id, location)
    (path,) = system.find(f"{tmp_path}/spill")
    for object_id, expected in data.items():
        location = files.location(object_id)
        assert location is not None
        target = bytearray(location.size)
        files.read_into(location, memoryview(target))
        assert bytes(target) == expected
        assert files.read_part(location, 10, 20) == expected[10:30]
    assert [files.forget(object_id) for object_id in list(data)[:3]] == [None] * 3
    last = files.forget(oid(3))
    assert last is not None and system.exists(path)
    files.remove([last])
    assert not system.exists(path)
    files.remove([last])
    files.write([(oid(5), b"data")])
    files.remove_all()
    assert not system.exists(f"{tmp_path}/spill")
    with pytest.raises(OSError, match="the node ends"):
        files.write([(oid(6), b"data")])


def test_each_raylet_has_a_place_of_its_own_below_what_was_chosen(tmp_path: Path) -> None:
    assert spill_places.below(f"{tmp_path}/x", "own") == spill_places.below(f"file://{tmp_path}/x", "own")
    assert spill_places.below("memory://", "own").startswith("memory://own-")
    assert spill_places.below("s3://bucket/deep/", "own").startswith("s3://bucket/deep/own-")
    assert spill_places.below("s3://bucket", "own") != spill_places.below("s3://bucket", "own")
    with pytest.raises(OSError, match="nosuch://x: .*Protocol not known"):
        SpillFiles("nosuch://x").write([(oid(1), b"data")])


class Brittle(MemoryFileSystem):  # type: ignore[misc]
    """Raises in the middle of a file, as file systems in the net do."""

    protocol = "brittle"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    broken: ClassVar[set[str]] = set()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return BrittleFile(self, path, mode)

    def rm_file(self, path: str) -> None:
        if "rm" in self.broken:
            raise KeyError(path)
        super().rm_file(path)


class BrittleFile(AbstractBufferedFile):  # type: ignore[misc]
    def _initiate_upload(self) -> None:
        self.fs.store[self.path] = MemoryFile(self.fs, self.path, b"")

    def _upload_chunk(self, final: bool = False) -> bool:
        if "write" in self.fs.broken and final:
            raise ValueError("the connection ended")
        self.fs.store[self.path].write(self.buffer.getvalue())
        return True

    def _fetch_range(self, start: int, end: int) -> bytes:
        if "read" in self.fs.broken:
            raise ValueError("the connection ended")
        return bytes(self.fs.store[self.path].getvalue()[start:end])


@pytest.fixture
def brittle() -> Iterator[set[str]]:
    """What fails in the file system "brittle"."""
    fsspec.register_implementation("brittle", Brittle)
    yield Brittle.broken
    Brittle.broken.clear()
    Brittle.store.clear()


async def test_a_file_system_that_fails_midway_leaves_the_store_as_it_was(
    tmp_path: Path, brittle: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path, b"a")
    place.objects.close()
    place.objects = Objects(place.store, place.node, "brittle://far/own", lambda: None)
    place.put(1, os.urandom(12 * MIB))
    content = place.read(oid(1))
    brittle.add("write")
    place.objects.spill(SpillObjects(1, [oid(1)]))
    _, _, written, failure = await place.next()
    assert not written and failure.kind == common.OUT_OF_DISK
    assert re.search("brittle://far/own/1.spill: ValueError: the connection ended", failure.message)
    assert place.read(oid(1)) == content and not Brittle.store
    brittle.clear()
    place.objects.spill(SpillObjects(2, [oid(1)]))
    assert await place.next() == ("objects_spilled", 2, [oid(1)], None)
    brittle.add("read")
    place.objects.restore(RestoreObject(oid(1), 0))
    _, _, failure = await place.next()
    assert failure.kind == common.OBJECT_LOST and "2.spill: ValueError: the conn" in failure.message
    assert place.store.stats()["used"] == 0, "nobody holds the half-read copy"
    brittle.clear()
    place.objects.restore(RestoreObject(oid(1), 0))
    assert await place.next() == ("object_restored", oid(1), None)
    assert place.read(oid(1)) == content
    brittle.add("rm")
    place.objects.drop_spilled(DropSpilled([oid(1)]))
    await eventually(lambda: "2.spill: KeyError" in caplog.text)
    brittle.clear()
    place.objects.close()
    await eventually(lambda: not Brittle.store)
    place.store.check()


@pytest.mark.parametrize("damage", ["bit", "short"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    files = SpillFiles(str(tmp_path))
    location = files.write([(oid(1), b"x" * 1000)])[oid(1)]
    content = bytearray(Path(location.path).read_bytes())
    if damage == "bit":
        content[location.offset + 500] ^= 1
    else:
        del content[-1:]
    Path(location.path).write_bytes(content)
    with pytest.raises(OSError, match=location.path):
        files.read_into(location, memoryview(bytearray(1000)))


def test_a_full_disk_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(used=int(0.96 * usage.total)))
    files = SpillFiles(str(tmp_path / "spill"))
    with pytest.raises(OSError, match="full"):
        files.write([(oid(1), b"x")])
    assert not list((tmp_path / "spill").iterdir())


async def test_a_disk_that_fills_up_while_a_batch_is_written_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_places, "DISK_FULL_SHARE", 10)    # as if others had filled it since
    with small_disk(tmp_path / "disk", 8 * MIB) as disk:
        place = Place(disk, b"a")
        for number, size in enumerate((3, 4, 5, 2)):
            place.put(number, bytes([number]) * size * MIB)
        place.objects.spill(SpillObjects(1, [oid(0)]))
        assert await place.next() == ("objects_spilled", 1, [oid(0)], None)
        place.objects.spill(SpillObjects(2, [oid(1), oid(2)]))
        _, _, written, failure = await place.next()
        assert not written and failure.kind == common.OUT_OF_DISK
        assert f"{disk}/a/2.spill: [Errno 28]" in failure.message
        assert [path.name for path in (disk / "a").iterdir()] == ["1.spill"]
        place.objects.spill(SpillObjects(3, [oid(3)]))
        assert await place.next() == ("objects_spilled", 3, [oid(3)], None)
        for number in (0, 3):
            place.objects.restore(RestoreObject(oid(number), 0))
            assert await place.next() == ("object_restored", oid(number), None)
        for number, size in enumerate((3, 4, 5, 2)):
            assert place.read(oid(number)) == bytes([number]) * size * MIB
        place.store.check()
        place.objects.close()


# ---- spilling and restoring ----


async def test_spilled_objects_leave_the_store_and_come_back_as_they_were(tmp_path: Path) -> None:
    place = Place(tmp_path, b"a")
    data = {place.put(n, os.urandom(3 * MIB + n)): n for n in range(3)}
    before = {object_id: place.read(object_id) for object_id in data}
    place.objects.spill(SpillObjects(7, list(data)))
    assert await place.next() == ("objects_spilled", 7, list(data), None)
    assert place.store.stats()["used"] == 0
    for object_id, content in before.items():
        place.objects.restore(RestoreObject(object_id, 0))
        assert await place.next() == ("object_restored", object_id, None)
        assert place.read(object_id) == content and not place.store.is_primary(object_id)
    place.objects.drop_spilled(DropSpilled(list(data)))
    await eventually(lambda: not list((tmp_path / "a").iterdir()))
    place.store.check()
    place.objects.close()


async def test_restoring_into_a_full_store_or_from_a_bad_file_says_which(tmp_path: Path) -> None:
    place = Place(tmp_path, b"a")
    place.put(1, b"x" * 40 * MIB)
    place.objects.spill(SpillObjects(1, [oid(1)]))
    await place.next()
    place.put(2, b"y" * 40 * MIB)
    place.objects.restore(RestoreObject(oid(1), 0))
    assert (await place.next())[2].kind == common.STORE_FULL
    place.store.delete(oid(2))
    (path,) = (tmp_path / "a").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    place.objects.restore(RestoreObject(oid(1), 0))
    assert (await place.next())[2].kind == common.OBJECT_LOST
    assert place.store.stats()["used"] == 0, "the half-read copy is gone"
    place.objects.close()


# ---- between nodes ----


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 4 * CHUNK_BYTES + 1])
async def test_an_object_arrives_equal_with_its_owner(wired: tuple[Place, Place], size: int) -> None:
    here, there = wired
    content = os.urandom(size)
    there.put(1, content)
    there.node.memory.held[oid(1)] = Held(size, (b"n" * 28, b"w" * 28))
    here.objects.start_fetch(StartFetch(oid(1), there.node.node_id))
    assert await here.next() == ("fetch_ended", oid(1), size, (b"n" * 28, b"w" * 28), None, [])
    assert here.read(oid(1)) == content and not here.store.is_primary(oid(1))
    await eventually(lambda: there.store.pins(oid(1)) == [])


async def test_many_objects_arrive_over_few_connections(wired: tuple[Place, Place]) -> None:
    here, there = wired
    content = {n: os.urandom(1000 * n) for n in range(40)}
    for n, data in content.items():
        there.put(n, data)
        here.objects.start_fetch(StartFetch(oid(n), there.node.node_id))
    for _ in content:
        assert (await here.next())[4] is None
    assert all(here.read(oid(n)) == data for n, data in content.items())


async def test_a_spilled_object_is_served_from_its_file(wired: tuple[Place, Place]) -> None:
    here, there = wired
    content = os.urandom(CHUNK_BYTES + 5)
    there.put(1, content)
    there.objects.spill(SpillObjects(1, [oid(1)]))
    await there.next()
    here.objects.start_fetch(StartFetch(oid(1), there.node.node_id))
    assert (await here.next())[4] is None
    assert here.read(oid(1)) == content and there.store.stats()["used"] == 0


async def test_a_damaged_file_is_not_served_and_the_next_attempt_says_why(wired: tuple[Place, Place]) -> None:
    here, there = wired
    there.put(1, os.urandom(BLOCK_BYTES + 100))
    there.objects.spill(SpillObjects(1, [oid(1)]))
    await there.next()
    path = there.damage(1)
    here.objects.start_fetch(StartFetch(oid(1), there.node.node_id))
    assert (await here.next())[4].kind == common.NODE_DIED, "the stream broke"
    name, object_id, why = await there.next()
    assert (name, object_id) == ("copy_damaged", oid(1)) and path in why
    there.objects.drop_spilled(DropSpilled([oid(1)]))
    here.objects.start_fetch(StartFetch(oid(1), there.node.node_id))
    failure = (await here.next())[4]
    assert failure.kind == common.NOT_FOUND and failure.message == why
    here.objects.stop_fetch(StopFetch(oid(1)))      # as the pull says that has no other source
    assert here.store.stats()["objects"] == 0


def test_a_part_of_a_spilled_object_is_read_across_blocks(tmp_path: Path) -> None:
    files = SpillFiles(str(tmp_path / "spill"))
    content = os.urandom(3 * BLOCK_BYTES + 17)
    location = files.write([(oid(1), content)])[oid(1)]
    for offset, length in ((0, 10), (BLOCK_BYTES - 5, 10), (5, 2 * BLOCK_BYTES), (3 * BLOCK_BYTES, 1000)):
        assert files.read_part(location, offset, length) == content[offset : offset + length]


async def test_fetches_that_fail_say_why_and_leave_nothing(wired: tuple[Place, Place]) -> None:
    here, there = wired
    here.objects.start_fetch(StartFetch(oid(1), there.node.node_id))
    assert (await here.next())[4].kind == common.NOT_FOUND
    there.put(2, b"x" * (STORE_BYTES + MIB))
    here.objects.start_fetch(StartFetch(oid(2), there.node.node_id))
    _, _, size, _, failure, _ = await here.next()
    assert failure.kind == common.STORE_FULL and size == STORE_BYTES + MIB
    there.put(3, b"y")
    here.objects.start_fetch(StartFetch(oid(3), there.node.node_id))
    assert (await here.next())[4] is None, "the next fetch works as before"
    assert here.store.stats()["objects"] == 1


async def test_a_source_that_breaks_off_leaves_what_has_come_until_nobody_wants_it(tmp_path: Path) -> None:
    here = Place(tmp_path, b"a")

    async def broken(node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
        begin(raylet_pb2.Chunk(total_size=10))
        raise ConnectionError("it was unplugged")

    here.objects.fetch_port = broken
    here.objects.start_fetch(StartFetch(oid(3), b"b" * 28))
    failure = (await here.next())[4]
    assert failure.kind == common.NODE_DIED and "unplugged" in failure.message
    assert here.store.stats()["objects"] == 1
    here.objects.stop_fetch(StopFetch(oid(3)))
    assert here.store.stats()["objects"] == 0


class Breaking:
    """A source that breaks off after some bytes, and notes where it was asked to begin."""

    def __init__(self, data: bytes, pieces: int) -> None:
        self.data = data
        self.piece = len(data) // pieces
        self.asked: list[int] = []

    async def fetch(self, node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
        start = request.offset
        self.asked.append(start)
        landing = begin(raylet_pb2.Chunk(total_size=len(self.data), offset=start))
        end = min(start + self.piece, len(self.data))
        landing.view[start:end] = self.data[start:end]
        landing.arrived(start, end)
        if end < len(self.data):
            landing.arrived(end + 1, end + 2)   # behind a gap: read again
            raise ConnectionError("it was unplugged")


async def test_a_fetch_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    here, data = Place(tmp_path, b"a"), os.urandom(3000)
    source = Breaking(data, 3)
    here.objects.fetch_port = source.fetch
    come = []
    for node in b"bcb":
        here.objects.start_fetch(StartFetch(oid(1), bytes([node]) * 28))
        failure = (await here.next())[4]
        come.append(here.node.transfer.arrived(oid(1)))
    assert failure is None and source.asked == [0, 1000, 2000]
    assert come == [1000, 2000, 0], "explanations say how far it has come, and nothing when it is whole"
    assert here.read(oid(1)) == data


async def test_a_fresh_fetch_begins_anew_and_so_does_one_of_another_size(tmp_path: Path) -> None:
    here, data = Place(tmp_path, b"a"), os.urandom(3000)
    first, other, longer = Breaking(data, 2), Breaking(bytes(3000), 1), Breaking(bytes(4000), 1)
    here.objects.fetch_port = first.fetch
    here.objects.start_fetch(StartFetch(oid(1), b"b" * 28))
    assert (await here.next())[4].kind == common.NODE_DIED
    here.objects.fetch_port = other.fetch
    here.objects.start_fetch(StartFetch(oid(1), b"c" * 28, fresh=True))
    assert (await here.next())[4] is None and here.read(oid(1)) == bytes(3000)
    here.objects.fetch_port = first.fetch
    here.objects.start_fetch(StartFetch(oid(2), b"b" * 28))
    assert (await here.next())[4].kind == common.NODE_DIED
    here.objects.fetch_port = longer.fetch
    here.objects.start_fetch(StartFetch(oid(2), b"c" * 28))
    assert (await here.next())[4].kind == common.NODE_DIED
    here.objects.start_fetch(StartFetch(oid(2), b"c" * 28))
    assert (await here.next())[4] is None and here.read(oid(2)) == bytes(4000)
    assert longer.asked == [1500, 0]


async def test_a_fetch_that_is_replaced_lets_go_of_the_memory_first(tmp_path: Path) -> None:
    here, data = Place(tmp_path, b"a"), os.urandom(3000)
    held, let_go = asyncio.Event(), asyncio.Event()

    async def silent(node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
        landing = begin(raylet_pb2.Chunk(total_size=3000))
        landing.view[:1000] = data[:1000]
        landing.arrived(0, 1000)
        try:
            held.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)   # a thread that still writes
            let_go.set()

    source = Breaking(data, 1)
    here.objects.fetch_port = silent
    here.objects.start_fetch(StartFetch(oid(1), b"b" * 28))
    await held.wait()
    here.objects.fetch_port = source.fetch
    here.objects.stop_fetch(StopFetch(oid(1), keep=True))
    here.objects.start_fetch(StartFetch(oid(1), b"c" * 28))
    assert (await here.next())[4] is None
    assert let_go.is_set() and source.asked == [1000] and here.read(oid(1)) == data


async def test_a_stopped_fetch_gives_its_memory_back(tmp_path: Path) -> None:
    """The source stalls in the middle; the reader's thread must let go of the segment."""
    here = Place(tmp_path, b"a")
    stalled = socket.create_server(("127.0.0.1", 0))
    client = BulkReader("token")

    seen_end = threading.Event()

    def stall() -> None:
        sock, _ = stalled.accept()
        sock.sendall(b"c" * 32)
        header = raylet_pb2.Chunk(total_size=MIB).SerializeToString()
        sock.sendall(len(header).to_bytes(4, "little") + header + b"half")
        while sock.recv(4096):
            pass
        sock.close()
        seen_end.set()

    threading.Thread(target=stall, daemon=True).start()

    async def fetch(node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
        await client.fetch(stalled.getsockname(), request, begin)

    here.objects.fetch_port = fetch
    here.objects.start_fetch(StartFetch(oid(1), b"b" * 28))
    await eventually(lambda: here.store.stats()["objects"] == 1)
    here.objects.stop_fetch(StopFetch(oid(1)))
    await eventually(lambda: here.store.stats()["objects"] == 0)
    assert not here.heard and seen_end.wait(5)
    client.close()
    stalled.close()


async def test_a_reader_that_breaks_off_leaves_no_pin_for_the_collector(tmp_path: Path) -> None:
    source = Place(tmp_path, b"s")
    source.put(1, bytes(32 * MIB))
    server = BulkServer(
        "127.0.0.1", 0, "token", source.objects.open_source, lambda hello, fd: os.close(fd))
    client = BulkReader("token")

    def has_no_room(header: raylet_pb2.Chunk) -> Landing:
        raise OSError("no room")

    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="no room"):
                await client.fetch(
                    ("127.0.0.1", server.port), raylet_pb2.FetchRequest(object_id=oid(1)), has_no_room)
        await eventually(lambda: not source.node.serving.readers(oid(1)))
        await eventually(lambda: not source.store.stats()["pinned_bytes"])
    finally:
        gc.enable()
        client.close()
        server.close()


def test_nothing_is_spilled_into_a_directory_that_others_made_or_can_change(tmp_path: Path) -> None:
    for name, mode in (("open", 0o777), ("group", 0o770)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "group", "link"):
        with pytest.raises(OSError, match=f"somebody else has made .*{name}"):
            SpillFiles(str(tmp_path / name)).write([(oid(1), b"data")])
    assert not list(tmp_path.rglob("*.spill"))
    SpillFiles(str(tmp_path / "own" / "below")).write([(oid(1), b"data")])
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


async def test_bulk_without_the_token_gets_nothing(tmp_path: Path) -> None:
    source = Place(tmp_path, b"s")
    source.put(1, b"secret")
    server = BulkServer(
        "127.0.0.1", 0, "token", source.objects.open_source, lambda hello, fd: os.close(fd))
    client = BulkReader("another token")
    request = raylet_pb2.FetchRequest(object_id=oid(1))
    with pytest.raises(ConnectionError, match="token"):
        await client.fetch(("127.0.0.1", server.port), request, lambda header: pytest.fail("a header"))
    client.close()
    server.close()


@pytest.fixture
async def striped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Place, Wires]]:
    """A source, and a reader that reads in parts of 64 KiB, three streams at a time."""
    monkeypatch.setattr(bulk, "PART_BYTES", 64 * 1024)
    source = Place(tmp_path, b"b", 2 * STORE_BYTES)
    wires = Wires(Place(tmp_path, b"a"), source, "bulk")
    wires.client = BulkReader("token", streams=3)
    yield source, wires
    wires.close()
    source.objects.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 640 * 1024, 1_000_003])
async def test_a_large_object_is_read_in_parts_at_once(striped: tuple[Place, Wires], size: int) -> None:
    source, wires = striped
    data = os.urandom(size)
    source.put(1, data)
    target = bytearray(size)
    asked: list[tuple[int, int]] = []
    serve = source.objects.open_source

    async def open_source(request: raylet_pb2.FetchRequest) -> Any:
        asked.append((request.offset, request.length))
        return await serve(request)

    wires.server._open_source = open_source
    request = raylet_pb2.FetchRequest(object_id=oid(1), reader=b"r" * 28)
    await wires.client.fetch(
        ("127.0.0.1", wires.server.port), request,
        lambda header: Landing(memoryview(target), header.version) if header.total_size == size
        else pytest.fail("size"))
    assert bytes(target) == data
    assert sorted(asked) == [(at, 64 * 1024) for at in range(0, max(size, 1), 64 * 1024)]
    await eventually(lambda: not source.node.serving.readers(oid(1)))
    assert wires.client._slots._value == bulk.STREAMS, "every slot was given back"


async def test_a_part_that_fails_fails_the_whole(
    striped: tuple[Place, Wires]
) -> None:
    source, wires = striped
    source.put(1, os.urandom(MIB))
    target = bytearray(MIB)
    serve = source.objects.open_source

    async def open_source(request: raylet_pb2.FetchRequest) -> Any:
        if request.offset >= 5 * 64 * 1024:
            request.object_id = oid(2)      # as if it had been deleted meanwhile
        return await serve(request)

    wires.server._open_source = open_source
    with pytest.raises(ConnectionError, match="changed its mind"):
        await wires.client.fetch(
            ("127.0.0.1", wires.server.port), raylet_pb2.FetchRequest(object_id=oid(1), reader=b"r" * 28),
            lambda header: Landing(memoryview(target), header.version))
    assert wires.client._slots._value == bulk.STREAMS, "every stream has let go"
    await eventually(lambda: not source.node.serving.readers(oid(1)))


async def test_the_streams_of_one_reader_count_as_one_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SERVES_PER_OBJECT", 1)
    place = Place(tmp_path, b"s")
    place.put(1, b"x" * MIB)

    async def read(reader: bytes, offset: int) -> Any:
        return await place.objects.open_source(raylet_pb2.FetchRequest(
            object_id=oid(1), reader=reader * 28, offset=offset, length=MIB // 2))

    streams = [await read(b"1", 0), await read(b"1", MIB // 2)]
    assert [stream.size for stream in streams] == [MIB // 2, MIB // 2]
    streams[0].close(True)
    assert not (await read(b"2", 0)).header.elsewhere, "nobody has a whole copy yet"
    streams[1].close(True)
    refused = await read(b"3", 0)
    assert refused.header.failure.kind == common.UNAVAILABLE
    assert list(refused.header.elsewhere) == [b"1" * 28]


async def test_a_connection_for_two_workers_passes_the_same_door(tmp_path: Path) -> None:
    source = Place(tmp_path, b"s")
    came: list[tuple[Any, int]] = []
    server = BulkServer(
        "127.0.0.1", 0, "token", source.objects.open_source, lambda hello, fd: came.append((hello, fd)))
    loop = asyncio.get_running_loop()
    hello = raylet_pb2.ChannelHello(target_worker_id=b"w" * 28)
    with contextlib.suppress(ConnectionError):  # or it is refused only at the first use
        stranger = socket.socket(fileno=await bulk.connect_workers(
            loop, ("127.0.0.1", server.port), "another token", hello))
        with stranger:
            assert await loop.sock_recv(stranger, 1) == b""
    near = socket.socket(fileno=await bulk.connect_workers(
        loop, ("127.0.0.1", server.port), "token", hello))
    await loop.sock_sendall(near, b"frames")
    await eventually(lambda: came)
    far = socket.socket(fileno=came[0][1])
    assert len(came) == 1 and came[0][0] == hello, "the stranger's has reached no worker"
    assert await loop.sock_recv(far, 100) == b"frames", "and not a byte of them was read"
    far.close()
    near.close()
    server.close()


async def test_a_busy_source_names_those_it_has_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SERVES_PER_OBJECT", 1)
    place = Place(tmp_path, b"s")
    place.put(1, b"x" * MIB)

    async def read(reader: bytes, offset: int = 0) -> Any:
        return await place.objects.open_source(
            raylet_pb2.FetchRequest(object_id=oid(1), reader=reader * 28, offset=offset))

    first = await read(b"1")
    refused = await read(b"2")
    assert refused.header.failure.kind == common.UNAVAILABLE and not refused.header.elsewhere
    rest = await read(b"2", MIB // 2)
    assert rest.size == MIB // 2, "who has begun is served"
    first.close(True)
    refused = await read(b"3")
    assert refused.header.failure.kind == common.UNAVAILABLE
    assert list(refused.header.elsewhere) == [b"1" * 28]
    rest.close(False)
    assert list((await read(b"4")).header.elsewhere) == [b"1" * 28], "it has sent enough copies"
    again = await read(b"4")
    assert again.size == MIB, "who could get it nowhere else is served"
    again.close(True)
    assert place.store.pins(oid(1)) == []


# ---- passing on what has not come to its end here ----


class Slow:
    """A source of which the test says how far its bytes come."""

    def __init__(self, data: bytes, version: bytes = b"v") -> None:
        self.data, self.version = data, version
        self.landing: Landing | None = None
        self.opened, self.stopped = asyncio.Event(), asyncio.Event()
        self.failure: OSError | None = None

    async def fetch(self, node_id: bytes, request: raylet_pb2.FetchRequest, begin: Begin) -> None:
        self.landing = begin(raylet_pb2.Chunk(
            total_size=len(self.data), offset=request.offset, version=self.version))
        self.opened.set()
        await self.stopped.wait()
        if self.failure is not None:
            raise self.failure

    def give(self, start: int, end: int) -> None:
        """These bytes arrive."""
        assert self.landing is not None
        self.landing.view[start:end] = self.data[start:end]
        self.landing.arrived(start, end)

    def stop(self, failure: OSError | None = None) -> None:
        self.failure = failure
        self.stopped.set()


def pulls(place: Place, number: int, size: int) -> None:
    """Somebody at `place` waits for this object."""
    place.node.transfer.pull_requested(0.0, b"w" * 28, worker_pb2.PullRequest(
        request_id=1, object_id=oid(number), locations=[b"z" * 28], size=size))


@pytest.fixture(params=["bulk", "striped", "chunks"])
async def passing(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Place, Place]]:
    """(here, middle): `here` fetches from `middle`."""
    monkeypatch.setattr(bulk, "PART_BYTES", MIB)
    monkeypatch.setattr(objects, "HELD_S", 60.0)
    here, middle = Place(tmp_path, b"a"), Place(tmp_path, b"b")
    wires = Wires(here, middle, "chunks" if request.param == "chunks" else "bulk")
    if request.param == "striped":
        wires.client = BulkReader("token", streams=3)
    yield here, middle
    wires.close()
    here.objects.close()
    middle.objects.close()
    await asyncio.sleep(0)


async def test_what_has_come_is_passed_on_before_the_rest_is_there(passing: tuple[Place, Place]) -> None:
    here, middle = passing
    data = os.urandom(5 * MIB)
    source = Slow(data)
    middle.objects.fetch_port = source.fetch
    pulls(middle, 1, len(data))
    here.objects.start_fetch(StartFetch(oid(1), middle.node.node_id))
    await eventually(lambda: bool(middle.node.serving.readers(oid(1))))
    middle.objects.start_fetch(StartFetch(oid(1), b"z" * 28))
    await source.opened.wait()
    for at in range(0, 4 * MIB, MIB):
        source.give(at, at + MIB)
        await eventually(lambda come=at: here.node.transfer.arrived(oid(1)) > come)
    assert here.store.get(oid(1)) is None is middle.store.get(oid(1)), "nobody takes a part for whole"
    source.give(4 * MIB, 5 * MIB)
    source.stop()
    assert (await here.next())[4] is None and (await middle.next())[4] is None
    assert here.read(oid(1)) == middle.read(oid(1)) == data
    await eventually(lambda: not middle.node.serving.readers(oid(1)))
    assert middle.store.stats()["pinned_bytes"] == 0


async def lose_source_midway(here: Place, middle: Place, data: bytes) -> None:
    """`here` reads from `middle` what that reads from a source that breaks off after a MiB."""
    source = Slow(data)
    middle.objects.fetch_port = source.fetch
    pulls(middle, 1, len(data))
    middle.objects.start_fetch(StartFetch(oid(1), b"z" * 28))
    await source.opened.wait()
    source.give(0, MIB)
    here.objects.start_fetch(StartFetch(oid(1), middle.node.node_id))
    await eventually(lambda: here.node.transfer.arrived(oid(1)) > 0)
    source.stop(ConnectionError("it was unplugged"))


async def test_a_part_whose_source_is_lost_ends_with_those_that_read_it(passing: tuple[Place, Place]) -> None:
    here, middle = passing
    await lose_source_midway(here, middle, os.urandom(3 * MIB))
    assert (await middle.next())[4].kind == common.NODE_DIED
    middle.node.transfer.pulls.clear()
    middle.objects.stop_fetch(StopFetch(oid(1)))
    assert (await here.next())[4].kind == common.NODE_DIED
    assert here.store.get(oid(1)) is None and middle.store.get(oid(1)) is None
    here.objects.stop_fetch(StopFetch(oid(1)))
    await eventually(lambda: not here.store.stats()["used"] and not middle.store.stats()["used"])
    assert middle.store.create_object(oid(1), 100, primary=False) is not None, "there can be another one"


async def test_bytes_of_another_making_are_not_added_to_those_that_came(passing: tuple[Place, Place]) -> None:
    here, middle = passing
    first, second = os.urandom(3 * MIB), os.urandom(3 * MIB)
    await lose_source_midway(here, middle, first)
    await middle.next()
    middle.node.transfer.pulls.clear()
    middle.objects.stop_fetch(StopFetch(oid(1)))
    assert (await here.next())[4].kind == common.NODE_DIED
    middle.put(1, second)
    here.objects.start_fetch(StartFetch(oid(1), middle.node.node_id))
    assert "other bytes" in (await here.next())[4].message
    here.objects.start_fetch(StartFetch(oid(1), middle.node.node_id))
    assert (await here.next())[4] is None and here.read(oid(1)) == second


async def test_who_is_ahead_does_not_wait_for_one_who_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "HELD_S", 0.05)
    place = Place(tmp_path, b"m")
    source = Slow(os.urandom(3 * MIB))
    place.objects.fetch_port = source.fetch

    async def read(offset: int) -> Any:
        return await place.objects.open_source(
            raylet_pb2.FetchRequest(object_id=oid(1), reader=b"r" * 28, offset=offset))

    assert (await read(0)).header.failure.kind == common.NOT_FOUND, "nobody here waits for it either"
    pulls(place, 1, 3 * MIB)
    assert (await read(0)).header.failure.kind == common.UNAVAILABLE, "nothing has come"
    place.objects.start_fetch(StartFetch(oid(1), b"z" * 28))
    await source.opened.wait()
    source.give(0, MIB)
    assert (await read(MIB)).header.failure.kind == common.UNAVAILABLE, "it may wait for us"
    monkeypatch.setattr(objects, "HELD_S", 60.0)
    served = await read(MIB - 1)
    source.give(MIB, 2 * MIB)
    assert served.header.partial and await served.ready(0) == MIB + 1
    served.close(False)
    assert not place.node.serving.readers(oid(1))
    source.stop(ConnectionError("the end"))
    await place.next()
    place.objects.close()
