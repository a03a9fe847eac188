"""The daemons: `local` (GCS and raylet in one process, for `init()`), `head` and `node`.

::

    driver ─spawn─▶ launcher ─fork─▶ daemon (own session, child of init) ─fork─▶ guardian, zygote ─▶ workers
                                       │ writes one JSON line to the ready descriptor
                                       └ ends: driver's pidfd │ SIGTERM │ StopNode

The zygote is forked when everything is imported that both need, and before gRPC: it must stay small
and single-threaded. A daemon never unpickles: an audit hook ends it at the attempt.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from miniray.runtime import session_lock

DRAIN_S = 30.0


@dataclass
class NodeOptions:
    """What a node offers and where it is reached; None means: look."""

    host: str = "127.0.0.1"
    """Address to listen on, and to be reached at by other raylets."""
    port: int = 0
    """TCP port for other raylets' streams; 0: any."""
    data_port: int = 0
    """TCP port for object bytes; 0: any."""
    advertise: str = ""
    """Address to be reached at, where that is not `host`."""
    gcs_address: str = ""
    """HOST:PORT of the GCS; "" for a local session, which holds its own."""
    token: str = ""
    fingerprint: str = ""
    """SHA-256 (hexadecimal) of the cluster's CA, if it is known."""
    plain: bool = False
    """The cluster is not encrypted, though it is not on loopback alone."""
    pki: list[str] = field(default_factory=list)
    """Files of an own PKI: CA, certificate, key; none: the cluster's certificates."""
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    object_store_memory: int | None = None
    node_name: str = ""
    is_head: bool = False
    """This node runs on the head's machine."""
    session_dir: str = ""
    """Where it is made; "": at a place of its own."""
    spill_dir: str = ""
    preload: list[str] = field(default_factory=list)
    ready_fd: int = -1
    """Gets one JSON line when the daemon can be reached, or {"error": …}; -1: nobody waits."""
    driver_pid: int = 0
    """The daemon ends with this process; 0: with nobody."""
    behind_head: bool = False
    """A driver's own node: it takes no work, and reaches, and is reached through, the head's port alone."""


@dataclass
class HeadOptions:
    """Where the GCS listens and keeps its tables."""

    host: str = "127.0.0.1"
    advertise: str = ""
    """Address to be reached at, where that is not `host`."""
    port: int = 6379
    token: str = ""
    plain: bool = False
    """Listen beyond loopback without encryption."""
    pki: list[str] = field(default_factory=list)
    storage: str = ""
    """URL or path; "" for the default in the state directory."""
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    """Where health, metrics and the JSON API are served; 0: any port, None: nowhere."""
    http_origins: list[str] = field(default_factory=list)
    """Origins under which a proxy shows them ("https://ray.lan")."""
    session_dir: str = ""
    ready_fd: int = -1
    driver_pid: int = 0
    """The daemon ends with this process; 0: with nobody."""


def main(argv: list[str]) -> NoReturn:
    """What `boot` calls: `boot.py KIND OPTIONS_FD READY_FD`. Detaches, then runs the daemon.

    KIND is local, node or head. One line of JSON on OPTIONS_FD has the fields of `NodeOptions` or
    `HeadOptions`; its end without a line means that nobody wants the daemon any more.
    """
    if argv[1] == "guardian":   # that of a raylet that has ended
        from miniray.runtime import guardian

        guardian.main(argv[2:])
    kind, options_fd, ready_fd = argv[1], int(argv[2]), int(argv[3])
    keep_only(options_fd, ready_fd)
    if os.fork():
        os._exit(0)
    os.setsid()
    import_ahead(kind)
    values = read_options(options_fd)
    if values is None:
        os._exit(0)
    values["ready_fd"] = ready_fd
    if kind == "head":
        code = run_head(HeadOptions(**values))
    elif kind == "local":
        code = run_local(NodeOptions(**values))
    else:
        code = run_node(NodeOptions(**values))
    os._exit(code)


def keep_only(*descriptors: int) -> None:
    """Close everything that this process has inherited but `descriptors` and 0, 1, 2."""
    start = 3
    for descriptor in sorted(descriptors):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def import_ahead(kind: str) -> None:
    """Import what daemon and zygote have in common, while the launching process makes up the options.

    None of it starts a thread, and gRPC stays out: the zygote is forked after this.
    """
    import asyncio  # noqa: F401

    if kind != "head":
        from miniray._proto import worker_pb2  # noqa: F401
        from miniray.core import events  # noqa: F401
        from miniray.runtime import agent, sessions  # noqa: F401


def read_options(fd: int) -> dict[str, Any] | None:
    """The fields of the options; None when the other side closed the pipe without any."""
    with os.fdopen(fd, "rb") as file:
        line = file.readline()
    values: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return values


def options_json(options: NodeOptions | HeadOptions) -> bytes:
    """What `read_options` reads."""
    return json.dumps(asdict(options)).encode() + b"\n"


def run_local(options: NodeOptions) -> int:
    """GCS and raylet for one driver, until it ends. Returns the exit status."""
    return _run(options, local=True)


def run_node(options: NodeOptions) -> int:
    """A raylet that joins the GCS at `options.gcs_address`. Returns the exit status."""
    return _run(options, local=False)


