"""Who drains the rings: one thread at a time, without a thread hop for a synchronous call.

Exactly one thread of a process may poll the mailbox; it holds the *right*. A thread that waits
in `get` (or a worker's main thread that waits for work) takes the right and drains by itself, so
a call and its answer need no other thread. When nobody waits, the helper thread takes over after
`LULL_S`, sleeps on the doorbell and keeps queues moving while user code computes.

::

    getter ── takes the right ──▶ poll, handle, spin, sleep … until its own wait is over ── hands on
    helper ── parked while getters come and go; holds the right in a lull

All waits are `Waiter`s: they end when `remaining` is 0, whoever handled the frame. Before it becomes
one, a thread may `attend`: most answers come within microseconds, and who drains sees them for himself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from miniray.exceptions import RaySystemError

LULL_S = 0.005
"""The helper takes over when no thread has drained for this long."""

SPIN_US = 60
"""How long a getter spins before it sleeps: a peer's Python turn takes 10 to 25 us."""

ATTEND_S = 0.001
"""So long a thread may drain for itself before it registers what it waits for."""

TICK_EVERY_S = 0.005
"""Housekeeping of threads that only ever attend."""

FOREVER = 3600.0
STOP_S = 2.0

POLL_LIMIT = 512
"""Frames of one turn; fewer than that mean that the rings were read empty."""


class Waiter:
    """A thread that waits for `remaining` things."""

    __slots__ = ("remaining", "_lock", "ident")

    def __init__(self, remaining: int) -> None:
        self.remaining = remaining
        self.ident = 0
        self._lock: Any = None

    def notify(self, entry: Any) -> None:
        """One of the things happened. Called under the worker's lock."""
        self.remaining -= 1
        if self.remaining <= 0:
            self.signal()

    def signal(self) -> None:
        """Make the thread look again."""
        lock = self._lock
        if lock is not None and lock.locked():
            lock.release()

    def sleep(self, timeout: float) -> None:
        """Until signalled, or the time is over."""
        self._lock.acquire(timeout=timeout)

    def arm(self) -> None:
        """Ready to sleep: a signal from now on is not lost."""
        if self._lock is None:
            self._lock = threading.Lock()
        self._lock.acquire(False)


class Callback:
    """Something to call, outside all locks, when an object is ready."""

    __slots__ = ("_queue", "_then")

    def __init__(self, queue: deque[Callable[[], None]], then: Callable[[], None]) -> None:
        self._queue = queue
        self._then = then

    def notify(self, entry: Any) -> None:
        """The object is ready. Under the worker's lock: the drainer runs the queue afterwards."""
        self._queue.append(self._then)


