"""`init` and `shutdown`: this process's session, from the first connection to the last.

Without an address `init` attaches to the newest cluster that this user has started on this machine
(as Ray does). It starts a local session when there is none, or when resources are given (where Ray
raises): one daemon for this driver alone, reachable by a unix socket only. "local" always starts
one. "auto" always attaches, HOST:PORT to a node of that cluster, a session directory to that
session (it is the address of a local one).

One session per process at a time; a lock makes `init` and `shutdown` exclude each other.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miniray import api, config
from miniray.options import UNIT

if TYPE_CHECKING:
    from miniray.runtime.launch import LocalSession
    from miniray.runtime.worker import CoreWorker
    from miniray.runtime_env.packages import Package

logger = logging.getLogger("miniray")

_lock = threading.RLock()
_daemon: LocalSession | None = None
"""The daemon that this process started for itself."""
_daemon_owner = 0
_context: RayContext | None = None

LOG_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"


class RayContext(Mapping[str, Any]):
    """What `init` returns. `address_info` says where the session is; leaving the context ends it."""

    def __init__(self, address_info: dict[str, Any]) -> None:
        from miniray import __version__

        self.address_info = address_info
        self.dashboard_url: str | None = None
        self.python_version = ".".join(str(part) for part in sys.version_info[:3])
        self.ray_version = __version__
        self.ray_commit = ""

    def __getitem__(self, key: str) -> Any:
        warnings.warn(
            f'Accessing values through ctx["{key}"] is deprecated. Use ctx.address_info["{key}"] instead.',
            DeprecationWarning,
            stacklevel=2,
        )
        return self.address_info[key]

    def __len__(self) -> int:
        return len(self.address_info)

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __enter__(self) -> RayContext:
        return self

    def __exit__(self, *_: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        """End the session, as leaving the context does."""
        shutdown()

    def __repr__(self) -> str:
        return f"RayContext({self.address_info.get('address')!r})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    num_workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    job_config: Any = None,
    configure_logging: bool = True,
    logging_level: int | str = logging.INFO,
    logging_format: str | None = None,
    logging_config: Any = None,
    log_to_driver: bool | None = None,
    preload: Sequence[str] = (),
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    enable_resource_isolation: bool = False,
    **kwargs: Any,
) -> RayContext:
    """Start a session, or attach to one, and make this process its driver.

    Args:
        address: None: MINIRAY_ADDRESS or RAY_ADDRESS if set, else a cluster that runs here, else a
            new local session. "local": a new local session. "auto", HOST:PORT or a session
            directory: attach.
        num_cpus, num_gpus: What a new session offers; what the machine has by default.
            `num_workers` N is the same as `num_cpus` N.
        resources: Custom resources of a new session, name → amount. `labels` likewise.
        object_store_memory: Bytes of the object store; 30 % of memory by default.
        ignore_reinit_error: Return the present session instead of raising RuntimeError.
        namespace: Where this job's named actors live; an anonymous one by default.
        runtime_env: Environment of this job's tasks and actors.
        log_to_driver: Show what workers print.
        preload: Modules that workers find imported already.
        kwargs: Ray's private options (`_system_config`, …) are accepted and without effect;
            other names raise RuntimeError.

    Raises:
        RuntimeError: There is a session already; the daemon did not start; unknown options.
        ConnectionError: Nothing runs at `address`, or it refused this driver.
        ValueError: `address` together with resources, a bad namespace, ….
    """
    unknown = [name for name in kwargs if not name.startswith("_") and name not in _ACCEPTED]
    if unknown:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    with _lock:
        if api.is_initialized():
            return _again(ignore_reinit_error)
        _forget_fork()
        if configure_logging:
            _configure_logging(logging_level, logging_format)
        if namespace is not None:
            api.check_namespace(namespace)
        job, packages = _job(namespace, runtime_env, job_config)
        offered = {
            "num_cpus": num_workers if num_cpus is None else num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
        }
        _exit_on_sigterm()
        where = _address(address)
        given = [name for name, value in offered.items() if value is not None]
        if where is None and address is None and not given:
            where = _running_cluster()
        if where is None:
            node = _start(offered, kwargs, preload)
        else:
            node = _find(where, given)
        log = config.get("log_to_driver") if log_to_driver is None else log_to_driver
        return _connect(node, job, packages, log)


_ACCEPTED = frozenset({"object_spilling_directory", "dashboard_agent_listen_port", "storage"})


def _again(ignore: bool) -> RayContext:
    """`init` in a process that has a session."""
    if not ignore:
        raise RuntimeError(
            "Maybe you called ray.init twice by accident? This error can be suppressed by passing in "
            "'ignore_reinit_error=True' or by calling 'ray.shutdown()' prior to 'ray.init()'."
        )
    logger.info("Calling ray.init() again after it has already been called.")
    return _context if _context is not None else RayContext(_address_info(api.connected_worker(), ""))


def _configure_logging(level: int | str, text_format: str | None) -> None:
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(text_format or LOG_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level.upper() if isinstance(level, str) else level)


def _address(address: str | None) -> str | None:
    """Where to attach; None for a new local session."""
    if address in (None, "auto"):
        address = config.get("address") or address
    if address is None or address == "local":
        return None
    if not isinstance(address, str):
        raise TypeError(f"address must be a string, got {type(address)}")
    if "://" in address:
        raise ValueError(
            f"address {address!r}: there is no client protocol. Attach to a session on this machine with "
            "'auto' or HOST:PORT, or make this machine a node of the cluster with `miniray start`."
        )
    return address


def _job(
    namespace: str | None, runtime_env: Any, job_config: Any
) -> tuple[dict[str, Any], list[Package]]:
    """What the cluster is told about this driver, and what it is to upload."""
    from miniray.runtime_env.runtime_env import localized

    metadata = dict(getattr(job_config, "metadata", None) or {})
    if job_config is not None:
        namespace = namespace or getattr(job_config, "ray_namespace", None)
        runtime_env = runtime_env or getattr(job_config, "runtime_env", None)
    if runtime_env is None:
        text = config.get("runtime_env")
        runtime_env = json.loads(text) if text else None
    environment, packages = localized(runtime_env)
    has_directory = bool(runtime_env and runtime_env.get("working_dir"))
    job = {
        "namespace": namespace or config.get("namespace") or _anonymous(),
        "runtime_env": environment,
        "entrypoint": " ".join(sys.argv),
        "sys_path": _import_paths(with_cwd=not has_directory),
        "aliases": _aliases(),
        "metadata": metadata,
    }
    return job, packages


def _aliases() -> list[str]:
    from miniray.runtime import aliases

    return aliases.used()


def _anonymous() -> str:
    import uuid

    return str(uuid.uuid4())


def _import_paths(with_cwd: bool) -> list[str]:
    """Where this driver imports from and a worker would not: its script's folder, its own additions, and
    the current directory unless the job brings one of its own."""
    standard = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    found: dict[str, None] = {}
    for path in sys.path:
        if not path and not with_cwd:
            continue
        real = os.path.realpath(path or os.getcwd())
        if os.path.exists(real) and not any(real == top or real.startswith(top + os.sep) for top in standard):
            found[real] = None
    if with_cwd:
        found[os.getcwd()] = None
    return list(found)


def _start(offered: dict[str, Any], private: Mapping[str, Any], preload: Sequence[str]) -> LocalSession:
    """Start a local session for this process."""
    global _daemon, _daemon_owner
    from miniray.runtime import launch
    from miniray.runtime.daemon import NodeOptions

    for name in ("num_cpus", "num_gpus"):
        if offered[name] is not None and offered[name] < 0:
            raise ValueError(f"{name} must not be negative, got {offered[name]}")
    modules = [name for name in config.get("preload").split(",") if name]
    options = NodeOptions(
        num_cpus=offered["num_cpus"],
        num_gpus=offered["num_gpus"],
        memory=private.get("_memory"),
        resources=dict(offered["resources"] or {}),
        labels=dict(offered["labels"] or {}),
        object_store_memory=_store_bytes(offered["object_store_memory"]),
        node_name=private.get("_node_name") or "",
        is_head=True,
        spill_dir=private.get("object_spilling_directory") or "",
        preload=[*modules, *preload],
    )
    _load_library_meanwhile()
    _daemon = launch.start_local(options)
    _daemon_owner = os.getpid()
    atexit.register(_at_exit)
    return _daemon


def _load_library_meanwhile() -> None:
    """Import what the driver will need, on another core while the daemon starts."""

    import importlib

    load = threading.Thread(
        target=importlib.import_module, args=("miniray.runtime.pickler",), name="miniray-import", daemon=True
    )
    load.start()


def _store_bytes(wanted: int | None) -> int | None:
    least = config.get("store_min_bytes")
    if wanted is not None and wanted < least:
        raise ValueError(
            f"Attempting to cap object store memory usage at {wanted} bytes, "
            f"but the minimum allowed is {least} bytes."
        )
    return None if wanted is None else int(wanted)


def _exit_on_sigterm() -> None:
    """SIGTERM ends a driver in order (exit hooks run), with the signal's number as its status."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def _running_cluster() -> str | None:
    """The address of the newest cluster with a node here; None when there is none."""
    from miniray.runtime import sessions

    return next(
        (found.address for found in sessions.living() if found.kind == "node" and found.address), None
    )


