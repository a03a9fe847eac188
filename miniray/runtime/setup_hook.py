"""`worker_process_setup_hook` of a runtime environment: run once per worker, before its first task.

Main thread of a worker. The hook is the name of an importable function, or the URI of a pickled
one among the job's packages.
"""

from __future__ import annotations

import importlib
import traceback
from typing import TYPE_CHECKING, Any

from miniray.core import environments
from miniray.exceptions import RuntimeEnvSetupError
from miniray.runtime import uploads, values

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker


def of(runtime_env: str) -> str:
    """The hook of an environment, "" for none."""
    return str(environments.parse(runtime_env).get("worker_process_setup_hook") or "")


def run(worker: CoreWorker, hook: str) -> RuntimeEnvSetupError | None:
    """Run it. Returns what is to be told to whoever wanted this worker, when it failed."""
    try:
        _load(worker, hook)()
    except Exception:
        return RuntimeEnvSetupError(
            f"Failed to execute the setup hook method. It is {hook!r}.\n{traceback.format_exc()}"
        )
    return None


def _load(worker: CoreWorker, hook: str) -> Any:
    if "://" in hook:
        return values.deserialize_function(uploads.read(worker, hook))
    module, _, name = hook.rpartition(".")
    if not module:
        raise ValueError(f"the hook {hook!r} must be named 'module.function'")
    return getattr(importlib.import_module(module), name)
