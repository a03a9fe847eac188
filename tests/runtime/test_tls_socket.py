"""TLS over memory: all bytes arrive, ends are told apart, and what follows the end of TLS is left alone."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from miniray.runtime import certificates, tls_socket
from miniray.runtime.access import Identity
from miniray.runtime.certificates import Authority
from miniray.runtime.tls_socket import TlsSocket

WAIT_S = 30.0


def identity(authority: Authority) -> Identity:
    key, request = certificates.key_and_request()
    return Identity(authority.certificate, authority.sign(request, "head.miniray", 600), key)


class Pair:
    """A client and a server that have shaken hands, and what is below them."""

    def __init__(self, trusted: Authority, own: Authority) -> None:
        self._clients, self._servers = identity(trusted), identity(own)
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.loop = asyncio.get_running_loop()

    async def begin(self) -> tuple[TlsSocket, TlsSocket]:
        one, other = await asyncio.gather(
            tls_socket.begin(self.loop, self.near, self._clients.context(server=False), "head.miniray"),
            tls_socket.begin(self.loop, self.far, self._servers.context(server=True), None))
        return one, other


def with_pair(body: Callable[[Pair, TlsSocket, TlsSocket], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        authority = Authority.create()
        pair = Pair(authority, authority)
        near, far = await pair.begin()
        try:
            await body(pair, near, far)
        finally:
            near.close()
            far.close()

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_large_amounts_arrive_whole_from_thread_to_thread_between_messages_on_the_loop() -> None:
    data = os.urandom(3_000_001)

    async def body(pair: Pair, near: TlsSocket, far: TlsSocket) -> None:
        for _ in range(2):
            await tls_socket.send_all(pair.loop, near, b"please")
            assert await tls_socket.receive(pair.loop, far, 100) == b"please"
            near.settimeout(WAIT_S)
            far.settimeout(WAIT_S)
            sender = threading.Thread(target=far.sendall, args=(memoryview(data),))
            sender.start()
            found, at = memoryview(bytearray(len(data))), 0
            while at < len(data):
                count = await asyncio.to_thread(near.recv_into, found[at : at + 1_000_000])
                assert 0 < count <= 1_000_000
                at += count
            sender.join(WAIT_S)
            assert found == data
            near.setblocking(False)
            far.setblocking(False)

    with_pair(body)


def test_what_follows_the_end_of_tls_is_left_for_whoever_is_next() -> None:
    async def body(pair: Pair, near: TlsSocket, far: TlsSocket) -> None:
        async def hand_on() -> None:
            await tls_socket.end(pair.loop, near)
            await tls_socket.send_all(pair.loop, near, b"bare")

        handing = asyncio.create_task(hand_on())
        await asyncio.sleep(0)  # its close_notify is there before ours
        await tls_socket.end(pair.loop, far)
        await handing
        assert await pair.loop.sock_recv(pair.far, 100) == b"bare"
        await tls_socket.send_all(pair.loop, far, b"and back")
        assert await tls_socket.receive(pair.loop, near, 100) == b"and back"

    with_pair(body)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_connection_that_ends_gives_nothing(in_thread: bool) -> None:
    async def body(pair: Pair, near: TlsSocket, far: TlsSocket) -> None:
        pair.far.shutdown(socket.SHUT_RDWR)
        if in_thread:
            near.settimeout(WAIT_S)
            assert await asyncio.to_thread(near.recv_into, memoryview(bytearray(10))) == 0
        else:
            assert await tls_socket.receive(pair.loop, near, 100) == b""
            with pytest.raises(OSError):
                await tls_socket.end(pair.loop, near)

    with_pair(body)


def test_a_stranger_is_refused_at_both_ends() -> None:
    async def run() -> None:
        pair = Pair(Authority.create(), Authority.create())
        found = await asyncio.gather(
            tls_socket.begin(pair.loop, pair.near, pair._clients.context(server=False), "head.miniray"),
            tls_socket.begin(pair.loop, pair.far, pair._servers.context(server=True), None),
            return_exceptions=True)
        assert isinstance(found[0], ssl.SSLCertVerificationError)
        assert isinstance(found[1], ssl.SSLError), "it is told why"
        assert pair.near.fileno() == pair.far.fileno() == -1

    asyncio.run(asyncio.wait_for(run(), WAIT_S))
