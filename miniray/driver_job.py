"""What a cluster is told about a driver: its job's name space, environment and import paths."""

from __future__ import annotations

import json
import os
import sys
import uuid
from typing import TYPE_CHECKING, Any

from miniray import config

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker
    from miniray.runtime_env.packages import Package


def describe(
    namespace: str | None, runtime_env: Any, job_config: Any, may_hook: bool = True
) -> tuple[dict[str, Any], list[Package]]:
    """What the cluster is told about this driver, and what it is to upload.

    `may_hook`: whoever runs this program may change its runtime_env (the knob `runtime_env_hook`).
    """
    metadata = json.loads(config.get("job_metadata") or "{}")
    metadata.update(getattr(job_config, "metadata", None) or {})
    if job_config is not None:
        namespace = namespace or getattr(job_config, "ray_namespace", None)
        runtime_env = runtime_env or getattr(job_config, "runtime_env", None)
    runtime_env = _of_environment(runtime_env)
    if may_hook:
        runtime_env = _hooked(runtime_env)
    environment, packages = _environment(runtime_env)
    has_directory = bool(runtime_env and runtime_env.get("working_dir"))
    job = {
        "namespace": namespace or config.get("namespace") or _anonymous(),
        "runtime_env": environment,
        "entrypoint": " ".join(sys.argv),
        "sys_path": _import_paths(with_cwd=not has_directory),
        "aliases": _aliases(),
        "metadata": metadata,
        "actors_outlive": getattr(job_config, "default_actor_lifetime", "") == "detached",
    }
    return job, packages


def logging_of(logging_config: Any) -> str:
    """How the job's processes log, as JSON; "" where neither the program nor its environment says."""
    encoding = config.get("logging_encoding")
    if logging_config is None and encoding:
        from miniray.logging_config import LoggingConfig

        logging_config = LoggingConfig(encoding=encoding)
    return "" if logging_config is None else str(logging_config.to_json())


def _of_environment(runtime_env: Any) -> Any:
    text = config.get("runtime_env") if runtime_env is None else ""
    return json.loads(text) if text else runtime_env


def _hooked(runtime_env: Any) -> Any:
    """What the hook makes of a runtime_env. ValueError, naming the hook, when there is none of that name."""
    name = config.get("runtime_env_hook")
    if not name:
        return runtime_env
    import importlib

    module, _, function = name.rpartition(".")
    try:
        hook = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"runtime_env_hook {name!r} is no module.function here: {error}") from error
    return hook(runtime_env)


def _environment(runtime_env: Any) -> tuple[str, list[Package]]:
    if not runtime_env:
        return "", []
    from miniray.runtime_env.runtime_env import localized  # loads half the standard library

    return localized(runtime_env)


def _aliases() -> list[str]:
    from miniray.runtime import aliases

    return aliases.used()


def _anonymous() -> str:
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


def upload(worker: CoreWorker, packages: list[Package]) -> None:
    """Bring what the job's runtime_env names into the cluster. If that fails the driver has left it."""
    if not packages:
        return
    import logging

    from miniray.runtime import uploads

    logger = logging.getLogger("miniray")
    try:
        for package in packages:
            logger.info("Pushing file package '%s' to the cluster...", package.uri)
            uploads.upload(worker, package.uri, package.write)
            logger.info("Successfully pushed file package '%s'.", package.uri)
    except BaseException:
        worker.shutdown()
        raise