class Pump:
    """The right to drain one mailbox, and the helper thread."""

    def __init__(self, mailbox: Any, handle: Callable[[list[Any]], None], tick: Callable[[], float]) -> None:
        self.mailbox = mailbox
        self._handle = handle  # frames -> effects; takes the worker's lock
        self._tick = tick  # housekeeping; returns seconds until it is due again
        self._right = threading.Lock()
        self._queue: list[Waiter] = []
        self._holder: Waiter | None = None
        self._attention = False
        self._due = 0.0
        """When the drainer ticks next."""
        self._attended = 0.0
        """When an attending thread ticked last."""
        self._spun = False
        """Who attended has spun in vain already: whoever waits next sleeps at once."""
        self._epoch = 0
        self._stopped = False
        self._exiting = False
        self._deep = False
        self.by_rings = True
        """What came last came through a ring: else a spinning getter would only be in the reader's way."""
        self.asleep = False
        """The drainer sleeps, or spins, in native code."""
        self._parked = threading.Lock()
        self._helper = threading.Thread(target=self._help, name="miniray-helper", daemon=True)

    def start(self) -> None:
        """Start the helper thread."""
        self._helper.start()

    def stop(self, exiting: bool = False) -> None:
        """End the helper thread and every wait; nobody polls any more. Not to be called while draining.

        `exiting`: the interpreter ends; threads that still wait are left where they are.
        """
        self._exiting = exiting
        self._stopped = True
        with contextlib.suppress(RuntimeError):
            self._parked.release()
        self.mailbox.wake()
        if self._helper.is_alive() and threading.current_thread() is not self._helper:
            self._helper.join(STOP_S)
        self._right.acquire(timeout=STOP_S)     # for good
        for waiter in list(self._queue):
            waiter.signal()

    def wake(self) -> None:
        """Something changed outside the rings: whoever drains takes a turn once they are empty."""
        self._attention = True
        self.mailbox.wake()

    def sleeps_here(self) -> bool:
        """The calling thread drains, and sleeps or spins in native code."""
        holder = self._holder
        return self.asleep and holder is not None and holder.ident == threading.get_ident()

    def again(self) -> None:
        """The drainer is to take another turn, even if nothing arrives. On the drainer."""
        self._attention = True

    def kick(self, waiter: Waiter) -> None:
        """`waiter` is done; it may be asleep on the doorbell in another thread."""
        if self._holder is waiter and threading.get_ident() != waiter.ident:
            self.mailbox.wake()

    def poll_now(self) -> bool:
        """Handle what has arrived, if nobody else is at it. Never waits."""
        if self._stopped or not self._right.acquire(False):
            return False
        try:
            frames = self.mailbox.poll(POLL_LIMIT)
            if frames:
                self._handle(frames)
        finally:
            self._release()
        return True

    def attend(self, is_over: Callable[[], object]) -> bool:
        """Drain until `is_over()` holds after some news: True. Never sleeps, and registers nothing.

        False when it does not hold within `ATTEND_S`, no news comes for `SPIN_US`, news comes over
        connections (another thread reads those), there is something else to do, or another thread
        drains: `wait` then.
        """
        if self._attention or not self.by_rings or self._stopped or not self._right.acquire(False):
            return False
        try:
            now = time.monotonic()
            if now - self._attended >= TICK_EVERY_S:
                self._attended = now
                self._tick()
            end = now + ATTEND_S
            while now < end:
                frames = self.mailbox.poll(POLL_LIMIT, SPIN_US)
                if not frames:
                    self._spun = True
                    return False
                self._handle(frames)
                if is_over():
                    return True
                now = time.monotonic()
            return False
        finally:
            self._release()

    def wait(self, waiter: Waiter, deadline: float | None, spin_us: int = SPIN_US) -> bool:
        """Until `waiter.remaining` is 0 (True) or `deadline` (monotonic seconds) is past (False).

        RaySystemError when the session ends meanwhile.
        """
        while waiter.remaining > 0:
            if self._stopped:
                self._end_wait()
            if self._right.acquire(False):
                try:
                    if self._drain(waiter, deadline, spin_us):
                        return True
                finally:
                    self._release()
                if not self._stopped:
                    return False
                continue
            left = FOREVER if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return False
            self._stand_by(waiter, left)
        return True

    def hurry(self) -> None:
        """Tick soon: something is due earlier than it was. Under the worker's lock, by the drainer."""
        self._due = 0.0

    def _end_wait(self) -> None:
        if self._exiting and threading.current_thread().daemon:     # it ends with the process
            threading.Event().wait()
        raise RaySystemError("the session has ended while this thread waited: shutdown() was called")

    def _stand_by(self, waiter: Waiter, left: float) -> None:
        """Another thread drains: wait for our turn, or for it to finish our wait."""
        waiter.arm()
        self._queue.append(waiter)
        if self._holder is None:  # the helper: it gives way at once
            self.mailbox.wake()
        try:
            if waiter.remaining > 0 and self._right.locked():
                waiter.sleep(min(left, 1.0))
        finally:
            self._queue.remove(waiter)
            self._pass_on()     # this thread may have been offered the right, and not need it any more

    def _pass_on(self) -> None:
        """Nobody drains: the first that waits shall."""
        if self._queue and not self._right.locked():
            with contextlib.suppress(IndexError):
                self._queue[0].signal()

    def _drain(self, waiter: Waiter, deadline: float | None, spin_us: int) -> bool:
        mailbox, handle = self.mailbox, self._handle
        waiter.ident = threading.get_ident()
        try:
            self._holder = waiter
            self._due = 0.0
            while waiter.remaining > 0:
                frames = mailbox.poll(POLL_LIMIT)
                if frames or self._attention:
                    self._attention = self._attention and bool(frames)
                    self.by_rings = self.by_rings or bool(frames)
                    handle(frames)
                    continue
                now = time.monotonic()
                if self._stopped or (deadline is not None and now >= deadline):
                    return False
                if now >= self._due:
                    self._due = now + self._tick()
                    if waiter.remaining <= 0:
                        break
                until = self._due if deadline is None else min(self._due, deadline)
                spins = self.by_rings and not self._spun
                self._spun = False
                self.asleep = True
                mailbox.wait(min(until - now, FOREVER), spin_us if spins else 0)
                self.asleep = False
            return True
        finally:
            self.asleep = False
            self._holder = None

    def _release(self) -> None:
        self._epoch += 1
        self._right.release()
        self._pass_on()
        if self._deep:
            self._deep = False
            with contextlib.suppress(RuntimeError):
                self._parked.release()

    def _help(self) -> None:
        self._parked.acquire()
        while not self._stopped:
            epoch = self._epoch
            self._parked.acquire(timeout=LULL_S)
            if self._stopped or self._queue or epoch != self._epoch:
                continue
            if self._right.acquire(False):
                try:
                    self._help_drain()
                finally:
                    self._release()
                continue
            # One getter has waited for a whole lull: sleep until it lets go.
            self._deep = True
            if self._right.locked():
                self._parked.acquire(timeout=FOREVER)
            self._deep = False

    def _help_drain(self) -> None:
        mailbox = self.mailbox
        while not self._stopped and not self._queue:
            frames = mailbox.poll(POLL_LIMIT)
            self._attention = self._attention and bool(frames)
            self._handle(frames)
            left = self._tick()
            if not self._queue and not self._attention:
                mailbox.wait(left, 0)


class Reply:
    """The answer to one request to the raylet, filled in by the I/O thread."""

    __slots__ = ("_lock", "value", "done", "callback")

    def __init__(self, callback: Callable[[Any], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.value: Any = None
        self.done = False
        self.callback = callback

    def set(self, value: Any) -> None:
        """The answer is here; a second one is ignored."""
        if self.done:
            return
        self.value = value
        self.done = True
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """True when the answer came within `timeout` seconds."""
        if self.done:
            return True
        if self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            self._lock.release()
            return True
        return self.done
