"""Waiting for objects: for all of a list (`get`), or for some of it (`wait`).

A list of thousands costs one native pass per look, and no registration per object: `All` waits
for the first object that is not ready and then looks on from there, and hears of every failure;
`Some` counts again after each turn in which anything became ready. Before all that a thread drains for
a moment and looks for itself. Any thread, outside the worker's lock.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miniray import _native
from miniray.core import why
from miniray.core.directory import FAILED, INLINE, PENDING, STORED, ObjectEntry
from miniray.exceptions import GetTimeoutError, RayError
from miniray.runtime import notes, past_session
from miniray.runtime.waiting import ATTEND_S, Waiter

if TYPE_CHECKING:
    from miniray._proto import gcs_pb2 as gcs
    from miniray.core.owner import Owner
    from miniray.ids import ObjectRef
    from miniray.runtime.worker import CoreWorker

    Refs = Sequence[ObjectRef[Any]]

ASKED_FROM_S = 1.0
"""A `get` with a timeout of at least this asks other processes, too, why it has nothing to return."""
ASK_S = 5.0

BLOCKED_AFTER_S = 0.002
"""A task that waits longer than this gives its CPU back and its queue away."""


class All(Waiter):
    """Until every one of the references is ready, or one of them has `failed`."""

    __slots__ = ("_owner", "_refs", "_next", "failed")

    def __init__(self, owner: Owner, refs: Refs) -> None:
        super().__init__(1)
        self._owner = owner
        self._refs = refs
        self._next = -1
        self.failed: ObjectEntry | None = None

    def notify(self, entry: ObjectEntry | None) -> None:
        """The one that we wait for is ready, or something failed. Under the worker's lock."""
        if self.remaining <= 0:
            return
        if entry is None or entry.state == FAILED:
            failed = _native.first_failed(self._refs)
            if failed >= 0:
                self.failed = self._refs[failed].entry
                self._end()
                return
        index = _native.first_pending(self._refs, max(self._next, 0))
        if index < 0:
            self._end()
        elif index != self._next or entry is self._refs[index].entry:
            self._next = index
            self._owner.await_entry(self._refs[index].entry, self)

    def _end(self) -> None:
        self.remaining = 0
        self.signal()


class Some(Waiter):
    """Until `needed` of the references are ready."""

    __slots__ = ("_owner", "_refs", "_needed")

    def __init__(self, owner: Owner, refs: Refs, needed: int) -> None:
        super().__init__(1)
        self._owner = owner
        self._refs = refs
        self._needed = needed

    def notify(self, entry: Any) -> None:
        """Something became ready. Under the worker's lock."""
        if _native.count_ready(self._refs, self._needed) < self._needed:
            self._owner.watch(self)
            return
        self.remaining = 0
        self.signal()


def _start(worker: CoreWorker, refs: Refs, waiter: Waiter, what: str = "Ray objects") -> None:
    """Ask the owners of what is borrowed, all at once, and take a first look."""
    with worker.lock:
        unknown = _native.unknown(refs)
        past_session.refuse(unknown, what)
        for entry in unknown:
            worker.owner.ask(entry)
        waiter.notify(None)
        worker.drain()


def attended(worker: CoreWorker, refs: Refs, first: int, timeout: float | None) -> bool:
    """Whether all become ready while this thread drains for a moment; `first` is not ready now.

    A failure among them is found out when they are read, or by `await_all` if that takes longer.
    """
    entry = refs[first].entry
    if entry.state != PENDING or entry.owner is not None or (timeout is not None and timeout < ATTEND_S):
        return False    # another process has to be asked, or there is no time

    def are_ready() -> bool:
        nonlocal first
        first = _native.first_pending(refs, first)
        return first < 0

    return worker.pump.attend(are_ready)


def await_all(
    worker: CoreWorker, refs: Refs, deadline: float | None, timeout: float | None
) -> ObjectEntry | None:
    """Until all have a value or a location, or one has failed: that one is returned.

    GetTimeoutError names one that is not ready.
    """
    waiter = All(worker.owner, refs)
    with worker.lock:
        worker.owner.watch_failures(waiter)
    try:
        _start(worker, refs, waiter)
        inquiry = None
        in_time = wait_yielding(worker, waiter, _ask_at(deadline, timeout))
        if not in_time and timeout is not None and timeout >= ASKED_FROM_S:
            inquiry = _Inquiry(worker, refs, min(ASK_S, timeout / 2))
            in_time = wait_yielding(worker, waiter, deadline)
    finally:
        with worker.lock:
            worker.owner.unwatch(waiter)
    late = -1 if in_time else _native.first_pending(refs)
    if late >= 0:
        raise _timed_out(worker, refs[late].entry, timeout, inquiry)
    return waiter.failed


