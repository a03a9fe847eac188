"""Attacks on every port of a cluster, plain on loopback and encrypted, while it goes on working.

Each attack asserts that it got nothing; `working` asserts that tasks ran before, during and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

import miniray as ray
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.cluster_utils import _end
from miniray.runtime import admission, launch, rpc
from miniray.runtime.access import Access
from miniray.runtime.daemon import HeadOptions, NodeOptions
from tests.security.support import Encrypted, until

TOKEN = "t0ken" * 8
ME = b"m" * 28
STATUS = gcs.ControlRequest(status=gcs.StatusQuery())
SHOWN_TO_ALL = {"accepted", "refusal", "protocol_version", "miniray_version"}
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Plain:
    """A head and two nodes on loopback: everybody on this machine can connect."""

    def __init__(self) -> None:
        self.host, self.token = "127.0.0.1", TOKEN
        self.head = launch.start_daemon("head", HeadOptions(
            port=0, token=TOKEN, storage=":memory:", driver_pid=os.getpid()))
        self.address: str = self.head["address"]
        self.nodes: list[dict[str, Any]] = []

    def add_node(self, **options: Any) -> None:
        self.nodes.append(launch.start_daemon("node", NodeOptions(
            gcs_address=self.address, token=TOKEN, num_cpus=1, object_store_memory=150 << 20,
            driver_pid=os.getpid(), **options)))

    def close(self) -> None:
        for node in (*self.nodes, self.head):
            _end(node["pid"], graceful=True)


class Cluster:
    """One of either kind, and what an attacker knows of it."""

    def __init__(self, made: Any, access: Access) -> None:
        self.made = made
        self.access = access
        """What a node of the cluster has."""
        self.node = asyncio.run(rpc.call_head(made.address, access, STATUS)).status.nodes[0]
        head = int(made.address.rpartition(":")[2])
        self.ports = {"head": head, "raylet": self.node.port, "data": self.node.data_port}

    def connect(self, name: str) -> socket.socket:
        sock = socket.create_connection((self.made.host, self.ports[name]), 30)
        sock.settimeout(60)
        return sock

    def daemons(self) -> list[psutil.Process]:
        return [psutil.Process(one["pid"]) for one in (self.made.head, *self.made.nodes)]


@pytest.fixture(scope="module", params=[pytest.param("plain", marks=pytest.mark.slow), "encrypted"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made: Any = Plain() if request.param == "plain" else Encrypted(token=TOKEN)
    try:
        made.add_node()
        made.add_node(resources={"far": 1})
        ray.init(made.address)
        fingerprint = bytes.fromhex(made.head["fingerprint"])
        access = asyncio.run(admission.join(admission.Terms(made.address, TOKEN, fingerprint), ME))
        yield Cluster(made, access)
    finally:
        ray.shutdown()
        made.close()


@pytest.fixture
def working(cluster: Cluster) -> Iterator[None]:
    """Calls to an actor of another node, and tasks, all the while."""

    @ray.remote(resources={"far": 0.01}, num_cpus=0)
    class Far:
        def add(self, a: int) -> int:
            return a + 1

    @ray.remote(num_cpus=0.1)
    def task(a: int) -> int:
        return a * 2

    far = Far.remote()
    rounds: list[int] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                n = len(rounds)
                assert ray.get([far.add.remote(n), task.remote(n)], timeout=60) == [n + 1, n * 2]
                rounds.append(n)
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        until(lambda: rounds or failures, 60)
        before = len(rounds)
        yield
        until(lambda: len(rounds) > before + 5 or failures, 60)
    finally:
        done.set()
        worker.join()
        ray.kill(far)
    assert not failures, failures[0]
    for process in cluster.daemons():
        assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def methods() -> list[tuple[str, str]]:
    """(port, full name) of every method of every service."""
    found = []
    for port, module in (("head", gcs), ("raylet", raylet)):
        for service in module.DESCRIPTOR.services_by_name.values():
            found += [(port, f"/{service.full_name}/{method.name}") for method in service.methods]
    return found


def test_there_are_methods_to_try() -> None:
    names = [name for _, name in methods()]
    assert "/miniray.v1.Gcs/RotateToken" in names and "/miniray.v1.Raylet/Fetch" in names and len(names) >= 7


async def attempt(cluster: Cluster, port: str, method: str, metadata: Any) -> Any:
    """The status of a call with an empty message, or the first bytes of its answer."""
    address = f"{cluster.made.host}:{cluster.ports[port]}"
    name = rpc.HEAD_NAME if port == "head" else rpc.node_name(cluster.node.node_id)
    async with rpc._channel(address, cluster.access, name) as channel:
        try:
            return await channel.unary_unary(method)(b"", metadata=metadata, timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code()


TOKENS = [None, "", "wrong", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x",
          f"bearer {TOKEN}", TOKEN, f"Basic {TOKEN}", f"Bearer  {TOKEN}"]  # fmt: skip


@pytest.mark.parametrize(("port", "method"), methods(), ids=lambda value: value.rpartition("/")[2])
def test_every_method_wants_the_token(cluster: Cluster, port: str, method: str) -> None:
    async def all_of_them() -> list[Any]:
        found = []
        for token in TOKENS:
            metadata = [("miniray-node", ME.hex())]
            if token is not None:
                metadata.append(("authorization", token))
            found.append(await attempt(cluster, port, method, metadata))
        return found

    for answer in asyncio.run(all_of_them()):
        if method.endswith("/Handshake"):
            shown = gcs.HandshakeReply.FromString(answer)
            assert {field.name for field, _ in shown.ListFields()} <= SHOWN_TO_ALL
        else:
            assert answer is grpc.StatusCode.UNAUTHENTICATED


def test_a_method_that_is_not_there_says_nothing_else(cluster: Cluster) -> None:
    answer = asyncio.run(attempt(cluster, "head", "/miniray.v1.Gcs/Shell", []))
    assert answer is grpc.StatusCode.UNIMPLEMENTED


def test_a_captured_greeting_of_the_data_port_cannot_be_replayed(cluster: Cluster) -> None:
    """Everything that a node sends, taken down by somebody in between and sent once more."""
    captured = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as between:

        def relay() -> None:
            near, _ = between.accept()
            far = cluster.connect("data")
            with near, far:
                near.settimeout(60)

                def back() -> None:
                    while data := far.recv(65536):
                        near.sendall(data)

                returning = threading.Thread(target=back)
                returning.start()
                while data := near.recv(65536):
                    captured.extend(data)
                    far.sendall(data)
                far.shutdown(socket.SHUT_WR)
                returning.join()

        thread = threading.Thread(target=relay)
        thread.start()
        headers: list[raylet.Chunk] = []

        async def fetch() -> None:
            from miniray.runtime import bulk
            from miniray.runtime.landing import Landing

            def begin(header: raylet.Chunk) -> Landing:
                headers.append(header)
                return Landing(memoryview(bytearray()))

            reader = bulk.BulkReader(cluster.access)
            place = bulk.Address("127.0.0.1", between.getsockname()[1], rpc.node_name(cluster.node.node_id))
            await reader.fetch(place, raylet.FetchRequest(object_id=b"o" * 28, reader=ME), begin)
            reader.close()

        asyncio.run(fetch())
        thread.join(60)
    assert headers, "the true one was answered"
    with cluster.connect("data") as sock:
        answer = bytearray()
        with contextlib.suppress(OSError):  # it may be turned away before it has said everything
            sock.sendall(captured)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                answer += data
    assert headers[0].failure.message.encode() not in answer
    if cluster.access.identity is None:
        assert len(answer) <= 32, "its challenge, and no more"


@pytest.mark.slow
@pytest.mark.usefixtures("working")
def test_a_thousand_idle_connections_keep_nobody_out(cluster: Cluster) -> None:
    idle = [cluster.connect(name) for name in ("head", "raylet", "data") for _ in range(334)]
    try:
        assert asyncio.run(rpc.call_head(cluster.made.address, cluster.access, STATUS)).status.nodes
        value = ray.put(os.urandom(2_000_000))

        @ray.remote(resources={"far": 0.01}, num_cpus=0)
        def size(data: bytes) -> int:
            return len(data)

        assert ray.get(size.remote(value), timeout=60) == 2_000_000, "over the data port"
        for sock in idle:   # nobody who says nothing stays
            sock.settimeout(100)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.slow
@pytest.mark.usefixtures("working")
def test_a_slow_greeting_is_cut_off(cluster: Cluster) -> None:
    """A byte a second, each of which might have been the beginning of something."""
    with ThreadPoolExecutor(3) as threads:
        ended = threads.map(lambda name: greet_slowly(cluster, name), ("head", "raylet", "data"))
        assert list(ended) == ["closed"] * 3


def greet_slowly(cluster: Cluster, name: str) -> str:
    """How it ended."""
    with cluster.connect(name) as sock:
        sock.settimeout(1.0)
        began = b"\x16\x03\x01\x02\x00" if cluster.access.identity is not None else b"PRI * HTTP/2.0\r\n"
        deadline = time.monotonic() + 100
        for byte in began + bytes(200):
            try:
                sock.sendall(bytes((byte,)))
                while sock.recv(4096):
                    pass
                return "closed"
            except TimeoutError:
                if time.monotonic() > deadline:
                    break
            except OSError:
                return "closed"
    return "still open"


def garbage(rng: random.Random) -> bytes:
    """Noise, or something that begins as it should."""
    kind = rng.randrange(6)
    noise = rng.randbytes(rng.randrange(1, 400))
    if kind == 0:
        return noise
    if kind == 1:
        return struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1, len(noise)])) + noise
    if kind == 2:
        return H2 + noise
    if kind == 3:  # an HTTP/2 frame of some type, with a length that is a lie
        return H2 + bytes(9) + struct.pack(">I", rng.randrange(2**24))[1:] + noise
    if kind == 4:
        return b"\x16\x03\x01" + struct.pack(">H", rng.randrange(2**16)) + noise
    return b"GET / HTTP/1.1\r\n" + noise


@pytest.mark.slow
@pytest.mark.usefixtures("working")
def test_ten_thousand_malformed_messages_change_nothing(cluster: Cluster) -> None:
    rng = random.Random(7)
    for number in range(10_000):
        name = ("head", "raylet", "data")[number % 3]
        with cluster.connect(name) as sock:
            try:
                sock.sendall(garbage(rng))
            except OSError:
                pass


@pytest.mark.usefixtures("working")
def test_noise_on_the_unix_socket_closes_that_client_and_nothing_else(cluster: Cluster) -> None:
    (path,) = {one["socket"] for one in cluster.made.nodes[:1]}
    rng = random.Random(8)
    for _ in range(1_000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            try:
                sock.sendall(garbage(rng))
            except OSError:
                pass
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(path)
        sock.sendall(struct.pack("<I", 300 << 20))
        assert sock.recv(1) == b"", "a first message of 300 MB is not waited for"


@pytest.mark.usefixtures("working")
def test_ten_gigabytes_are_not_taken(cluster: Cluster) -> None:
    """Without the token nothing is read; with it a message has a limit."""
    before = max(process.memory_info().rss for process in cluster.daemons())
    sent = [0]

    async def upload(token: str) -> Any:
        def pieces() -> Iterator[bytes]:
            piece = bytes(4 << 20)
            while sent[0] < 10 << 30:
                sent[0] += len(piece)
                yield piece

        async with rpc._channel(cluster.made.address, cluster.access) as channel:
            call = channel.stream_stream(f"/{rpc.GCS}/Call")
            try:
                async for _ in call(pieces(), metadata=[("authorization", f"Bearer {token}")], timeout=60):
                    pass
            except grpc.aio.AioRpcError as error:
                return error.code()

    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL)  # the client was still writing
    assert asyncio.run(upload("wrong")) in refused
    assert sent[0] < 1 << 30
    sent[0] = 0
    assert asyncio.run(upload(TOKEN)) is not None, "one message that is none, and then the end"
    assert sent[0] < 1 << 30
    after = max(process.memory_info().rss for process in cluster.daemons())
    assert after - before < 300 << 20


def test_the_logs_of_the_daemons_stay_small(cluster: Cluster) -> None:
    """Last: nobody can fill a disk by being refused."""
    sizes = [path.stat().st_size for path in Path(os.environ["MINIRAY_TMPDIR"]).glob("miniray-*/logs/**/*")]
    assert sum(sizes) < 1 << 20
