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
import os
import sys
from _thread import RLock

from miniray.runtime.launch import Launch, LocalSession

TYPE_CHECKING = False  # typing's, without its import: what is loaded here delays the daemon
if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping, Sequence
    from typing import Any

    from miniray.runtime_env.packages import Package
    from miniray.session_context import RayContext

_lock = RLock()
_daemon: LocalSession | None = None
"""The daemon that this process started for itself."""
_daemon_owner = 0
_context: RayContext | None = None

LOG_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"


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
    logging_level: int | str = "INFO",
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
        address: miniray://HOST:PORT (or ray://): a cluster that has no node here, through its head's port.
            A join string: the node of its cluster here, else the same.
            None: MINIRAY_ADDRESS or RAY_ADDRESS if set, else a cluster that runs here, else a
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
        logging_config: A `LoggingConfig` for this process and the job's workers.
        local_mode: Run tasks and actors in this process, at the call, for debugging.
        preload: Modules that workers find imported already.
        kwargs: Ray's private options (`_system_config`, …) are accepted and without effect, where
            Ray would take them; other names raise RuntimeError.

    Raises:
        RuntimeError: There is a session already; the daemon did not start; unknown options.
        ConnectionError: Nothing runs at `address`, or it refused this driver.
        ValueError: `address` together with resources, a bad namespace, a relative `_temp_dir`, ….
    """
    unknown = [name for name in kwargs if not name.startswith("_") and name not in _ACCEPTED]
    if unknown:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    if kwargs.get("_temp_dir") and not os.path.isabs(kwargs["_temp_dir"]):
        raise ValueError(f"_temp_dir must be an absolute path or None, got {kwargs['_temp_dir']!r}")
    offered = {
        "num_cpus": num_workers if num_cpus is None else num_cpus,
        "num_gpus": num_gpus,
        "resources": resources,
        "labels": labels,
        "object_store_memory": object_store_memory,
    }
    with _lock, Launch("local") as launch:
        if _is_foreseeable(address):
            launch.start()
        from miniray import addresses, api, config, driver_job

        if api.is_initialized():
            return _again(ignore_reinit_error)
        _forget_fork()
        if configure_logging:
            _configure_logging(logging_level, logging_format)
        if namespace is not None:
            api.check_namespace(namespace)
        given = [name for name, value in offered.items() if value is not None]
        where = addresses.resolve(address, given)
        if where is not None and kwargs.get("_system_config"):
            raise ValueError("When connecting to an existing cluster, _system_config must not be provided.")
        may_hook = not kwargs.get("_skip_env_hook") and not addresses.is_outside(where)
        job, packages = driver_job.describe(namespace, runtime_env, job_config, may_hook)
        job["logging"] = driver_job.logging_of(logging_config)
        _exit_on_sigterm()
        node = (
            _start(launch, offered, kwargs, preload) if where is None
            else _join_from_outside(where, offered) if addresses.is_outside(where)
            else addresses.find(where, given)
        )  # fmt: skip
        log = config.get("log_to_driver") if log_to_driver is None else log_to_driver
        return _connect(node, {**job, "local_mode": local_mode}, packages, log)


_ACCEPTED = frozenset({"object_spilling_directory", "dashboard_agent_listen_port", "storage"})


def _is_foreseeable(address: str | None) -> bool:
    """True when this `init` will start a daemon, as far as can be said before anything is imported.

    The daemon's imports then run beside this process's. When all is imported there is nothing to win.
    """
    if "miniray.runtime.worker" in sys.modules:
        return False
    return address == "local" or (address is None and not os.environ.keys() & _ADDRESSES)


_ADDRESSES = {"MINIRAY_ADDRESS", "RAY_ADDRESS"}


def _again(ignore: bool) -> RayContext:
    """`init` in a process that has a session."""
    from miniray import api
    from miniray.session_context import RayContext, address_info

    if not ignore:
        raise RuntimeError(
            "Maybe you called ray.init twice by accident? This error can be suppressed by passing in "
            "'ignore_reinit_error=True' or by calling 'ray.shutdown()' prior to 'ray.init()'."
        )
    _logger().info("Calling ray.init() again after it has already been called.")
    return _context if _context is not None else RayContext(address_info(api.connected_worker(), ""))


def _logger() -> logging.Logger:
    import logging

    return logging.getLogger("miniray")


def _configure_logging(level: int | str, text_format: str | None) -> None:
    import logging

    logger = _logger()
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(text_format or LOG_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level.upper() if isinstance(level, str) else level)


def _start(
    launch: Launch, offered: dict[str, Any], private: Mapping[str, Any], preload: Sequence[str]
) -> LocalSession:
    """Start a local session for this process."""
    global _daemon, _daemon_owner
    from miniray import config
    from miniray.runtime import sessions
    from miniray.runtime.daemon import NodeOptions

    for name in ("num_cpus", "num_gpus"):
        if offered[name] is not None and offered[name] < 0:
            raise ValueError(f"{name} must not be negative, got {offered[name]}")
    modules = [name for name in config.get("preload").split(",") if name]
    launch.send(NodeOptions(
        num_cpus=offered["num_cpus"],
        num_gpus=offered["num_gpus"],
        memory=private.get("_memory"),
        resources=dict(offered["resources"] or {}),
        labels=dict(offered["labels"] or {}),
        object_store_memory=_store_bytes(offered["object_store_memory"]),
        node_name=private.get("_node_name") or "",
        session_dir=sessions.place(private["_temp_dir"]) if private.get("_temp_dir") else "",
        is_head=True,
        spill_dir=private.get("object_spilling_directory") or "",
        preload=[*modules, *preload],
        driver_pid=os.getpid(),
    ))  # fmt: skip
    from miniray.runtime import driver, pickler  # noqa: F401  needed soon, and the daemon is not up

    _daemon = LocalSession(launch.ready())
    _daemon_owner = os.getpid()
    atexit.register(_at_exit)
    return _daemon


def _join_from_outside(where: str, offered: Mapping[str, Any]) -> LocalSession:
    """Start this driver's own node of a cluster elsewhere."""
    global _daemon, _daemon_owner
    from miniray import outside

    given = [name for name, value in offered.items() if value is not None and name != "object_store_memory"]
    if given:
        raise ValueError(
            f"a driver outside the cluster offers it nothing: {' and '.join(given)} must not be provided "
            f"with {where.partition('://')[0]}:// or a join string (object_store_memory may be)"
        )
    _daemon = outside.start(where, _store_bytes(offered["object_store_memory"]))
    _daemon_owner = os.getpid()
    atexit.register(_at_exit)
    return _daemon