def note_unreadable(error: Exception, entry: ObjectEntry) -> None:
    """What `get` raises because a value does not unpickle says which one that is."""
    if entry.state in (INLINE, STORED) and not isinstance(error, RayError):
        notes.add(error, why.titled(entry) + " was unpickled")


def _ask_at(deadline: float | None, timeout: float | None) -> float | None:
    """When a wait that will probably be too long asks the others why: before its deadline, not after."""
    if deadline is None or timeout is None or timeout < ASKED_FROM_S:
        return deadline
    return deadline - min(ASK_S, timeout / 2)


class _Inquiry(threading.Thread):
    """Asks the cluster why the first of the references that is not ready is not."""

    def __init__(self, worker: CoreWorker, refs: Refs, within_s: float) -> None:
        super().__init__(name="miniray-why", daemon=True)
        self._worker = worker
        self._within_s = within_s
        self.asked_at = time.monotonic()
        self.is_answered = False
        late = _native.first_pending(refs)
        self.entry: ObjectEntry | None = refs[late].entry if late >= 0 else None
        self.chain: list[str] = []
        self.start()

    def run(self) -> None:
        """The answer, or nothing: the owner's own view will do."""
        from miniray.runtime import explaining

        def request(query: gcs.ExplainQuery) -> gcs.Explanation:
            found: gcs.Explanation = self._worker.request("explain", query).explanation
            self.is_answered = True
            return found

        with contextlib.suppress(RayError):
            if self.entry is not None:
                self.chain = list(explaining.ask(request, self.entry.id, self._within_s).chain)


def await_some(worker: CoreWorker, refs: Refs, needed: int, timeout: float | None) -> None:
    """Until `needed` of `refs` have, or `timeout` seconds are over."""
    waiter = Some(worker.owner, refs, needed)
    _start(worker, refs, waiter, "Ray object")
    if not wait_yielding(worker, waiter, None if timeout is None else time.monotonic() + timeout):
        with worker.lock:
            worker.owner.unwatch(waiter)


def await_one(worker: CoreWorker, entry: ObjectEntry, deadline: float | None) -> None:
    """Until this object, which was ready before, is so again."""
    waiter = Waiter(1)
    with worker.lock:
        if entry.ready:
            return
        worker.owner.await_entry(entry, waiter)
        worker.drain()
    if not wait_yielding(worker, waiter, deadline) and not entry.ready:
        raise _timed_out(worker, entry, None)


def _timed_out(
    worker: CoreWorker, entry: ObjectEntry, timeout: float | None, inquiry: _Inquiry | None = None
) -> GetTimeoutError:
    with worker.lock:
        links = why.chain(worker.owner, entry, time.monotonic())
    if inquiry is not None and inquiry.entry is entry:
        links = _joined(links, inquiry.chain, f"{worker.address[1].hex()[:12]} (pid ")
        if not inquiry.is_answered and inquiry.is_alive():
            links.append(why.silent_head(time.monotonic() - inquiry.asked_at, _local_daemon(worker)))
    because = "\n  because ".join(links)
    after = f" after {timeout} s" if timeout is not None else ""
    return GetTimeoutError(f"Get timed out: object {entry.id.hex()} is not ready{after}: {because}")


def _local_daemon(worker: CoreWorker) -> int:
    """The pid of a local session's daemon, which is its own head; 0 in a cluster."""
    from miniray.runtime import sessions

    mine = (one for one in sessions.living() if one.directory == worker.session_dir and not one.address)
    return next((one.pid for one in mine), 0)


def _joined(own: list[str], told: list[str], me: str) -> list[str]:
    """What this process knows, and what the others said. It may itself have been too slow to answer."""
    others = [link for link in told if me not in link.partition(")")[0]]
    if len(others) < len(told):
        return own + others
    return told if len(told) > len(own) else own


def wait_yielding(worker: CoreWorker, waiter: Waiter, deadline: float | None) -> bool:
    """Wait; a task that waits long gives its CPU and its queue back meanwhile."""
    executor = worker.executor
    if executor is None or not executor.on_task_thread():
        return worker.pump.wait(waiter, deadline)
    soon = time.monotonic() + BLOCKED_AFTER_S
    if worker.pump.wait(waiter, soon if deadline is None else min(soon, deadline)):
        return True
    executor.blocked()
    try:
        return worker.pump.wait(waiter, deadline)
    finally:
        executor.unblocked()
