"""A process's answer to a question that the GCS has passed on (`core.questions`).

Runs on the I/O thread of every worker and driver, imported at the first question. It needs the
interpreter lock: a process that cannot give it does not answer, and its raylet says so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import ids, why
from miniray.runtime import concurrency, executing, sites

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

NAMES_TOLD = 1_000


def inquired(worker: CoreWorker, inquiry: gcs.Inquiry) -> None:
    """Answer one question."""
    finding = gcs.Finding(ticket=inquiry.ticket, title=_title(worker))
    if inquiry.kind == gcs.Inquiry.EXPLAIN:
        finding.explanations.extend(explanations(worker, inquiry.key))
    elif inquiry.kind == gcs.Inquiry.NAMES:
        finding.names.extend(_names(worker, inquiry.name))
    elif inquiry.kind == gcs.Inquiry.STACK:
        now = time.monotonic()
        finding.stack = executing.stack_of(worker)
        finding.running.extend(executing.links(one, now)[0][0] for one in executing.doing(worker))
    worker.raylet.send(wire.ToRaylet(finding=finding))


def _title(worker: CoreWorker) -> str:
    if worker.is_driver:
        return "driver"
    spec = getattr(worker.executor, "actor_spec", None)
    return f"actor {spec.class_name}" if spec is not None else "worker"


def explanations(worker: CoreWorker, key: bytes) -> list[gcs.Explanation]:
    """What this process knows as owner or holder, and as executor; times in seconds before now."""
    now = time.monotonic()
    with worker.lock:
        found = why.explain(worker.owner, now, key)
        running = _running(worker, key, now)
    for index, line in enumerate(found.story):
        at, _, text = line.partition(" ")
        found.story[index] = f"{now - float(at):.1f} s ago: {text}"
    if found.role in ("owner", "holder") and found.kind == "object":
        found.chain.extend(sites.of(worker, key))
    return [one for one in (found, running) if one.kind]


def _running(worker: CoreWorker, key: bytes, now: float) -> gcs.Explanation:
    """What becomes here of a task, or of an actor that lives here."""
    answer = gcs.Explanation(role="executor")
    doing = executing.doing(worker)
    if len(key) == ids.ACTOR_ID_SIZE:
        spec = getattr(worker.executor, "actor_spec", None)
        if spec is not None and spec.actor_id == key:
            answer.kind = "actor"
            for one in doing:
                answer.chain.extend(executing.links(one, now)[0])
            waiting = len(executing.queued(worker))
            answer.chain.append(f"{waiting} calls are queued here" if waiting else "no call is queued here")
        return answer
    task = ids.task_of_object(key) if len(key) == ids.OBJECT_ID_SIZE and not ids.is_put(key) else key
    mine = next((one for one in doing if one.context.task_id == task), None)
    if mine is not None:
        answer.kind, answer.sentence, answer.unsettled = "task", f"task {mine.title} runs", True
        answer.name = mine.context.name
        links, answer.next = executing.links(mine, now)
        answer.chain.extend(links)
        return answer
    waiting_ids = executing.queued(worker)
    if task in waiting_ids:
        answer.kind, answer.sentence, answer.unsettled = "task", f"task {task.hex()[:12]} is queued", True
        queue = concurrency.queue_of(worker.executor, task) if doing else None
        if queue is None:
            where, before = "", waiting_ids.index(task)
        else:
            group, width, before = queue
            title = f"concurrency group '{group}'" if group else "its actor"
            where = f" of {title}, which runs {width} at a time"
            doing = [one for one in doing if one.context.function.group == group] or doing
        runs = f", and while {doing[0].title} runs" if doing else ""
        answer.chain.append(f"it is queued here behind {before} others{where}{runs}")
        answer.next = doing[0].context.task_id if doing else b""
    return answer


def _names(worker: CoreWorker, name: str) -> list[gcs.Named]:
    """Unfinished tasks of this process with this name, or whose id begins so; oldest first."""
    found: dict[bytes, Any] = {}
    with worker.lock:
        for entry in worker.owner.directory.objects.values():
            record = entry.task
            if record is not None and not record.done and len(found) < NAMES_TOLD:
                names = (record.label, record.label.rpartition(".")[2])
                if name in names or entry.id.hex().startswith(name.lower()):
                    found[record.id] = record
    return [
        gcs.Named(id=record.id, name=record.label, state="sent" if record.remote is not None else "waiting")
        for record in sorted(found.values(), key=lambda record: record.submitted_at)
    ]