def run_head(options: HeadOptions) -> int:
    """The GCS alone. Returns the exit status."""
    from miniray.runtime import agent, remains, sessions, supervisor

    supervisor.adopt()
    agent.raise_descriptor_limit()
    remains.sweep(sessions.root())
    directory = sessions.create(options.session_dir)
    session_lock.hold(directory)
    fork_janitor(directory, options.ready_fd)
    try:
        from miniray.runtime.head_daemon import serve_head

        forbid_unpickling()
        gc.enable()
        gc.freeze()
        return serve_head(options, directory)
    except Exception as error:
        tell_ready(options.ready_fd, {"error": str(error) or type(error).__name__})
        sys.stderr.write(f"miniray-head: {error}\n")
        return 1
    finally:
        gc.disable()  # objects of gRPC that outlive their loop hang in their destructors
        session_lock.remove(directory)


def _run(options: NodeOptions, local: bool) -> int:
    import_ahead("node")
    from miniray.runtime import agent, orphans, remains, sessions, supervisor

    supervisor.adopt()
    agent.raise_descriptor_limit()
    agent.become_subreaper()
    remains.sweep(sessions.root())
    directory = sessions.create(options.session_dir)
    orphans.mark(directory)
    options.spill_dir = spill_directory(options, directory)
    lock = session_lock.hold(directory, options.spill_dir)
    os.makedirs(os.path.join(directory, "logs"), mode=0o700, exist_ok=True)
    if local:
        _redirect_output(os.path.join(directory, "logs", "daemon.log"))
    directories = [directory] if "://" in options.spill_dir else [directory, options.spill_dir]
    zygote, guardian_pid = fork_zygote([directory, options.spill_dir], options, lock)
    trouble = ""
    code = 1
    try:
        from miniray.runtime.node_daemon import serve_node

        forbid_unpickling()
        gc.enable()
        gc.freeze()
        code = serve_node(options, directory, zygote, local=local)
    except Exception as error:
        trouble = str(error) or type(error).__name__
        log_failure(error)
    finally:
        from miniray.runtime import kept_logs

        gc.disable()  # see run_head
        kept_logs.settle(directory, failed=code != 0)
        end_tree(zygote, guardian_pid, directories)
        if trouble:     # said when nothing is left: whoever waits may look
            tell_ready(options.ready_fd, {"error": trouble})
    return code


def _redirect_output(path: str) -> None:
    """The daemon must not keep the driver's pipes open: whoever reads them waits for their end."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def spill_directory(options: NodeOptions, session_dir: str) -> str:
    """A directory (or URL) for spilled objects that is this node's alone: it is removed at the end."""
    from miniray import config

    chosen = options.spill_dir or config.get("spill_dir")
    if not chosen:
        return os.path.join(session_dir, "spill")
    from miniray.runtime import spill_places

    return spill_places.below(chosen, os.path.basename(session_dir))


def fork_zygote(directories: list[str], options: NodeOptions, lock: int) -> tuple[socket.socket, int]:
    """Fork the guardian, and that the zygote. Returns the raylet's end of the zygote's socket, and the
    guardian's pid."""
    from miniray.runtime import guardian

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, alive = os.pipe()  # `alive` stays open until this process ends, however that happens
    raylet = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.close(alive)
        if options.ready_fd >= 0:
            os.close(options.ready_fd)
        if os.fork() == 0:
            from miniray.runtime import zygote

            os.close(end)
            zygote.run(theirs, directories, options.preload, raylet, lock)
        guardian.become(end, lock, directories)
    theirs.close()
    os.close(end)
    return ours, pid


def fork_janitor(directory: str, ready_fd: int) -> None:
    """A process that only waits for this one's end, to remove its session directory."""
    read, write = os.pipe()
    if os.fork():
        os.close(read)  # `write` stays open until we end, however that happens
        return
    os.close(write)
    if ready_fd >= 0:
        os.close(ready_fd)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.read(read, 1)
    session_lock.remove(directory)
    os._exit(0)


def end_tree(zygote: socket.socket, guardian_pid: int, directories: list[str]) -> None:
    """End everything below the guardian, remove the directories, end the guardian.

    In this order, for if this process is killed meanwhile the guardian does the rest. The zygote may be
    busy, with an import say, so nothing is asked of it.
    """
    from miniray.runtime import agent

    zygote.close()
    agent.kill_below(guardian_pid)
    for directory in reversed(directories):  # the session's last: it says where the other one is
        session_lock.remove(directory)
    agent.end_below()
    for directory in reversed(directories):
        session_lock.remove(directory)  # a last worker may have written


def tell_ready(fd: int, message: dict[str, Any]) -> bool:
    """One JSON line to whoever started the daemon. False when nobody waits for it any more."""
    if fd < 0:
        return True
    try:
        os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)
    except OSError:
        return False
    return True


def log_failure(error: Exception) -> None:
    """Where the error came from, unless its text says it all."""
    import traceback

    from miniray.runtime.node_daemon import CannotJoin

    if isinstance(error, CannotJoin):
        sys.stderr.write(f"miniray-node: {error}\n")
    else:
        traceback.print_exc()


def forbid_unpickling() -> None:
    """Make an attempt to unpickle in this process fatal: daemons only carry user payloads."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            sys.stderr.write(f"a daemon tried to unpickle {args}: ending\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGABRT)

    sys.addaudithook(hook)
