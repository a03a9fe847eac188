"""Why a task or object is as it is, asked by users and by other processes.

What has not ended is known to its owner alone. A driver listens on the channel "explain" of its
job; the GCS passes questions on there (`core.explain.Questions`), and the driver answers from its
own books. Runs on the I/O thread of the driver; `explain` on the thread of whoever asks.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from miniray._proto import gcs_pb2 as gcs
from miniray.core import why

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniray.runtime.worker import CoreWorker

TICKET_SIZE = 16
POLL_S = 0.05


def listen(worker: CoreWorker) -> None:
    """Answer what the GCS is asked about tasks and objects of this driver."""

    def asked(publication: gcs.Publication) -> None:
        ticket, key = publication.data[:TICKET_SIZE], publication.data[TICKET_SIZE:]
        query = gcs.ExplainQuery(ticket=ticket, answer=known_here(worker, key))
        worker.control.request_async("explain", query)

    worker.subscribe("explain", worker.job_id, asked)


def known_here(worker: CoreWorker, key: bytes) -> gcs.Explanation:
    """What this process knows, with times in seconds before now."""
    now = time.monotonic()
    with worker.lock:
        found = why.explain(worker.owner, now, key)
    for index, line in enumerate(found.story):
        at, _, text = line.partition(" ")
        found.story[index] = f"{now - float(at):.1f} s ago: {text}"
    return found


def explain(worker: CoreWorker, key: bytes, timeout_s: float) -> gcs.Explanation:
    """What this process knows; if that is nothing, what the GCS or another driver knows."""
    here = known_here(worker, key)
    record = worker.owner.record_of(key)
    if here.kind and (record is None or not record.done):
        return here
    found = ask(lambda query: worker.request("explain", query).explanation, key, timeout_s)
    return found if found.kind else here


def ask(
    request: Callable[[gcs.ExplainQuery], gcs.Explanation], key: bytes, timeout_s: float
) -> gcs.Explanation:
    """Ask the GCS, and wait for the driver that it asks."""
    query = gcs.ExplainQuery(id=key, ticket=os.urandom(TICKET_SIZE))
    deadline = time.monotonic() + timeout_s
    while True:
        found = request(query)
        if not found.asked or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)
