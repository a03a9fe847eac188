"""What the owner machine decided, carried out: frames to workers, messages to the raylet.

Effects are carried out in the order the machine gave them, under the worker's lock; nothing here
blocks and nothing runs user code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from miniray._proto import worker_pb2 as wire
from miniray.core.calls import ActorInDoubt, HandleGone
from miniray.core.owner import Ask
from miniray.core.ownership import BorrowAdd, BorrowDrop, Free, Watch
from miniray.core.submission import LeaseDone, LeaseUnwanted, LeaseWanted, Paused
from miniray.core.subscribers import News
from miniray.core.tasks import TaskRecord
from miniray.runtime import frames
from miniray.runtime.definitions import lease_request
from miniray.runtime.waiting import Waiter

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker


def drain(worker: CoreWorker, burst: bool = False) -> None:
    """Carry out all that is in the outbox, and what follows from it. `burst`: more calls may come."""
    out = worker.owner.out
    push = worker.peers.push
    i = 0
    while i < len(out):
        effect = out[i]
        i += 1
        kind = type(effect)
        if kind is TaskRecord:
            if effect.remote is not None:
                push(effect)
        elif kind is tuple:
            waiter, entry = effect
            waiter.notify(entry)
            if isinstance(waiter, Waiter) and waiter.remaining <= 0:
                worker.pump.kick(waiter)
        else:
            _EFFECTS[kind](worker, effect)
    out.clear()
    if worker.peers.turn:
        worker.peers.end_turn(burst)


def _lease_wanted(worker: CoreWorker, effect: LeaseWanted) -> None:
    worker.raylet.send(wire.ToRaylet(lease_request=lease_request(worker, effect)))


def _lease_unwanted(worker: CoreWorker, effect: LeaseUnwanted) -> None:
    cancel = wire.LeaseCancel(request_id=effect.request_id)
    cancel.requester.node_id, cancel.requester.worker_id = worker.address
    worker.raylet.send(wire.ToRaylet(lease_cancel=cancel))


def _lease_done(worker: CoreWorker, effect: LeaseDone) -> None:
    worker.terms.pop(effect.lease_id, None)
    back = wire.LeaseReturn(
        lease_id=effect.lease_id, node_id=effect.remote.address[0], worker_exits=effect.failed
    )
    worker.raylet.send(wire.ToRaylet(lease_return=back))


def _paused(worker: CoreWorker, effect: Paused) -> None:
    worker.pump.hurry()


def _free(worker: CoreWorker, effect: Free) -> None:
    if worker.address[0] in effect.nodes:
        worker.store.delete(effect.object_id)  # at once: the next put finds warm memory
    worker.raylet.send(
        wire.ToRaylet(free_objects=wire.FreeObjects(object_ids=[effect.object_id], node_ids=effect.nodes))
    )


def _borrow_add(worker: CoreWorker, effect: BorrowAdd) -> None:
    worker.peers.send(effect.owner, frames.pack_object(frames.BORROW_ADD, effect.object_id, effect.borrower))


def _borrow_drop(worker: CoreWorker, effect: BorrowDrop) -> None:
    worker.peers.send(effect.owner, frames.pack_object(frames.BORROW_DROP, effect.object_id))


def _watch(worker: CoreWorker, effect: Watch) -> None:
    if worker.peers.hears_of(effect.borrower):
        return
    watch = wire.WatchWorker()
    watch.address.node_id, watch.address.worker_id = effect.borrower
    worker.raylet.send(wire.ToRaylet(watch=watch))


def _news(worker: CoreWorker, effect: News) -> None:
    news = wire.CopiesNews(
        object_id=effect.object_id, subscribers=effect.subscribers, added=effect.added,
        removed=effect.removed, is_nowhere=effect.is_nowhere, over=effect.over)  # fmt: skip
    worker.raylet.send(wire.ToRaylet(copies_news=news))


def _ask(worker: CoreWorker, effect: Ask) -> None:
    assert effect.entry.owner is not None
    worker.peers.send(effect.entry.owner, frames.pack_object(frames.ASK, effect.entry.id))


def _handle_gone(worker: CoreWorker, effect: HandleGone) -> None:
    worker.actors.out_of_scope(effect.actor_id)


def _actor_in_doubt(worker: CoreWorker, effect: ActorInDoubt) -> None:
    worker.actors.look_up(effect.actor_id)


_EFFECTS: dict[type, Callable[[CoreWorker, Any], None]] = {
    LeaseWanted: _lease_wanted,
    LeaseUnwanted: _lease_unwanted,
    LeaseDone: _lease_done,
    Paused: _paused,
    Free: _free,
    BorrowAdd: _borrow_add,
    BorrowDrop: _borrow_drop,
    Watch: _watch,
    News: _news,
    Ask: _ask,
    HandleGone: _handle_gone,
    ActorInDoubt: _actor_in_doubt,
}
