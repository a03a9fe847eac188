"""What somebody without the token can take: no memory by what is sent, no descriptors by connecting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray.runtime import bulk, call_headers, certificates, doorkeeper, rpc, rpc_server, tunnel
from miniray.runtime.access import load_key
from miniray.runtime.gcs import GcsShell
from miniray.runtime.storage import MemoryStorage, MemoryTables
from miniray.web import server as web_server

TOKEN = "secret"
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
STATUS = gcs.ControlRequest(status=gcs.StatusQuery())


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 30
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "not so within 30 s"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def head() -> AsyncIterator[str]:
    shell = GcsShell.open(MemoryStorage(MemoryTables()))
    server = await rpc_server.serve_gcs(shell, "127.0.0.1", 0, TOKEN)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        shell.close()
        await server.stop()


def connected(port: int, host: str = "127.0.0.1", source: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket()
    sock.bind((source, 0))
    sock.connect((host, port))
    sock.setblocking(False)
    return sock


def still_open(socks: list[socket.socket]) -> int:
    """How many the other side has not closed; what came on them is read away."""
    return sum(map(_is_open, socks))


def _is_open(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


# ---- gRPC


async def test_no_message_of_a_stranger_is_read() -> None:
    """Not even the handshake's: what is no message at all is answered by what the metadata say."""
    said = call_headers.of_handshake(gcs.HandshakeRequest(
        protocol_version=rpc.OURS.protocol, python_version=rpc.OURS.python))
    async with head() as address, rpc.grpc.aio.insecure_channel(address) as channel:
        shake = channel.unary_unary(f"/{rpc.GCS}/Handshake")
        answer = await shake(b"\xff" * (8 << 20), metadata=said, timeout=30)
        assert gcs.HandshakeReply.FromString(answer).accepted
        with pytest.raises(rpc.grpc.aio.AioRpcError, match="gzip"):  # a bomb in a few bytes
            await shake(bytes(1 << 20), compression=rpc.grpc.Compression.Gzip, timeout=30)
        with pytest.raises(rpc.grpc.aio.AioRpcError, match="metadata"):
            await shake(b"", metadata=(("miniray-handshake-bin", bytes(1 << 20)),), timeout=30)


async def test_of_too_many_strangers_the_oldest_go_and_who_has_the_token_stays(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorkeeper, "MAX_STRANGERS", 10)
    monkeypatch.setattr(doorkeeper, "LOOK_EVERY_S", 0.05)
    async with head() as address, rpc.grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{rpc.GCS}/Call", request_serializer=gcs.ControlRequest.SerializeToString,
            response_deserializer=gcs.ControlReply.FromString)
        lost: list[Any] = []

        async def working() -> None:
            while True:
                try:
                    await call(STATUS, metadata=[("authorization", f"Bearer {TOKEN}")], timeout=30)
                except rpc.grpc.aio.AioRpcError as error:
                    lost.append(error)
                await asyncio.sleep(0.01)

        work = asyncio.create_task(working())
        await asyncio.sleep(0.1)
        port = int(address.rpartition(":")[2])
        idle = [connected(port, source=f"127.0.0.{1 + number % 5}") for number in range(60)]
        for sock in idle:
            sock.sendall(H2)
        await until(lambda: still_open(idle) <= 10)
        work.cancel()
        assert not lost, lost
        assert still_open(idle[-3:]) == 3, "the newest"
        for sock in idle:
            sock.close()


# ---- the data port


async def test_the_data_port_keeps_few_strangers_of_however_many_addresses(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "GREETING_IN_ALL", 10)
    port = bulk.BulkServer(
        "127.0.0.1", 0, TOKEN, lambda request: pytest.fail("opened"), lambda hello, fd: None)
    try:
        idle = [connected(port.port, source=f"127.0.0.{1 + number % 20}") for number in range(60)]
        await until(lambda: still_open(idle) <= 10)
        assert not any(not greeting for greeting in port._greeting.values())
        sock = await bulk.connect(asyncio.get_running_loop(), bulk.Address("127.0.0.1", port.port), TOKEN)
        for one in (*idle, sock):
            one.close()
    finally:
        port.close()


# ---- ports that the head opens for a node behind it


class Listening:
    """The stream of a node behind the head, as the head sees it."""

    def __init__(self) -> None:
        self.said: list[gcs.TunnelFrame] = []
        self._first = [gcs.TunnelFrame(ports_wanted=1)]

    async def read(self) -> gcs.TunnelFrame:
        return self._first.pop() if self._first else await asyncio.get_running_loop().create_future()

    async def write(self, frame: gcs.TunnelFrame) -> None:
        self.said.append(frame)

    def cancel(self) -> None:
        """Nothing to break."""


async def test_strangers_who_come_through_the_head_cost_few_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node takes whoever comes, to find out who it is: so they are counted also when they were taken."""
    monkeypatch.setattr(tunnel, "MAX_COMING", 10)
    tunnels = tunnel.HeadTunnels("127.0.0.1", "127.0.0.1", lambda host, port: False)
    stream = Listening()
    serving = asyncio.create_task(tunnels.serve(stream))
    try:
        await until(lambda: bool(stream.said))
        (port,) = stream.said[0].ports
        idle = []
        for _ in range(30):
            idle.append(connected(port))
            await asyncio.sleep(0)
            for _reader, writer in tunnels._waiting.values():  # taken
                writer.transport.abort()
            tunnels._waiting.clear()
        await until(lambda: len(stream.said) == 1 + 10 and not still_open(idle))
        for sock in idle:
            sock.close()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


# ---- HTTP


def _web_context() -> ssl.SSLContext:
    authority = certificates.Authority.create()
    key, request = certificates.key_and_request()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_key(context, key + authority.sign(request, "head", 600, ["127.0.0.1"]) + authority.certificate)
    return context


async def _ask(field: str, message: Any) -> gcs.ControlReply:
    return gcs.ControlReply()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
async def test_a_burst_of_connections_to_the_http_port_is_cut(
    monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    """All at once, so that none has ended when the next one comes; half-open handshakes of TLS, too."""
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(web_server, "MAX_HANDSHAKES", 10)
    web = await web_server.serve(_ask, "127.0.0.1", 0, TOKEN, tls=_web_context() if encrypted else None)
    try:
        idle = [connected(web.port) for _ in range(100)]
        for sock in idle:
            sock.sendall(b"\x16\x03\x01\x02\x00" if encrypted else b"GET / HTTP/1.1\r\n")
        await until(lambda: still_open(idle) <= 10)
        client = ssl.create_default_context()
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", web.port, ssl=client if encrypted else None)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert await asyncio.wait_for(reader.readline(), 30) == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        for sock in idle:
            sock.close()
    finally:
        await web.stop()
