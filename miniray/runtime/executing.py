"""What this process executes at this moment, seen from another of its threads.

Nothing is kept for it while tasks run: threads are found by their frames, and what a thread waits
for stands in the local variables of the library's own functions. So a look costs something and
running costs nothing. Any thread that has the interpreter lock; the answer is a snapshot.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from miniray.core.directory import ObjectEntry
from miniray.runtime import awaiting, frames, local_objects, streams
from miniray.runtime.executor import Executor
from miniray.runtime.own_code import is_library, is_package, place
from miniray.runtime.task_context import TaskContext

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

ROOM = "room in the object store"


@dataclass
class Doing:
    """One task on one thread (or, in an asyncio actor, one coroutine)."""

    context: TaskContext
    line: str = ""
    """Where the user's code is: "file:line in function"."""
    waits: list[bytes] = field(default_factory=list)
    """Objects that it waits for inside `get`, `wait` or while its arguments come."""
    bringing: bool = False
    """They are its arguments."""
    group: bytes = b""
    """A placement group that it waits for."""
    ahead: tuple[int, int] = (0, 0)
    """Items of a generator that its consumer has not taken, and how many may be so."""
    room: int = 0
    """Bytes of the store that it waits for."""
    since: float = 0.0
    """When it began, on the monotonic clock; 0 where nobody knows."""

    @property
    def title(self) -> str:
        """The task in words."""
        return f"{self.context.name or 'a task'} ({self.context.task_id.hex()[:12]})"


def doing(worker: CoreWorker) -> list[Doing]:
    """Every task that runs here, oldest thread first."""
    executor = worker.executor
    if not isinstance(executor, Executor):
        return []
    found = {}
    for ident, frame in sys._current_frames().items():
        context = _context_of(frame)
        if context is not None:
            found[context.task_id] = _seen(frame, context)
            if executor.running is not None and ident == executor.main:
                found[context.task_id].since = executor.running_since
    for one in _coroutines(executor):
        found.setdefault(one.context.task_id, one)
    return list(found.values())


def queued(worker: CoreWorker) -> list[bytes]:
    """Ids of the tasks that are here and have not begun, first come first."""
    executor = worker.executor
    if not isinstance(executor, Executor):
        return []
    waiting = [frames.PUSH_HEADER.unpack_from(frame)[6] for _peer, frame in list(executor.queue)]
    if executor.concurrency is not None:
        waiting += executor.concurrency.not_begun()
    return waiting


def _walk(frame: FrameType | None) -> Iterator[FrameType]:
    """From the innermost outwards."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _context_of(frame: FrameType) -> TaskContext | None:
    for one in _walk(frame):
        if one.f_code in (Executor.execute.__code__, Executor._create_actor.__code__):
            found = one.f_locals.get("context")
        elif one.f_code.co_name == "_run" and one.f_code.co_filename.endswith("concurrency.py"):
            found = getattr(one.f_locals.get("call"), "context", None)
        else:
            continue
        return found if isinstance(found, TaskContext) else None
    return None


def _seen(frame: FrameType, context: TaskContext) -> Doing:
    found = Doing(context)
    outside = []
    for one in _walk(frame):
        _note_wait(found, one)
        if not is_package(one.f_code.co_filename):
            outside.append(one)
    found.line = _line_of(outside)
    return found


def _line_of(frames_inwards_out: list[FrameType]) -> str:
    """The innermost place in code of the user, or else of a library."""
    own = (one for one in frames_inwards_out if not is_library(one.f_code.co_filename))
    chosen = next(own, frames_inwards_out[0] if frames_inwards_out else None)
    return place(chosen) if chosen is not None else ""


def _note_wait(found: Doing, frame: FrameType) -> None:
    """What a frame of the library says about the thread's waiting."""
    code, values = frame.f_code, frame.f_locals
    if code in (awaiting.await_all.__code__, awaiting.await_some.__code__):
        found.waits += [ref.entry.id for ref in values.get("refs", ()) if not ref.entry.ready]
    elif code in (awaiting.await_one.__code__, local_objects.pull.__code__):
        entry = values.get("entry")
        if isinstance(entry, ObjectEntry) and entry.id not in found.waits:
            found.waits.append(entry.id)
    elif code is local_objects.fetch.__code__:
        found.bringing = True
    elif code.co_name == "_wait" and code.co_filename.endswith("/util/placement_group.py"):
        found.group = values.get("group_id", b"")
    elif code is streams.Progress.wait_for.__code__:
        progress = values["self"]
        found.ahead = values["produced"] - progress.consumed, progress.limit
    elif code is local_objects.make_room.__code__:
        found.room = values.get("size", 0)


def _coroutines(executor: Executor) -> Iterator[Doing]:
    """Calls of an asyncio actor, and where each of them is suspended."""
    begun = getattr(executor.concurrency, "begun", None)
    for call in begun() if begun is not None else ():
        outside: list[FrameType] = []
        step = call.task.get_coro()
        while step is not None:
            frame = getattr(step, "cr_frame", None) or getattr(step, "ag_frame", None)
            if frame is not None and not is_package(frame.f_code.co_filename):
                outside.insert(0, frame)
            step = getattr(step, "cr_await", None) or getattr(step, "ag_await", None)
        awaited = getattr(getattr(call.task, "_fut_waiter", None), "object_id", None)
        yield Doing(call.context, _line_of(outside), [awaited] if awaited else [])


# ---- in words


def links(one: Doing, now: float) -> tuple[list[str], bytes]:
    """What a task does, as links of a chain, and the object it waits for."""
    found, following = _links(one, now)
    if one.context.cancelled:
        ago = f"{now - one.context.cancelled:.1f} s ago"
        told = f"{one.title} was told to end by ray.cancel() {ago}, and runs on"
        found.append(told + (f" at {one.line}" if one.line else ""))
    return found, following


def _links(one: Doing, now: float) -> tuple[list[str], bytes]:
    since = f" since {now - one.since:.1f} s" if one.since else ""
    at = f" at {one.line}" if one.line else ""
    if one.room:
        return [f"{one.title} runs here{since}, and waits for {one.room} bytes of {ROOM}{at}"], b""
    if one.ahead[0]:
        count, limit = one.ahead
        waits = f"waits for its consumer: {count} items ahead, {limit} allowed"
        return [f"{one.title} runs here{since}, and {waits}{at}"], b""
    if one.waits:
        more = f" and {len(one.waits) - 1} others" if len(one.waits) > 1 else ""
        what = "its argument" if one.bringing else "object"
        first = one.waits[0]
        return [f"{one.title} runs here{since}, and waits for {what} {first.hex()}{more}{at}"], first
    if one.group:
        what = f"placement group {one.group.hex()[:12]}"
        return [f"{one.title} runs here{since}, and waits for {what}"], one.group
    return [f"{one.title} runs here{since}{at}"], b""


def stack_of(worker: CoreWorker) -> str:
    """The Python stack of every thread, as text; tasks are named."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    now = time.monotonic()
    tasks: dict[int, Any] = {ident: _context_of(frame) for ident, frame in sys._current_frames().items()}
    parts = []
    for ident, frame in sys._current_frames().items():
        context = tasks.get(ident)
        runs = f", runs {_seen(frame, context).title}" if context is not None else ""
        parts.append(f"Thread {names.get(ident, ident)}{runs}:\n" + "".join(traceback.format_stack(frame)))
    for one in doing(worker):
        parts.append("".join(f"  {link}\n" for link in links(one, now)[0]))
    return "".join(parts)