def _store_bytes(wanted: int | None) -> int | None:
    from miniray import config

    least = config.get("store_min_bytes")
    if wanted is not None and wanted < least:
        raise ValueError(
            f"Attempting to cap object store memory usage at {wanted} bytes, "
            f"but the minimum allowed is {least} bytes."
        )
    return None if wanted is None else int(wanted)


def _exit_on_sigterm() -> None:
    """SIGTERM ends a driver in order (exit hooks run), with the signal's number as its status."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def _connect(
    node: Any, job: dict[str, Any], packages: list[Package], log_to_driver: bool
) -> RayContext:
    """Make this process a driver of `node`'s session."""
    global _context
    from miniray import api, driver_job, options
    from miniray.runtime import driver
    from miniray.runtime import worker as library
    from miniray.session_context import RayContext, address_info

    if node is not _daemon:
        _logger().info("Connecting to existing Ray cluster at address: %s...", node.address or node.directory)
    token = node.token() if callable(node.token) else node.token
    try:
        worker = driver.connect_driver(
            socket_path=node.socket, token=token, log_to_driver=log_to_driver, **job
        )
        if job["logging"]:
            from miniray import logging_config

            logging_config.install(worker, job["logging"])
        driver_job.upload(worker, packages)
    except BaseException:
        _end_daemon()
        raise
    api._library = library
    address = getattr(node, "address", "") or worker.session_dir
    _context = RayContext(address_info(worker, address))
    if node is _daemon and not worker.node_info.takes_no_work:
        cpus = worker.node_info.total.amounts["CPU"] / options.UNIT
        _logger().info("Started a local Ray instance. It has %g CPUs (%s).", cpus, address)
    else:
        elsewhere = getattr(node, "cluster", "")
        place = f"Its head is at {elsewhere}" if elsewhere else _view_of(address)
        _logger().info("Connected to Ray cluster. %s", place)
    return _context


def _view_of(address: str) -> str:
    """Where the cluster's pages are, if its head on this machine shows them."""
    from miniray.runtime import sessions

    head = sessions.find(address, kind="head")
    return f"View the dashboard at {head.http}" if head is not None and head.http else ""


def shutdown(_exiting_interpreter: bool = False) -> None:
    """End this process's session. A local session ends with everything that runs in it.

    Does nothing without a session, in a forked child and in worker processes. Arrays that `get`
    returned stay valid.
    """
    global _context
    from miniray import api

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
            logs = sys.modules.get("miniray.logging_config")
            if logs is not None:
                logs.remove()


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
        try:
            shutdown(True)
        except KeyboardInterrupt:
            pass    # the second Ctrl-C: not even a moment's patience; the daemon ends with this process
