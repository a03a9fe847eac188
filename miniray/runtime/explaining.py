"""Why a task or object is as it is: one question after the other, until the chain ends.

What has not ended is known to the processes it concerns. The GCS asks all processes of the job; an
answer may name the next thing to ask about: the task that another process runs, the object that it
waits for there. A thing that comes a second time is a cycle: it will never end by itself. Runs on the
thread of whoever asks; nothing is asked while nobody wants to know.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

TICKET_SIZE = 16
POLL_S = 0.03
SHARE = 0.5
"""Of the time that is left, processes have so much to answer: those that do not are looked at in the rest."""
STEPS = 16
"""Processes a chain is followed through, at most."""

Ask = Callable[[gcs.ExplainQuery], gcs.Explanation]


def explain(worker: CoreWorker, key: bytes, timeout_s: float) -> gcs.Explanation:
    """What the cluster knows, this process included."""
    return ask(lambda query: worker.request("explain", query).explanation, key, timeout_s)


def ask(request: Ask, key: bytes, timeout_s: float) -> gcs.Explanation:
    """Ask the GCS, wait for the processes that it asks, and follow the chain within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    answer = gcs.Explanation()
    seen: dict[bytes, str] = {}
    following = key
    for _ in range(STEPS):
        found = _step(request, following, deadline)
        seen[ids.subject(following)] = found.name or found.kind
        if following is key:
            answer.CopyFrom(found)
        elif found.kind:
            answer.chain.extend([found.sentence, *found.chain])
        following = found.next
        if not following or time.monotonic() > deadline:
            return answer
        if ids.subject(following) in seen:
            answer.chain.append(_cycle(seen, ids.subject(following)))
            return answer
    answer.chain.append("and so on")
    return answer


def _step(request: Ask, key: bytes, deadline: float) -> gcs.Explanation:
    within_s = max(0.1, min(1.0, SHARE * (deadline - time.monotonic())))
    query = gcs.ExplainQuery(id=key, ticket=os.urandom(TICKET_SIZE), within_s=within_s)
    while True:
        found = request(query)
        if not found.asked or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)


def _cycle(seen: dict[bytes, str], again: bytes) -> str:
    keys = list(seen)
    around = [*keys[keys.index(again) :], again]
    names = ", which waits for ".join(f"{seen[key]} ({key.hex()[:12]})" for key in around)
    return f"this is a cycle, and none of them can ever end: {names}"


def inquire(
    request: Callable[[gcs.Inquiry], gcs.Findings], timeout_s: float, *, kind: str, **fields: Any
) -> list[gcs.Finding]:
    """Ask all processes; `kind` and `fields` are those of an `Inquiry`. By node and pid."""
    deadline = time.monotonic() + timeout_s
    within_s = min(1.0, timeout_s)
    inquiry = gcs.Inquiry(ticket=os.urandom(TICKET_SIZE), kind=kind, within_s=within_s, **fields)
    while True:
        found = request(inquiry)
        if not found.asked or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return sorted(found.findings, key=lambda one: (one.address.node_id, one.pid))
