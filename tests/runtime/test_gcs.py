"""The GCS's shell: what is acknowledged is on disk, one fsync for many, and an end when it cannot."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.link import STREAM, Link
from miniray.runtime import gcs as shell_module
from miniray.runtime.gcs import GcsShell
from miniray.runtime.links import LinkEnd, LinkEvents, StreamEnded
from miniray.runtime.sqlite_storage import SqliteStorage
from miniray.runtime.storage import Change, MemoryStorage, MemoryTables, StorageError
from tests.runtime.test_links import Pipe, pipe, until

A, B = b"a" * 28, b"b" * 28


def put(key: bytes, value: bytes = b"v") -> gcs.ControlRequest:
    return gcs.ControlRequest(kv_put=gcs.KvPut(key=key, value=value, overwrite=True))


def register(node_id: bytes, **fields: Any) -> gcs.NodeMessage:
    return gcs.NodeMessage(register=gcs.NodeRegister(info=pb.NodeInfo(node_id=node_id, **fields)))


class SlowStorage(MemoryStorage):
    """Blocks in `apply` until told, as a disk does."""

    is_blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.batches: list[list[Change]] = []
        self.broken = False

    def apply(self, changes: Iterable[Change]) -> None:
        batch = list(changes)
        self.gate.wait(10)
        if self.broken:
            raise StorageError("no space left on device")
        self.batches.append(batch)
        super().apply(batch)


async def test_a_raylet_in_the_same_process_needs_no_stream() -> None:
    shell = GcsShell.local()
    got: list[str] = []
    link = shell.join(A, LinkEvents(lambda m: got.append(m.WhichOneof("body"))))
    link.send(register(A))
    assert got == [], "never called back inside send"
    await until(lambda: got == ["registered", "view"])
    shell.close()
    link.send(register(A))
    await asyncio.sleep(0.01)
    assert len(got) == 2


def test_the_local_form_loads_no_grpc() -> None:
    program = "import sys, miniray.runtime.gcs; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


async def test_nothing_is_acknowledged_before_it_is_durable() -> None:
    storage = SlowStorage()
    shell = GcsShell.open(storage)
    answer = asyncio.ensure_future(shell.call(put(b"k")))
    read = asyncio.ensure_future(shell.call(gcs.ControlRequest(kv_get=gcs.KvGet(key=b"k"))))
    await asyncio.sleep(0.05)
    assert not answer.done() and not read.done(), "a read must not show what may yet be lost"
    storage.gate.set()
    assert (await answer).kv.added and (await read).kv.value == b"v"
    shell.close()


async def test_many_requests_share_one_batch_while_the_disk_is_busy() -> None:
    storage = SlowStorage()
    shell = GcsShell.open(storage)
    answers = [asyncio.ensure_future(shell.call(put(b"0")))]
    await asyncio.sleep(0.02)
    answers += [asyncio.ensure_future(shell.call(put(b"%d" % n))) for n in range(1, 100)]
    await asyncio.sleep(0.02)
    storage.gate.set()
    await asyncio.gather(*answers)
    kv_rows = [sum(change[0] == "kv" for change in batch) for batch in storage.batches]
    assert sum(kv_rows) == 100 and len(storage.batches) <= 3
    shell.close()


async def test_a_head_that_cannot_write_ends_and_acknowledges_nothing() -> None:
    storage = SlowStorage()
    storage.broken = True
    fatal: list[StorageError] = []
    shell = GcsShell.open(storage, on_fatal=fatal.append)
    answer = asyncio.ensure_future(shell.call(put(b"k")))
    storage.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert "no space left" in str(fatal[0])


async def test_the_old_head_ends_when_another_takes_over() -> None:
    tables = MemoryTables()
    fatal: list[StorageError] = []
    old = GcsShell.open(MemoryStorage(tables), on_fatal=fatal.append)
    await old.call(put(b"k", b"1"))
    new = GcsShell.open(MemoryStorage(tables))
    assert new.head.options.epoch == old.head.options.epoch + 1
    with pytest.raises(asyncio.CancelledError):
        await old.call(put(b"k", b"stale"))
    assert "taken over" in str(fatal[0])
    reply = await new.call(gcs.ControlRequest(kv_get=gcs.KvGet(key=b"k")))
    assert reply.kv.value == b"1"
    new.close()


async def test_an_idle_head_notices_that_another_has_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_module, "CLAIM_CHECK_S", 0.05)
    path = str(tmp_path / "gcs.db")
    fatal: list[StorageError] = []
    GcsShell.open(SqliteStorage(path), on_fatal=fatal.append)
    await asyncio.sleep(0.2)
    assert not fatal
    new = GcsShell.open(SqliteStorage(path))
    await until(lambda: bool(fatal))
    assert "taken over" in str(fatal[0])
    new.close()


async def test_a_restart_on_the_same_file_finds_everything(tmp_path: Path) -> None:
    path = str(tmp_path / "gcs.db")
    first = GcsShell.open(SqliteStorage(path))
    await first.call(put(b"k", b"kept"))
    start = gcs.JobStart(driver=pb.Address(node_id=A, worker_id=B), entrypoint="x.py")
    job = (await first.call(gcs.ControlRequest(job_start=start))).job
    await first.drained()
    first.close()
    second = GcsShell.open(SqliteStorage(path))
    assert (await second.call(gcs.ControlRequest(kv_get=gcs.KvGet(key=b"k")))).kv.value == b"kept"
    again = (await second.call(gcs.ControlRequest(job_start=start))).job
    assert again == job and second.head.cluster_id == first.head.cluster_id
    second.close()


class Raylet:
    """A raylet's end over an in-memory stream."""

    def __init__(self, shell: GcsShell, node_id: bytes) -> None:
        self.shell = shell
        self.node_id = node_id
        self.got: list[gcs.NodeMessage] = []
        self.end = LinkEnd(Link(1, gcs.Packet, STREAM, connected=False), LinkEvents(self.got.append))
        self.tasks: list[asyncio.Task[None]] = []
        self.stream: Pipe

    def connect(self) -> None:
        ours, self.stream = pipe()

        async def run(serving: Any) -> None:
            with pytest.raises(StreamEnded):
                await serving

        self.tasks.append(asyncio.create_task(run(self.shell.serve(self.node_id, ours))))
        self.tasks.append(asyncio.create_task(run(self.end.serve(self.stream))))

    def kinds(self) -> list[str | None]:
        return [m.WhichOneof("body") for m in self.got]