def _same(address: str, other: str) -> bool:
    """True when two HOST:PORT name one place: equal ports, and hosts with an address in common."""
    if address == other:
        return True
    host, _, port = address.rpartition(":")
    other_host, _, other_port = other.rpartition(":")
    if not host or not other_host or port != other_port:
        return False
    import socket

    try:
        found = {row[4][0] for row in socket.getaddrinfo(host.strip("[]"), None)}
        return not found.isdisjoint(row[4][0] for row in socket.getaddrinfo(other_host.strip("[]"), None))
    except OSError:
        return False


def _find(where: str, given: list[str]) -> Any:
    """A node of a running session to attach to. `given`: options that only a new session takes."""
    if given:
        raise ValueError(
            f"When connecting to an existing cluster, {' and '.join(given)} must not be provided: its "
            f"nodes ({where}) have said what they offer. address='local' starts a session of its own."
        )
    from miniray.runtime import sessions

    nodes = [session for session in sessions.living() if session.kind == "node"]
    if where == "auto" and nodes:
        # The newest cluster; a driver's private session only if there is nothing else.
        newest = next((node for node in nodes if node.address), nodes[0])
        where = newest.address or str(newest.directory)
    for node in reversed(nodes):  # of a cluster's nodes here the first: the head's
        if where == str(node.directory) or (node.address and _same(where, node.address)):
            return node
    if where == "auto":
        raise ConnectionError(
            "Could not find any running Ray instance. Please specify the one to connect to by setting "
            "`--address` flag or `RAY_ADDRESS` environment variable (`miniray start --head` starts one)."
        )
    raise ConnectionError(
        f"no node of a cluster at {where} runs on this machine: "
        f"start one with `miniray start --address {where}`"
    )


