"""The life of a worker process: it registers with its raylet, then runs what is sent to it."""

from __future__ import annotations

import os
import sys
from typing import Any

from miniray._proto import worker_pb2 as wire
from miniray.runtime import output
from miniray.runtime.executor import Executor
from miniray.runtime.worker import CoreWorker


def run_worker(spec: dict[str, Any]) -> None:
    """The life of a worker process."""
    output.install()
    from miniray.runtime import worker as library
    from miniray.runtime.raylet_client import RayletClient

    client = RayletClient(spec["socket_path"])
    token = spec["startup_token"]
    register = wire.Register(
        token=spec["token"], startup_token=token if isinstance(token, bytes) else bytes.fromhex(token)
    )
    info, fd = client.register(register)
    if info.failure.kind or fd < 0:
        sys.stderr.write(f"the raylet refused this worker: {info.failure.message}\n")
        os._exit(1)
    core = CoreWorker(client, info, fd, is_driver=False)
    library.set_current(core)
    core.executor = Executor(core)
    core.executor.import_after = len(spec.get("python_path") or ())
    if "worker_process_setup_hook" in spec.get("runtime_env", ""):
        from miniray.runtime import setup_hook

        core.executor.hook = setup_hook.of(spec["runtime_env"])
    if core.job_id:
        core.executor.adopt(info.job)
    core.start()
    try:
        core.executor.run()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)