async def test_a_reconnecting_raylet_misses_nothing() -> None:
    shell = GcsShell.local()
    raylet = Raylet(shell, A)
    raylet.connect()
    raylet.end.send(register(A))
    await until(lambda: "registered" in raylet.kinds())
    raylet.stream.cancel()
    await until(lambda: not raylet.end.is_up)
    request = gcs.ControlRequest(request_id=1, sender=pb.Address(node_id=A), kv_get=gcs.KvGet(key=b"k"))
    raylet.end.send(gcs.NodeMessage(request=request))
    raylet.connect()
    await until(lambda: "reply" in raylet.kinds())
    shell.close()


def listen() -> socket.socket:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


async def test_a_node_whose_port_refuses_is_dead_two_seconds_after_its_stream_broke() -> None:
    shell = GcsShell.local()
    alive, gone = listen(), listen()
    raylets = []
    for node_id, server in ((A, alive), (B, gone)):
        raylet = Raylet(shell, node_id)
        raylet.connect()
        raylet.end.send(register(node_id, host="127.0.0.1", port=server.getsockname()[1]))
        raylets.append(raylet)
    await until(lambda: len(shell.head.members.living) == 2)
    gone.close()
    for raylet in raylets:
        raylet.stream.cancel()
    await until(lambda: B in shell.head.members.dead)
    assert A in shell.head.members.living, "its port still answers: it may be a passing fault"
    shell.close()
    alive.close()


async def test_publications_wait_for_a_node_that_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "CONGESTED_BYTES", 100_000)
    shell = GcsShell.local()
    raylet = Raylet(shell, A)
    raylet.connect()
    raylet.end.send(register(A))
    subscribe = gcs.ControlRequest(request_id=1, subscribe=gcs.Subscribe(channel="log"))
    raylet.end.send(gcs.NodeMessage(request=subscribe))
    await until(lambda: "reply" in raylet.kinds())
    raylet.stream.cancel()
    await until(lambda: not raylet.end.is_up)
    publication = gcs.Publication(channel="log", data=b"x" * 1000)
    for _ in range(2000):
        await shell.call(gcs.ControlRequest(publish=gcs.Publish(publication=publication)))
    assert shell._ends[A].link.backlog_bytes < 200_000, "bounded while it is away"
    raylet.connect()
    await until(lambda: raylet.kinds().count("publication") >= 1000)
    last = [m.publication for m in raylet.got if m.WhichOneof("body") == "publication"]
    assert any(p.resync for p in last), "what was dropped is told"
    shell.close()


async def test_a_bug_in_one_message_does_not_stop_the_cluster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shell = GcsShell.local()
    got: list[str] = []
    link = shell.join(A, LinkEvents(lambda m: got.append(m.WhichOneof("body"))))
    broken: Callable[..., None] = lambda *_: {}["bug"]
    monkeypatch.setattr(shell.head.members, "registered", broken)
    link.send(register(A))
    await asyncio.sleep(0.02)
    monkeypatch.undo()
    link.send(register(A))
    await until(lambda: got == ["registered", "view"])
    assert "node_message failed" in caplog.text
    shell.close()
