"""A TCP proxy between hosts: what passes is late, stands still, or is cut off with a reset.

Run as a program on the host whose addresses it takes: arguments are routes, `LISTEN=TARGET` with
`ADDRESS,PORT` on both sides. Lines on stdin are obeyed at once and answered with `done`: `delay SECONDS`
(each way), `hold` (nothing passes), `pass`, `reset` (every connection ends with RST).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.netns.network import Host

PIECE = 256 * 1024
AHEAD = 64
"""Pieces under way in one direction of one connection."""

Endpoint = tuple[str, int]


class Proxy:
    """A proxy as a process on a host; `routes` leads from an address of it to another host's."""

    def __init__(self, host: Host, routes: dict[Endpoint, Endpoint]) -> None:
        arguments = [f"{a},{p}={to},{q}" for (a, p), (to, q) in routes.items()]
        self._process = subprocess.Popen(
            [*host.enter, sys.executable, "-m", "tests.netns.proxy", *arguments], text=True,
            cwd=Path(__file__).resolve().parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answered()

    def tell(self, order: str) -> None:
        """Give an order; it is in force when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        self._answered()

    def _answered(self) -> None:
        assert self._process.stdout is not None and self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


class _Relay:
    """The inside of the process."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.passing = asyncio.Event()
        self.passing.set()
        self.connections: dict[asyncio.StreamWriter, None] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Endpoint
    ) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*target)
        except OSError:
            _reset(writer)
            return
        self.connections.update({writer: None, far_writer: None})
        try:
            await asyncio.gather(self.pump(reader, far_writer), self.pump(far_reader, writer))
        finally:
            for one in (writer, far_writer):
                self.connections.pop(one, None)
                one.close()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: each piece leaves `delay_s` after it has come."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(AHEAD)

        async def read() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(PIECE)
                except OSError:
                    data = b""
                await under_way.put((loop.time() + self.delay_s, data))

        reading = loop.create_task(read())
        try:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self.passing.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            pass  # it was reset
        finally:
            reading.cancel()

    def obey(self, line: str) -> None:
        order, *rest = line.split()
        if order == "delay":
            self.delay_s = float(rest[0])
        elif order == "hold":
            self.passing.clear()
        elif order == "pass":
            self.passing.set()
        elif order == "reset":
            for writer in list(self.connections):
                _reset(writer)
        else:
            raise ValueError(line)

    async def run(self, routes: Sequence[str]) -> None:
        for route in routes:
            (here, port), (target, target_port) = (side.split(",") for side in route.split("="))
            to = (target, int(target_port))
            await asyncio.start_server(
                lambda reader, writer, to=to: self.accepted(reader, writer, to), here, int(port))
        loop = asyncio.get_running_loop()
        print("done", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            self.obey(line)
            print("done", flush=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(_Relay().run(sys.argv[1:]))
