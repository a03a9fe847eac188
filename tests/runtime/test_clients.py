"""The raylet's socket for drivers and workers: which message a descriptor belongs to."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from pathlib import Path

import pytest

from miniray._proto import common_pb2
from miniray._proto.worker_pb2 import ChannelOpen, Register, ToRaylet, ToWorker
from miniray.runtime import versions
from miniray.runtime.clients import Client, ClientEvents, ClientServer


def framed(message: ToRaylet) -> bytes:
    body = message.SerializeToString()
    return struct.pack("<I", len(body)) + body


async def until_read(seen: list[tuple[bytes, bool]], count: int) -> None:
    for _ in range(1000):
        if len(seen) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(seen)} of {count} messages were read")


async def test_a_descriptor_goes_to_the_ring_it_was_sent_with(tmp_path: Path) -> None:
    """Read in one go with a request before it that has none."""
    seen: list[tuple[bytes, bool]] = []

    def heard(client: Client, message: ToRaylet, fd: int | None) -> None:
        seen.append((message.channel_open.target_worker_id, fd is not None))
        if fd is not None:
            os.close(fd)

    greeted: list[Client] = []
    server = ClientServer(str(tmp_path / "raylet.sock"), "secret", ClientEvents(
        lambda client, register: greeted.append(client), heard, lambda client: None,
        lambda client, slow: None))  # fmt: skip
    near = socket.socket(socket.AF_UNIX)
    try:
        near.connect(str(tmp_path / "raylet.sock"))
        near.sendall(framed(ToRaylet(register=Register(token="secret"))))
        far = ToRaylet(channel_open=ChannelOpen(target_node_id=b"n", target_worker_id=b"far"))
        ring = ToRaylet(channel_open=ChannelOpen(target_worker_id=b"ring", capacity=4096))
        near.sendall(framed(far))
        socket.send_fds(near, [framed(ring)], [near.fileno()])
        await until_read(seen, 2)
        assert seen == [(b"far", False), (b"ring", True)]
    finally:
        near.close()
        server.close()


@pytest.mark.parametrize(("theirs", "kind", "named"), [
    (Register(token="secret", protocol_version=99), common_pb2.INVALID_ARGUMENT,
     f"speaks protocol {versions.CLIENTS}, .* speaks protocol 99"),
    (Register(token="secret", python_version="2.7"), common_pb2.INVALID_ARGUMENT,
     r"runs Python 3\.\d+, this process runs Python 2.7"),
    (Register(token="wrong", protocol_version=99), common_pb2.UNAUTHENTICATED, "it showed another token"),
    (Register(), common_pb2.UNAUTHENTICATED, "it showed no token"),
])
async def test_who_cannot_stay_is_told_why_and_let_go(
    tmp_path: Path, theirs: Register, kind: common_pb2.ErrorKind, named: str
) -> None:
    greeted: list[Client] = []
    server = ClientServer(str(tmp_path / "raylet.sock"), "secret", ClientEvents(
        lambda client, register: greeted.append(client), lambda client, message, fd: None,
        greeted.append, lambda client, slow: None))  # fmt: skip
    try:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "raylet.sock"))
        writer.write(framed(ToRaylet(register=theirs)))
        data = await asyncio.wait_for(reader.read(), 30)
        failure = ToWorker.FromString(data[4:]).registered.failure
        assert failure.kind == kind and re.search(named, failure.message)
        assert "secret" not in failure.message
        assert not greeted
        writer.close()
    finally:
        server.close()
