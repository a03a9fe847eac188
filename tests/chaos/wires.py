"""What happens to connections: a proxy before the head, and breaking TCP connections of any process.

The proxy can be cut (connections break, new ones break at once) or silent (bytes wait, as when a
firewall swallows packets); with it a head may move to another port while its address stays.
`break_connections` takes the descriptors of established connections out of a process
(pidfd_getfd, which needs the right to trace it) and shuts them down, as a broken wire does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import threading

import psutil

_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


class Proxy:
    """Forwards TCP connections to 127.0.0.1:`target`, which may change; runs in a thread of its own."""

    def __init__(self) -> None:
        self.target = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._is_cut = False
        self._writers: dict[asyncio.StreamWriter, None] = {}
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def cut(self) -> None:
        """Break every connection, and each new one, until `mend`."""
        self._do(self._cut)

    def silence(self) -> None:
        """Hold back all bytes until `mend`."""
        self._do(self._open.clear)

    def mend(self) -> None:
        """Forward again."""
        self._do(self._mend)

    def close(self) -> None:
        """End the thread with all connections."""
        self._do(self._loop.stop)
        self._thread.join()

    # ---- the proxy's thread

    def _do(self, what: object) -> None:
        self._loop.call_soon_threadsafe(what)  # type: ignore[arg-type]

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._open.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        self._cut()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._is_cut = False
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[writer] = None
        try:
            if not self._is_cut:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            del self._writers[writer]
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers[far_writer] = None
        ways = [asyncio.ensure_future(self._forward(reader, far_writer)),
                asyncio.ensure_future(self._forward(far_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            del self._writers[far_writer]
            far_writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                writer.write(data)
                await writer.drain()


def break_connections(pid: int, share: float, draw: float) -> int:
    """Break that share of a process's TCP connections (at least one). Returns how many; 0: none, or not
    allowed here."""
    try:
        connections = [c for c in psutil.Process(pid).net_connections("tcp")
                       if c.status == psutil.CONN_ESTABLISHED and c.fd >= 0]
    except psutil.Error:
        return 0
    connections.sort(key=lambda c: c.fd)
    count = min(len(connections), max(1, int(share * len(connections))))
    first = int(draw * len(connections)) if connections else 0
    return sum(_shut(pid, connections[(first + n) % len(connections)].fd) for n in range(count))


def _shut(pid: int, fd: int) -> bool:
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        copy = _libc.syscall(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    if copy < 0:
        return False
    try:
        connection = socket.socket(fileno=copy)
    except OSError:         # the number stands for something else by now
        os.close(copy)
        return False
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
        return True
    return False