def _connect(
    node: Any, job: dict[str, Any], packages: list[Package], log_to_driver: bool
) -> RayContext:
    """Make this process a driver of `node`'s session."""
    global _context
    from miniray.runtime import driver
    from miniray.runtime import worker as library

    token = node.token() if callable(node.token) else node.token
    try:
        worker = driver.connect_driver(
            socket_path=node.socket, token=token, log_to_driver=log_to_driver, **job
        )
        _upload(worker, packages)
    except BaseException:
        _end_daemon()
        raise
    api._library = library
    address = getattr(node, "address", "") or worker.session_dir
    _context = RayContext(_address_info(worker, address))
    if node is _daemon:
        cpus = worker.node_info.total.amounts["CPU"] / UNIT
        logger.info("Started a local session with %g CPUs (%s).", cpus, address)
    else:
        logger.info("Connected to the cluster at %s.", address)
    return _context


def _upload(worker: CoreWorker, packages: list[Package]) -> None:
    """Bring what the job's runtime_env names into the cluster."""
    if not packages:
        return
    from miniray.runtime import uploads

    try:
        for package in packages:
            uploads.upload(worker, package.uri, package.write)
    except BaseException:
        worker.shutdown()
        raise


def address_of(worker: CoreWorker) -> str:
    """HOST:PORT of the session's GCS; the session directory when it listens on no port."""
    from pathlib import Path

    try:
        told = json.loads((Path(worker.session_dir) / "node.json").read_text())
    except (OSError, ValueError):
        told = {}
    return str(told.get("address") or worker.session_dir)


def _address_info(worker: CoreWorker, address: str) -> dict[str, Any]:
    node = worker.node_info
    ip = node.host or "127.0.0.1"
    return {
        "address": address,
        "gcs_address": address,
        "node_id": node.node_id.hex(),
        "node_ip_address": ip,
        "raylet_ip_address": ip,
        "raylet_socket_name": node.socket_path,
        "object_store_address": node.socket_path,
        "session_dir": worker.session_dir,
        "session_name": os.path.basename(worker.session_dir),
        "temp_dir": os.path.dirname(worker.session_dir),
        "namespace": worker.namespace,
        "webui_url": "",
        "redis_address": None,
        "metrics_export_port": None,
        "dashboard_agent_listen_port": None,
    }


def shutdown(_exiting_interpreter: bool = False) -> None:
    """End this process's session. A local session ends with everything that runs in it.

    Does nothing without a session, in a forked child and in worker processes. Arrays that `get`
    returned stay valid.
    """
    global _context
    with _lock:
        worker = api.current_worker()
        if worker is not None and worker.is_driver:
            worker.shutdown(_exiting_interpreter)
        if worker is None or worker.is_driver:
            _end_daemon()
            _context = None
            values = sys.modules.get("miniray.runtime.values")
            if values is not None:
                values.forget_kept()


def _end_daemon() -> None:
    global _daemon
    daemon, _daemon = _daemon, None
    if daemon is not None and os.getpid() == _daemon_owner:
        atexit.unregister(_at_exit)
        daemon.end()


def _forget_fork() -> None:
    """In a forked child: the daemon is the parent's."""
    global _daemon, _context
    if _daemon is not None and os.getpid() != _daemon_owner:
        _daemon = _context = None


def _at_exit() -> None:
    if os.getpid() == _daemon_owner:
        shutdown(True)
