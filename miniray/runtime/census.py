"""Taking a census of the cluster, and this process's part in one (`core.census`).

`take` is for whoever lists tasks, objects or workers, `answer` for every process that is asked. What
was finished but not reported yet goes out ahead of the answer, so a list misses nothing that ended.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import inventory
from miniray.core.census import merged

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniray.runtime.worker import CoreWorker

TICKET_SIZE = 16
PAUSE_S = 0.005
PAUSE_MAX_S = 0.1
PATIENCE_S = 5.0
"""A process that has not answered by then is busy in one long call, or stopped."""


def take(
    request: Callable[[gcs.CensusQuery], gcs.Census], kind: gcs.CensusQuery.Kind, limit: int, timeout_s: float
) -> gcs.Census:
    """The rows of all processes; `missing` says how many have not answered in time."""
    query = gcs.CensusQuery(ticket=os.urandom(TICKET_SIZE), kind=kind, limit=limit)
    deadline = time.monotonic() + min(timeout_s, PATIENCE_S)
    pause = PAUSE_S
    while True:
        query.finish = time.monotonic() >= deadline
        found = request(query)
        if query.finish or not found.missing:
            return found
        time.sleep(pause)
        pause = min(2 * pause, PAUSE_MAX_S)


def tasks(request: Callable[[str, Any], gcs.ControlReply], limit: int, timeout_s: float) -> list[gcs.TaskRow]:
    """What runs, waits and has ended, as far as it is told in time; the newest `limit`, oldest first."""
    live = take(lambda query: request("census", query).census, gcs.CensusQuery.TASKS, limit, timeout_s)
    ended = request("task_query", gcs.TaskQuery(limit=limit)).tasks
    return merged(ended.tasks, live.tasks)[-limit:]


def answer(worker: CoreWorker, query: gcs.CensusQuery) -> None:
    """Tell what this process knows. I/O thread."""
    found = gcs.Census()
    with worker.lock:
        if query.kind == gcs.CensusQuery.TASKS:
            worker.log.flush()
            offset = time.time() - time.monotonic()
            found.tasks.extend(inventory.tasks(worker.owner, query.limit, offset))
        else:
            found.objects.extend(
                inventory.objects(worker.owner, query.limit, os.getpid(), worker.is_driver)
            )
    if query.kind == gcs.CensusQuery.TASKS and worker.executor is not None:
        found.tasks.extend(_running(worker, worker.executor))
    part = gcs.CensusPart(ticket=query.ticket, found=found)
    worker.raylet.send(wire.ToRaylet(counted=part))


def _running(worker: CoreWorker, executor: Any) -> list[gcs.TaskRow]:
    """What runs here, as the process that runs it sees it."""
    node_id, worker_id = worker.address
    offset = time.time() - time.monotonic()
    return [
        gcs.TaskRow(
            task_id=context.task_id, attempt=context.attempt, name=context.name, state="RUNNING",
            node_id=node_id, worker_id=worker_id, pid=os.getpid(), job_id=context.task_id[20:],
            actor_id=context.actor_id, kind="ACTOR_TASK" if context.actor_id else "NORMAL_TASK",
            started_at=began + offset,
        )
        for context, began in executor.under_way()
    ]  # fmt: skip
