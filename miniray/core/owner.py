"""The owner: everything a worker or driver decides about its own tasks, calls and objects.

Composes `directory` (objects), `ownership` (references), `subscribers` (who hears of copies),
`submission` (tasks on leases) and `calls` (actors) over one outbox. The worker library feeds it under one
lock; the simulator feeds the same code from a virtual network.

Task life::

    submitted ─ unresolved arguments? ─▶ WAITING ─ all have values ─▶ READY ─▶ PUSHED ─▶ done
                                           ▲                            ▲         │
                                           └── an argument failed: done └─ retry ─┘

Effects, in the order they must be carried out: `TaskRecord` (push it to `record.remote`),
`(waiter, entry)` (a getter's object is ready; None: an owner that was to answer has died), and
the dataclasses of the parts and `Ask`. Errors are opaque here: the shell gives and takes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import ids, why
from .calls import DEAD, RESTARTING, ActorCalls, ActorClient
from .contract import Stories
from .directory import (
    FAILED,
    FREED,
    INLINE,
    PENDING,
    STORED,
    UNKNOWN,
    Address,
    Directory,
    ObjectEntry,
    attempt_ended,
)
from .lineage import LIMIT_BYTES, Lineage, NotRebuilt
from .ownership import BorrowAdd, Free, Ownership
from .submission import Remote, Submission
from .subscribers import Subscribers
from .tasks import CANCELLED, FINISHED, PUSHED, WAITING, TaskRecord

FINISHED_KEPT = 20_000
"""Finished records kept for the event sender; beyond that they are counted as dropped."""


@dataclass(slots=True)
class Ask:
    """Ask the owner of a borrowed object for its value or its locations."""

    entry: ObjectEntry


@dataclass(slots=True)
class Result:
    """One return value as a worker reported it: INLINE (bytes), STORED (None) or FAILED (error)."""

    state: int
    value: Any
    size: int = 0
    contents: tuple[tuple[bytes, Address | None], ...] = ()


def _contents(entry: ObjectEntry) -> list[ObjectEntry]:
    """The references inside its value or error, as far as this process counts them."""
    return entry.rare.contents if entry.rare is not None else []


def _may_hold(failed: ObjectEntry) -> bool:
    """Whether there may be references inside its error; of a borrowed one only its owner knows."""
    return failed.owner is not None or bool(_contents(failed))


class Owner:
    """The machine of one worker or driver process."""

    def __init__(self, me: Address, lineage_bytes: int = LIMIT_BYTES) -> None:
        self.me = me
        self.out: list[Any] = []
        self.remotes: dict[Address, Remote] = {}
        self.directory = Directory()
        self.lineage = Lineage(self.directory, lineage_bytes)
        self.ownership = Ownership(me, self.directory, self.lineage, self.out)
        self.submission = Submission(self.out, self.remotes)
        self.calls = ActorCalls(self.out, self.remotes)
        self.subscribers = Subscribers(self.directory, self.out)
        self.ownership.token_freed = self.calls.handles_gone
        self.ownership.stored_freed = self.subscribers.over
        self.calls.let_go = self.ownership.unpinned
        self.submission.still_ready = self.calls.still_ready = self._still_ready
        self.cancelled_error: Callable[[TaskRecord], Any] = lambda record: "cancelled"
        """The error of a task that was given up, in the shell's form."""
        self.argument_failed: Callable[[TaskRecord, ObjectEntry], Any] = lambda record, entry: entry.value
        """Gives the error of a task whose argument has failed; what it is made of is the shell's business."""
        self.words_of: Callable[[Any], list[str]] = lambda error: [error.message] if error is not None else []
        """An error as links of a chain; what errors are made of is the shell's business."""
        self.finished: list[TaskRecord] = []
        self.finished_dropped = 0
        self.unfinished = 0
        self._cascade: deque[tuple[TaskRecord, ObjectEntry]] = deque()
        self._cascading = False
        self._watchers: dict[Any, None] = {}
        self._failure_watchers: dict[Any, None] = {}
        self._stories = Stories()

    # ---- submitting

    def submitted(self, now: float, record: TaskRecord) -> None:
        """A task or actor call was made. Its returns are already in the directory."""
        self.unfinished += 1
        held = record.held
        if held is not None:
            for entry in held:
                entry.pins += 1
        if record.dependencies is not None:
            self._await_dependencies(record)
        client = record.client
        if client is not None:
            restarting = client.state == RESTARTING and client.failure is not None
            if client.state == DEAD or (restarting and record.retries_left == 0):
                self.failed(now, record, client.failure)
            elif record.error is not None:
                self.failed(now, record, record.error)
            else:
                self.calls.submitted(now, record)
        elif record.error is not None:
            self.failed(now, record, record.error)
        elif not record.unresolved:
            self.submission.ready(now, record)

    def _await_dependencies(self, record: TaskRecord) -> None:
        for entry in record.dependencies or ():
            if entry.state == PENDING or entry.state == UNKNOWN:
                record.unresolved += 1
                self.await_entry(entry, record)
            elif entry.state == FAILED:
                record.error = self.argument_failed(record, entry)

    def _still_ready(self, record: TaskRecord) -> bool:
        """A resolved argument may be lost, and made again, before the task is pushed."""
        if all(entry.ready for entry in record.dependencies or ()):
            return True
        record.state = WAITING
        self._await_dependencies(record)
        return False

    def await_entry(self, entry: ObjectEntry, waiter: Any) -> None:
        """`waiter` wants the object; a borrowed one is asked for once."""
        self.directory.await_(entry, waiter)
        if entry.state == UNKNOWN:
            self.ask(entry)

    def ask(self, entry: ObjectEntry) -> None:
        """Somebody here wants to know the borrowed object, which nobody has asked for yet."""
        entry.state = PENDING
        self.out.append(Ask(entry))

    def watch(self, waiter: Any) -> None:
        """`waiter` wants to hear, once, when anything has become ready."""
        self._watchers[waiter] = None

    def watch_failures(self, waiter: Any) -> None:
        """`waiter` wants to hear of every object that fails."""
        self._failure_watchers[waiter] = None

    def unwatch(self, waiter: Any) -> None:
        """It wants to hear of nothing any more."""
        self._watchers.pop(waiter, None)
        self._failure_watchers.pop(waiter, None)

    def _dependency_ready(self, now: float, record: TaskRecord, entry: ObjectEntry) -> None:
        if record.done:
            return
        record.unresolved -= 1
        if entry.state == FAILED and record.error is None:
            record.error = self.argument_failed(record, entry)
        if record.error is not None:
            if record.client is not None:
                self.calls.withdrawn(now, record)
            self.failed(now, record, record.error)
        elif not record.unresolved:
            if record.client is not None:
                self.calls.flush(now, record.client)
            else:
                self.submission.ready(now, record)

    # ---- answers

    def replied(
        self,
        now: float,
        remote: Remote,
        call: int,
        spent_us: float,
        results: list[Result],
        retained: list[bytes] | None = None,
        again: bool = False,
    ) -> TaskRecord | None:
        """The worker finished call number `call`. Returns the record, None for a stale reply.

        `again`: it raised, and the caller wants another attempt for that if one is left.
        """
        record = self.submission.replied(now, remote, call, spent_us)
        if record is None:
            return None
        if retained:
            for oid in retained:
                self.ownership.borrow_added(oid, remote.address)
        if again and self.retry(now, record, raised=True):
            self._passed_over(results, remote.address)
            self._stories.note(now, record.id, f"attempt {record.attempt} raised, and runs again")
            return record
        self._answered(now, record, results, remote.address)
        return record

    def _answered(self, now: float, record: TaskRecord, results: list[Result], source: Address) -> None:
        """The task has ended and these are its results."""
        for result in results:
            if result.state == FAILED and not record.cancel_requested:
                record.error = result.value     # for whoever asks later: the references may be gone
        stored = record.stream is not None      # perhaps: its items are in the record
        values = results if record.stream is None else results[:1]
        for entry, result in zip(record.returns, values, strict=False):
            self.settle(now, entry, result, source)
            if result.state == STORED:
                stored = True
        if stored and record.held is None:      # else `_done` sees to it, before it unpins
            self.lineage.done(record)
        unclaimed = results[min(len(record.returns), len(values)) :]
        inner = [one for result in unclaimed for one in self._met(result, source)]
        if record.stream is not None:
            record.stream.ended(results, inner or _contents(record.returns[0]))
        for one in inner:
            self.ownership.consider(one)
        self._done(now, record, FINISHED)

    def _passed_over(self, results: list[Result], source: Address) -> None:
        """Nobody gets these: their references are given back."""
        for result in results:
            for one in self._met(result, source):
                self.ownership.consider(one)

    def replied_inline(
        self, now: float, remote: Remote, call: int, spent_us: float, value: bytes
    ) -> TaskRecord | None:
        """`replied` for nearly all answers: one small value without references."""
        record = self.submission.replied(now, remote, call, spent_us)
        if record is None:
            return None
        entry = record.returns[0] if len(record.returns) == 1 else None
        if (
            entry is None
            or entry.state != PENDING
            or entry.waiters is not None
            or self._watchers
            or record.stream is not None
        ):
            self._answered(now, record, [Result(INLINE, value, len(value))], remote.address)
            return record
        entry.state = INLINE
        entry.value = value
        entry.size = len(value)
        if entry.local <= 0 and entry.pins <= 0:
            self.ownership.consider(entry)
        self._done(now, record, FINISHED)
        return record

    def settle(self, now: float, entry: ObjectEntry, result: Result, source: Address) -> None:
        """One object got its value (on the node of `source` if STORED) or its error."""
        if entry.state == FREED:
            self._discard(entry, result, source)
            return
        if result.state == STORED:
            entry.more().locations[source[0]] = None
        if result.contents:
            self.ownership.contains(entry, self._met(result, source))
        self.complete(now, entry, result.state, result.value, result.size)
        if entry.local <= 0 and entry.pins <= 0:
            self.ownership.consider(entry)

    def _met(self, result: Result, source: Address) -> list[ObjectEntry]:
        """The references inside a result: whoever returned it has entered us with their owners."""
        inner = []
        for oid, owner in result.contents:
            one = self.directory.know(oid, None if owner == self.me else owner)
            if one.owner is not None:
                self.ownership.entered(one, source)
            inner.append(one)
        return inner

    def introduced(self, oid: bytes, owner: Address, introducer: Address) -> None:
        """The owner of an object has entered us as its holder by word of `introducer`."""
        self.ownership.introduced(oid, owner, introducer, introducer in self.remotes)

    def _discard(self, entry: ObjectEntry, result: Result, source: Address) -> None:
        """A task ran again for another return; nobody can reach this one any more."""
        if result.state == STORED:
            self.out.append(Free(entry.id, [source[0]]))
        for one in self._met(result, source):
            self.ownership.consider(one)

    def complete(self, now: float, entry: ObjectEntry, state: int, value: Any, size: int = 0) -> None:
        """The object is ready: wake what waits for it."""
        waiters = self.directory.complete(entry, state, value, size)
        if self.subscribers.of:
            self._tell_of_copies(entry)
        if self._watchers:
            self.out.extend((watcher, entry) for watcher in self._watchers)
            self._watchers.clear()
        if state == FAILED and self._failure_watchers:
            self.out.extend((watcher, entry) for watcher in self._failure_watchers)
        if not waiters:
            return
        cascade = self._cascade
        for waiter in waiters:
            if type(waiter) is TaskRecord:
                cascade.append((waiter, entry))
            else:
                self.out.append((waiter, entry))
        if not self._cascading:     # a failure runs down a chain of any length: no recursion
            self._cascading = True
            while cascade:
                self._dependency_ready(now, *cascade.popleft())
            self._cascading = False

    def _tell_of_copies(self, entry: ObjectEntry) -> None:
        """It is ready, perhaps made anew while raylets look for a copy."""
        if entry.state != STORED:
            self.subscribers.over(entry.id)
        for node in entry.locations:
            self.subscribers.added(entry.id, node)

    def failed(self, now: float, record: TaskRecord, error: Any) -> None:
        """The task ends with `error` for every return."""
        if record.done:
            return
        record.error = error
        behind = [one for one in record.dependencies or () if one.state == FAILED and _may_hold(one)]
        for entry in record.returns if behind else ():
            if entry.state == PENDING:      # its error is made of theirs
                self.ownership.contains(entry, behind)
        if record.remote is not None:
            attempt_ended(record.returns, record.remote.address[0])
        self._done(now, record, CANCELLED if record.cancel_requested else FINISHED)
        if record.stream is not None:
            record.stream.failed(error)
        for entry in record.returns:
            self.complete(now, entry, FAILED, error)
            if entry.local <= 0 and entry.pins <= 0:
                self.ownership.consider(entry)

    def retry(self, now: float, record: TaskRecord, raised: bool = False) -> bool:
        """Run it again if attempts are left; False if not. `raised`: user code did, and may need time."""
        if record.retries_left == 0 or record.cancel_requested or record.done:
            return False
        if record.retries_left > 0:
            record.retries_left -= 1
        record.attempt += 1
        if record.remote is not None:
            attempt_ended(record.returns, record.remote.address[0])
        record.remote = None
        record.state = WAITING
        client: ActorClient | None = record.client
        if client is None and raised and record.attempt > 1:
            self.submission.ready_later(now, record)
        elif client is None:
            self.submission.ready(now, record)
        elif client.state == DEAD:
            self.failed(now, record, client.failure)
        else:
            self.calls.again(now, record)
        return True

    def _done(self, now: float, record: TaskRecord, state: int) -> None:
        record.state = state
        record.done = True
        record.ended_at = now
        self.unfinished -= 1
        held = record.held
        if held is not None:
            self.lineage.done(record)
            for entry in held:
                self.ownership.unpinned(entry)
        client = record.client
        if client is not None:
            if client.held is not None:
                self.calls.answered(client)
            elif not client.handles:
                self.calls.consider(client)
        if len(self.finished) < FINISHED_KEPT:
            self.finished.append(record)
        else:
            self.finished_dropped += 1

    # ---- cancellation

    def cancelled(self, now: float, record: TaskRecord, error: Any) -> bool:
        """The user gave the task up. True if it ended at once; else it has been pushed already.

        One that has ended stays as it is, but will not run again for a lost object.
        """
        record.cancel_requested = True
        if record.done:
            return True
        if record.state == PUSHED:
            return False
        if record.client is not None:
            self.calls.withdrawn(now, record)
        elif not record.unresolved:
            self.submission.cancelled(record)
        self.failed(now, record, error)
        return True

    def children(self, parent: bytes) -> list[TaskRecord]:
        """What the task `parent` has started here and what has not ended yet."""
        found = {
            record: None
            for source in (
                (entry.task for entry in self.directory.objects.values()),
                (record for lane in self.submission.lanes.values() for record in lane.queue),
                (record for remote in self.remotes.values() for record in remote.inflight.values()),
            )
            for record in source
            if record is not None and record.parent == parent and not record.done
        }
        return list(found)

    # ---- the cluster's news

    def lease_refused(self, now: float, request_id: int, error: Any) -> None:
        """The raylet says it can never be: the waiting tasks of that lane fail with the reason."""
        for record in self.submission.lease_refused(request_id):
            self._stories.note(now, record.id, f"refused: {getattr(error, 'message', '')}")
            self.failed(now, record, error)

    def remote_gone(
        self,
        now: float,
        address: Address,
        error: Any,
        started: bool = True,
        replies_lost: bool = False,
        owner_error: Any = None,
    ) -> None:
        """A worker process has ended, or with worker id b"" a raylet. `error` is for the tasks that cannot
        be retried, `owner_error` for the objects it owned whose value nobody has told us (default: `error`).

        The oldest task in flight was running; those behind it had not begun and go back to the
        queue at no cost. `started` False: not even the oldest had. `replies_lost`: its last
        replies may not have come through (its whole node is gone), so any of them may have begun.
        """
        remote = self.remotes.pop(address, None)
        if not address[1]:
            self.subscribers.node_gone(address[0])
        for waiter in self.ownership.worker_gone(address):
            self.out.append((waiter, None))
        for entry in list(self.directory.objects.values()):
            if entry.owner == address and not entry.ready:
                self.complete(now, entry, FAILED, error if owner_error is None else owner_error)
        if remote is None:
            return
        for client in self.calls.clients.values():
            if client.remote is remote:
                self.calls.remote_gone(now, client)
        lane = remote.lane
        for position, record in enumerate(self.submission.remote_gone(now, remote)):
            if record.cancel_requested:
                self.failed(now, record, self.cancelled_error(record))
            elif started and (position == 0 or replies_lost):
                text = getattr(error, "message", "") or "its worker has ended"
                self._stories.note(now, record.id, f"attempt {record.attempt + 1} failed: {text}")
                if not self.retry(now, record):
                    self.failed(now, record, error)
            else:
                record.remote = None
                self.submission.ready(now, record)
        if lane is not None:
            self.submission.dispatch(now, lane)

    def actor_updated(
        self, now: float, actor_id: bytes, state: str, address: Address | None, restarts: int, failure: Any
    ) -> None:
        """News of an actor; calls that it will never answer fail with `failure`."""
        self._stories.note(now, actor_id, f"{state} {getattr(failure, 'message', '')}".rstrip())
        for record in self.calls.updated(now, actor_id, state, address, restarts, failure):
            self.failed(now, record, failure)
        client = self.calls.clients.get(actor_id)
        if client is not None:
            self.calls.consider(client)

    def location_added(self, oid: bytes, node: bytes) -> None:
        """A node has fetched a copy. One that comes after the object's end is deleted at once."""
        entry = self.directory.find(oid)
        self.subscribers.ended(oid, node)
        if entry is None:
            self.out.append(Free(oid, [node]))
        elif entry.state == STORED:
            entry.more().locations[node] = None
            self.subscribers.added(oid, node)
        elif entry.owner is None:
            entry.more().tried[node] = None

    def location_removed(self, now: float, oid: bytes, node: bytes) -> bool:
        """A node has no copy any more. True if the object is lost and its task runs again."""
        entry = self.directory.find(oid)
        if entry is None or entry.state != STORED or entry.rare is None:
            return False
        if node in entry.rare.locations:
            del entry.rare.locations[node]
            entry.rare.tried[node] = None   # perhaps it was only out of reach
            self.subscribers.removed(entry, node)
        return bool(entry.rare.locations) is False and entry.owner is None

    def rebuild(self, now: float, entry: ObjectEntry) -> NotRebuilt | None:
        """Make a lost object again: run its task, and those of arguments that are freed by now.

        Returns why it cannot be made: `put`, actor result, no attempt left, forgotten.
        """
        records = self.lineage.plan(entry)
        if isinstance(records, NotRebuilt):
            return records
        self.directory.reopen(entry)
        self.subscribers.is_nowhere(entry.id)
        self._stories.note(now, entry.id, "every copy is lost: its task runs again")
        for record in records:
            self._stories.note(now, record.id, "runs again: a result of it is lost, or needed for one")
            record.done = False
            record.error = None
            record.attempt += 1
            record.retries_left -= record.retries_left > 0
            record.remote = None
            record.state = WAITING
            self.unfinished += 1
            self.lineage.reopen(record)
        for record in records:
            self._await_dependencies(record)
            if record.error is not None:
                self.failed(now, record, record.error)
            elif record.client is not None and record.client.state == DEAD:
                self.failed(now, record, record.client.failure)
            elif record.client is not None:
                self.calls.again(now, record)
            elif not record.unresolved:
                self.submission.ready(now, record)
        return None

    def lost(self, entry: ObjectEntry, error: Any) -> None:
        """The last copy is gone and cannot be made again: `error` is what is left."""
        entry.state = FAILED
        entry.value = error
        self.subscribers.over(entry.id)

    @property
    def lends(self) -> bool:
        """Whether other processes hold objects, or actors, that end with this one."""
        return any(
            entry.owner is None and entry.rare is not None and entry.rare.borrowers
            for entry in self.directory.objects.values()
        )

    # ---- machine

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        times = (self.submission.next_deadline(), self.calls.next_deadline())
        return min((due for due in times if due is not None), default=None)

    def tick(self, now: float) -> None:
        """Time has reached `now`."""
        self.submission.tick(now)
        self.calls.tick(now)

    def check(self) -> None:
        """Every invariant of the parts, and that nothing unfinished waits for nothing."""
        self.directory.check()
        self.ownership.check()
        self.subscribers.check()
        self.lineage.check()
        self.submission.check()
        self.calls.check()
        assert self.unfinished >= 0

    def why(self, entry: ObjectEntry, now: float | None = None) -> str:
        """Why the object is not ready, as a chain of clauses (see `core.why`)."""
        return ": ".join(why.chain(self, entry, now))

    def record_of(self, tid: bytes) -> TaskRecord | None:
        """The task with this id, while one of its results is known here."""
        entry = self.directory.find(ids.object_id(tid, 1))
        return entry.task if entry is not None else None

    def dump(self) -> dict[str, Any]:
        """Counts by kind and state."""
        states: dict[int, int] = {}
        for entry in self.directory.objects.values():
            states[entry.state] = states.get(entry.state, 0) + 1
        return {
            "objects": states,
            "unfinished": self.unfinished,
            "queued": sum(len(lane.queue) for lane in self.submission.lanes.values()),
            "leases": sum(len(lane.leases) for lane in self.submission.lanes.values()),
            "actors": {c.id.hex(): c.state for c in self.calls.clients.values()},
        }

    def story(self, key: bytes) -> list[str]:
        """What happened to one task, actor or object; what every task goes through is not noted."""
        record = self.record_of(key) if len(key) == ids.TASK_ID_SIZE else None
        lines = self._stories.of(key) + (why.told(record) if record is not None else [])
        return sorted(lines, key=lambda line: float(line.partition(" ")[0]))


__all__ = ["Ask", "BorrowAdd", "INLINE", "Owner", "Result"]
