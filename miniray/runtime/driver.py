"""How a program joins a node as a driver."""

from __future__ import annotations

import os
from collections.abc import Sequence

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.exceptions import AuthenticationError
from miniray.runtime.interrupts import Interrupts
from miniray.runtime.raylet_client import RayletClient
from miniray.runtime.worker import CoreWorker, set_current


def connect_driver(
    *,
    socket_path: str,
    token: str,
    namespace: str = "",
    runtime_env: str = "",
    entrypoint: str = "",
    sys_path: Sequence[str] = (),
    aliases: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
    actors_outlive: bool = False,
    logging: str = "",
    log_to_driver: bool = True,
    local_mode: bool = False,
) -> CoreWorker:
    """Join a node as a driver: a new job.

    AuthenticationError for a token that is not the cluster's, ConnectionError for any other refusal.
    `local_mode`: what it starts runs in this process (`local_mode`).
    """
    client = RayletClient(socket_path)
    job = gcs.JobStart(
        entrypoint=entrypoint, namespace=namespace, runtime_env=runtime_env, metadata=metadata or {},
        sys_path=list(sys_path), aliases=list(aliases), driver_pid=os.getpid(),
        actors_outlive=actors_outlive, logging=logging,
    )  # fmt: skip
    info, fd = client.register(wire.Register(token=token, is_driver=True, job=job))
    if info.failure.kind or fd < 0:
        client.close()
        if info.failure.kind == common.UNAUTHENTICATED:
            raise AuthenticationError(info.failure.message)
        raise ConnectionError(info.failure.message or "the raylet did not hand out the store")
    kind: type[CoreWorker] = CoreWorker
    if local_mode:
        from miniray.runtime.local_mode import LocalWorker

        kind = LocalWorker
    worker = kind(client, info, fd, is_driver=True)
    set_current(worker)
    worker.start()
    interrupts = Interrupts(worker)
    interrupts.install()
    worker.before_leaving.append(interrupts.uninstall)
    if log_to_driver:
        from miniray.runtime.log_stream import LogStream

        worker.output = LogStream(worker)
    return worker
