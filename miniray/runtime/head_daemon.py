"""The inside of `miniray-head`: the GCS with its storage and its port, until told to stop.

Without a storage of its own choosing a head keeps its tables in the state directory
(`$XDG_STATE_HOME/miniray`), one file per port: a head that has ended, by a signal or by kill -9, and is
started again on its port goes on where it was. Only `miniray stop`, or the end of the process that the
head was started for, says that the cluster is over; then the file goes.

SIGTERM saves and ends; a second one ends at once, and nothing that was acknowledged is lost by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniray._proto import gcs_pb2
from miniray.runtime import agent, loops, rpc, sessions, supervisor
from miniray.runtime.daemon import tell_ready
from miniray.runtime.gcs import GcsShell
from miniray.runtime.storage import StorageError, open_storage

if TYPE_CHECKING:
    from miniray.runtime.daemon import HeadOptions
    from miniray.web.server import WebServer

log = logging.getLogger(__name__)


def serve_head(options: HeadOptions, directory: str) -> int:
    """Run the GCS until it ends. Returns the exit status; StorageError, RpcError before it is up."""
    return loops.run(_serve(options, directory))


async def _serve(options: HeadOptions, directory: str) -> int:
    stopping = asyncio.Event()
    failed: list[StorageError] = []
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled, stopping)
    _end_with(options.driver_pid, stopping)

    def fatal(error: StorageError) -> None:
        failed.append(error)
        stopping.set()

    token = options.token or os.urandom(32).hex()
    own_file = _own_file(options)
    shell = GcsShell.open(open_storage(_storage_url(options, own_file)), on_fatal=fatal)
    try:
        server = await rpc.serve_gcs(shell, options.host, options.port, token)
    except rpc.RpcError:
        shell.close()
        raise
    try:
        web = await _serve_http(options, shell, token)
    except Exception:
        await server.stop()
        shell.close()
        raise
    address = f"{options.host}:{server.port}"
    http = f"http://{_in_url(options.http_host)}:{web.port}" if web is not None else ""
    sessions.write_private(os.path.join(directory, "token"), token)
    sessions.publish(directory, "head", address=address, http=http)
    ready = {"address": address, "pid": os.getpid(), "session_dir": directory, "http": http}
    tell_ready(options.ready_fd, ready)
    supervisor.ready(f"the head at {address}")
    await stopping.wait()
    supervisor.stopping("the head ends")
    if web is not None:
        await web.stop()
    await server.stop()
    shell.close()
    is_over = sessions.is_over(directory) or bool(options.driver_pid)
    if own_file is not None and is_over and not failed:
        for path in own_file.parent.glob(own_file.name + "*"):  # SQLite keeps two more beside it
            path.unlink(missing_ok=True)
    return 1 if failed else 0


async def _serve_http(options: HeadOptions, shell: GcsShell, token: str) -> WebServer | None:
    """The HTTP surface where it is asked for; only then is anything of it imported."""
    if options.http_port is None:
        return None
    from miniray.web.server import serve

    async def ask(field: str, message: Any) -> gcs_pb2.ControlReply:
        return await shell.call(gcs_pb2.ControlRequest(**{field: message}))

    return await serve(ask, options.http_host, options.http_port, token, origins=options.http_origins)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _signalled(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(0)  # what is durable stays, and the session directory goes with the janitor
    stopping.set()


def _end_with(pid: int, stopping: asyncio.Event) -> None:
    """Stop when process `pid` ends; 0: nobody's end matters."""
    if not pid:
        return
    fd = agent.pidfd(pid)
    if fd is None:
        stopping.set()
    else:
        asyncio.get_running_loop().add_reader(fd, stopping.set)


def _own_file(options: HeadOptions) -> Path | None:
    """The default storage, None when another was chosen or the port is any."""
    if options.storage or not options.port:
        return None
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "miniray"
    with contextlib.suppress(OSError):
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return base / f"head-{options.port}.sqlite"


def _storage_url(options: HeadOptions, own_file: Path | None) -> str:
    if own_file is not None:
        return f"sqlite:{own_file}"
    return "none:" if options.storage in ("", ":memory:") else options.storage
