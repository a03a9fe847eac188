"""The inside of `miniray-head`: the GCS with its storage and its port, until told to stop.

Without a storage of its own choosing a head keeps its tables in the state directory
(`$XDG_STATE_HOME/miniray`), one file per port: a head that has ended, by a signal or by kill -9, and is
started again on its port goes on where it was. Only `miniray stop`, or the end of the process that the
head was started for, says that the cluster is over; then the file goes.

SIGTERM saves and ends; a second one ends at once, and nothing that was acknowledged is lost by that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniray._proto import gcs_pb2
from miniray.runtime import agent, loops, rpc, rpc_server, sessions, state_directory, supervisor
from miniray.runtime.admission import is_loopback
from miniray.runtime.daemon import tell_ready
from miniray.runtime.gcs import GcsShell
from miniray.runtime.head_security import HeadSecurity
from miniray.runtime.host import endpoint
from miniray.runtime.join_string import JoinString
from miniray.runtime.storage import StorageError, open_storage
from miniray.runtime.sweeper import Sweeper

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

    own_file = _own_file(options)
    storage = open_storage(_storage_url(options, own_file))
    shell = GcsShell.open(
        storage, tables_are_kept=options.storage not in ("", ":memory:", "none:"), on_fatal=fatal)
    sweeper = Sweeper()
    shell.on_stream_lost = sweeper.look     # a node of this machine, and all that would clean up after it?
    security = HeadSecurity(shell, storage.load(), options.token, directory)
    try:
        _secure(security, options)
        server = await rpc_server.serve_gcs(
            shell, options.host, options.port, security.access, security=security,
            advertise=options.advertise)
    except (rpc.RpcError, OSError):
        shell.close()
        raise
    try:
        web = await _serve_http(options, shell, security)
    except Exception:
        await server.stop()
        shell.close()
        raise
    _announce(options, directory, server.port, security, web)
    await stopping.wait()
    supervisor.stopping("the head ends")
    sweeper.close()
    security.close()
    if web is not None:
        await web.stop()
    await server.stop()
    shell.close()
    is_over = sessions.is_over(directory) or bool(options.driver_pid)
    if own_file is not None and is_over and not failed:
        beside = own_file.parent.glob(own_file.name + "?*")     # one of them says that there was a database
        for path in (*beside, own_file):
            path.unlink(missing_ok=True)
    return 1 if failed else 0


async def _serve_http(options: HeadOptions, shell: GcsShell, security: HeadSecurity) -> WebServer | None:
    """The HTTP surface where it is asked for; only then is anything of it imported."""
    if options.http_port is None:
        return None
    from miniray.web.server import serve

    async def ask(field: str, message: Any) -> gcs_pb2.ControlReply:
        return await shell.call(gcs_pb2.ControlRequest(**{field: message}))

    tls = None
    if not (options.plain or is_loopback(options.http_host)):
        tls = security.web_context([options.http_host, options.advertise])
    return await serve(
        ask, options.http_host, options.http_port, security.access, origins=options.http_origins, tls=tls)


def _signalled(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(0)  # what is durable stays, and the session directory goes with the janitor
    stopping.set()


def _secure(security: HeadSecurity, options: HeadOptions) -> None:
    """Encrypt what leaves this machine, unless told not to."""
    if options.pki:
        security.use_pki((options.pki[0], options.pki[1], options.pki[2]))
    elif not (options.plain or is_loopback(options.host)):
        security.encrypt()


def _announce(
    options: HeadOptions, directory: str, port: int, security: HeadSecurity, web: WebServer | None
) -> None:
    """The head can be reached: tell this user's processes, and whoever started it."""
    address = endpoint(options.advertise or options.host, port)
    http = ""
    if web is not None:
        scheme = "http" if options.plain or is_loopback(options.http_host) else "https"
        http = f"{scheme}://{endpoint(options.http_host, web.port)}"
    security.publish()
    sessions.publish(directory, "head", address=address, http=http)
    tell_ready(options.ready_fd, {
        "address": address, "pid": os.getpid(), "session_dir": directory, "token": security.access.token,
        "fingerprint": security.fingerprint.hex(), "http": http})
    supervisor.ready(f"the head at {address}")
    if options.ready_fd < 0 and security.fingerprint:
        joining = JoinString(address, security.access.token, security.fingerprint)
        shown = str(joining) if _is_for_people(options) else "STRING (`miniray token show` prints it)"
        sys.stdout.write(f"Join with: miniray-node --join {shown}\n")
        sys.stdout.flush()


def _is_for_people(options: HeadOptions) -> bool:
    """Whether a secret may be printed: not into a journal, nor where all have the token already."""
    return sys.stdout.isatty() or not (options.token or "JOURNAL_STREAM" in os.environ)


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
    try:
        state_directory.make()
    except state_directory.NotOurs as error:
        raise StorageError(str(error)) from None
    except OSError:
        pass  # the storage says what is wrong with it
    return Path(state_directory.place(f"head-{options.port}.sqlite"))


def _storage_url(options: HeadOptions, own_file: Path | None) -> str:
    if own_file is not None:
        return f"sqlite:{own_file}"
    return "none:" if options.storage in ("", ":memory:") else options.storage
