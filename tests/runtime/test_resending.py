"""Connections between daemons try again every second, however long the network was away."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from miniray.runtime import bulk, resending, rpc, rpc_server
from miniray.runtime.gcs import GcsShell
from miniray.runtime.links import LinkEvents
from miniray.runtime.storage import MemoryStorage, MemoryTables

TOKEN = "secret"
NODE = b"n" * 28


def can_be_told() -> bool:
    with socket.socket() as sock:
        resending.resend_soon(sock)
        try:
            sock.getsockopt(socket.IPPROTO_TCP, resending.TCP_RTO_MAX_MS)
        except OSError:
            return False
        return True


pytestmark = pytest.mark.skipif(not can_be_told(), reason="TCP_RTO_MAX_MS needs Linux 6.15")


def longest_ms(port: int) -> Iterator[int]:
    """Of each connected end in this process of a connection to `port`."""
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            sock = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        with sock:
            try:
                ports = sock.getsockname()[1], sock.getpeername()[1]
            except (OSError, IndexError):
                continue
            if port in ports:
                yield sock.getsockopt(socket.IPPROTO_TCP, resending.TCP_RTO_MAX_MS)


async def test_streams_of_grpc_resend_soon_at_both_ends() -> None:
    shell = GcsShell.open(MemoryStorage(MemoryTables()))
    server = await rpc_server.serve_gcs(shell, "127.0.0.1", 0, TOKEN)
    up = asyncio.Event()
    link = rpc.head_link(
        f"127.0.0.1:{server.port}", TOKEN, NODE, 1, LinkEvents(lambda message: None, on_up=up.set))
    try:
        await asyncio.wait_for(up.wait(), 20)
        found = list(longest_ms(server.port))
        assert len(found) >= 2 and found.count(resending.RESEND_MS) >= 2, found
    finally:
        link.close()
        shell.close()
        await server.stop()


async def test_connections_of_the_data_port_resend_soon_at_both_ends() -> None:
    server = bulk.BulkServer("127.0.0.1", 0, TOKEN, lambda request: pytest.fail("nothing was asked for"),
                             lambda hello, fd: pytest.fail("no worker"))
    loop = asyncio.get_running_loop()
    connection = await bulk.connect(loop, bulk.Address("127.0.0.1", server.port), TOKEN)
    try:
        assert list(longest_ms(server.port)) == [resending.RESEND_MS] * 2
    finally:
        connection.close()
        server.close()
