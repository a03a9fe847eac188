"""Giving tasks up: from `cancel` at any holder of a reference to the process that runs the task.

A holder asks the owner of the object; the owner takes back what has not been pushed and tells the
worker about what has. A running plain task gets a KeyboardInterrupt, a coroutine is cancelled, and
with `force` the worker's process ends. *Recursive*: the worker gives up, in the same way, what the
task has started.

`give_up` and `children` run under the worker's lock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from miniray._proto import common_pb2 as pb
from miniray.core.directory import ObjectEntry
from miniray.core.tasks import TaskRecord
from miniray.runtime import frames

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker


def cancel(worker: CoreWorker, entry: ObjectEntry, force: bool, recursive: bool) -> None:
    """Give up the task that makes an object; no effect when it has ended."""
    record: TaskRecord | None = entry.task
    if record is not None and record.client is not None and force:
        raise ValueError("force=True is not supported for actor tasks.")
    with worker.lock:
        if record is not None:
            give_up(worker, record, force, recursive)
        elif entry.owner is not None:
            flags = force * frames.FORCE | recursive * frames.RECURSIVE
            worker.peers.send(entry.owner, frames.pack_object(frames.CANCEL_OWNED, entry.id, flag=flags))
            worker.peers.end_turn()


def error(record: TaskRecord) -> pb.Failure:
    """The error of a task that was given up."""
    return pb.Failure(kind=pb.TASK_CANCELLED)


def give_up(worker: CoreWorker, record: TaskRecord, force: bool, recursive: bool) -> None:
    """At the owner: the task ends now, or its worker is told."""
    if not worker.owner.cancelled(time.monotonic(), record, error(record)):
        peer = worker.peers.connected(record.remote.address)
        peer.channel.send(frames.pack_cancel(record.call, force, recursive))
        if force:   # its children end with their owner
            worker.actors.kill_worker(record.remote.address, "`ray.cancel(force=True)` by the task's owner")
    worker.drain()


def children(worker: CoreWorker, parent: bytes, force: bool) -> None:
    """At the worker: give up what a task has started."""
    for record in worker.owner.children(parent):
        give_up(worker, record, force and record.client is None, True)
