"""The HTTP server's limits: what is too long, too slow or too many costs the one who sends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray.web import server

TOKEN = "t" * 64
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
STATUS = f"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
WITHIN_S = 30.0


async def ask(field: str, message: Any) -> gcs.ControlReply:
    return gcs.ControlReply()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[int]:
    web = await server.serve(ask, "127.0.0.1", 0, TOKEN)
    try:
        yield web.port
    finally:
        await web.stop()


async def said(port: int, data: bytes) -> bytes:
    """Everything that the server answers to `data`, until it closes or has answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await until_end(reader)
    finally:
        writer.close()


async def until_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), WITHIN_S)
    except ConnectionError:
        return b""


async def healthy(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(HEALTH)
        return (await asyncio.wait_for(reader.readline(), WITHIN_S)) == b"HTTP/1.1 200 OK\r\n"
    finally:
        writer.close()


async def test_an_endless_head_is_cut_off() -> None:
    async with serving() as port:
        assert await said(port, b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 20)) == b""
        assert await said(port, b"GET /" + b"x" * (1 << 20)) == b""
        assert await said(port, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000) == b""
        assert await healthy(port)


async def test_a_request_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.3)
    async with serving() as port:
        for half in (b"", b"GET", HEALTH[:-2], HEALTH + HEALTH[:-2]):
            await said(port, half)  # returns: the server closes
        assert await healthy(port)


async def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_S", 0.2)

    async def never(field: str, message: Any) -> gcs.ControlReply:
        return await asyncio.get_running_loop().create_future()

    web = await server.serve(never, "127.0.0.1", 0, TOKEN)
    try:
        assert await said(web.port, STATUS) == b""
    finally:
        await web.stop()


async def test_a_body_is_refused_before_it_is_read() -> None:
    async with serving() as port:
        head = b"POST /api/v1/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n"
        assert (await said(port, head)).startswith(b"HTTP/1.1 405")
        head = head.replace(b"POST", b"GET")
        assert (await said(port, head)).startswith(b"HTTP/1.1 413")
        assert b"200" not in await said(port, head + b"x" * 10_000_000)


async def test_idle_connections_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 8)
    async with serving() as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        for _ in range(10):
            assert await healthy(port)
        closed = [reader for reader, _ in idle if reader.at_eof() or reader.exception()]
        assert len(closed) >= 32 - 8
        for _, writer in idle:
            writer.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\0" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET  HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://attacker.example/healthz HTTP/1.1\r\nHost: attacker.example\r\n\r\n",
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)  # fmt: skip
async def test_nonsense_is_refused_and_the_connection_closed(nonsense: bytes) -> None:
    async with serving() as port:
        answer = await said(port, nonsense)
        assert answer == b"" or answer.split()[1].startswith(b"4"), answer
        assert await healthy(port)


async def test_a_second_request_behind_a_refused_one_is_not_read() -> None:
    async with serving() as port:
        refused = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = await said(port, refused + STATUS)
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.startswith(b"HTTP/1.1 401")


async def test_a_taken_port_names_its_holder() -> None:
    async with serving() as port:
        with pytest.raises(server.rpc.PortInUse, match=f"HTTP port {port} is taken by .* --http-port"):
            await server.serve(ask, "127.0.0.1", port, TOKEN)


async def test_dripping_bytes_do_not_win_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.3)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.3)
    async with serving() as port:
        for begun in (b"GET / HTTP/1.1\r\nX: ", HEALTH + b"GET / HTTP/1.1\r\nX: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            ending = asyncio.ensure_future(until_end(reader))
            while not ending.done():
                writer.write(b"x")
                await asyncio.sleep(0.05)
            writer.close()
