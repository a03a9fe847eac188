"""KeyboardInterrupt at a moment when it does no harm: Ctrl-C in a driver, `cancel` in a worker.

Python raises KeyboardInterrupt between any two instructions of the main thread: also where the owner
machine is half-way through a step, or where the right to drain has just been taken and nobody would
give it back. There the signal is put off for `AGAIN_S` and sent once more; in user code, and where
the library sleeps, it is raised at once. Signals that come while one is put off are one with it, as those
are that come before Python has looked. A handler of the user's own is left alone.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from miniray.runtime.waiting import Pump, Waiter

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

F = TypeVar("F", bound=Callable[..., Any])

AGAIN_S = 0.001

FRAMES_SEEN = 4
"""A critical function may have called so many others, of the standard library, deep."""

_CRITICAL = {
    function.__code__
    for function in (
        Pump.wait, Pump.attend, Pump._drain, Pump._stand_by, Pump._release, Pump._pass_on, Pump.poll_now,
    )
}
_SLEEPING = Waiter.sleep.__code__


def critical(function: F) -> F:
    """Decorator: an exception in here would leave something half-done."""
    _CRITICAL.add(function.__code__)
    return function


def is_harmful(worker: CoreWorker, frame: FrameType | None) -> bool:
    """Would an exception at `frame` of the main thread leave something half-done?"""
    if worker.closing:
        return False
    if worker.lock._is_owned():  # type: ignore[attr-defined]
        return True
    if worker.pump.sleeps_here():
        return False
    for _ in range(FRAMES_SEEN):
        if frame is None or frame.f_code is _SLEEPING:
            return False
        if frame.f_code in _CRITICAL:
            return True
        frame = frame.f_back
    return False


class PutOff:
    """One signal to the main thread, a moment later; more of them meanwhile are one with it."""

    def __init__(self) -> None:
        self._due: object = None

    def send(self) -> None:
        """Send it in `AGAIN_S`. In a signal handler."""
        if self._due is None:
            self._due = due = object()
            # Not by a threading.Timer: it takes a lock that the interrupted code may hold.
            try:
                _thread.start_new_thread(self._again, (due, threading.get_ident()))
            except RuntimeError:    # no thread to be had: the next signal tries again
                self._due = None

    def drop(self) -> None:
        """It is not wanted any more."""
        self._due = None

    def _again(self, due: object, main: int) -> None:
        time.sleep(AGAIN_S)
        if self._due is due:
            self._due = None
            signal.pthread_kill(main, signal.SIGINT)


class CallInterrupts:
    """Ends the running call of a worker by a KeyboardInterrupt on the main thread: that call, and no other.

    `running()`: the call that is on the main thread now, or None.
    """

    def __init__(self, worker: CoreWorker, running: Callable[[], object]) -> None:
        self._worker = worker
        self._running = running
        self._victim: object = None
        self._put_off = PutOff()
        signal.signal(signal.SIGINT, self._interrupted)

    def send(self, victim: object) -> None:
        """Interrupt `victim` as soon as it does no harm. Any thread, under the worker's lock."""
        if self._victim is not victim:      # else it is on its way
            self._victim = victim
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        victim = self._victim
        if victim is None or victim is not self._running():     # it has ended by itself
            return
        if is_harmful(self._worker, frame):
            self._put_off.send()
            return
        self._put_off.drop()
        self._victim = None
        raise KeyboardInterrupt


class Interrupts:
    """The SIGINT handler of one connected driver."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._installed = False
        self._put_off = PutOff()

    def install(self) -> None:
        """Take the place of Python's own handler, if that is what is there. Main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupted)
            self._installed = True

    def uninstall(self) -> None:
        """Python's own handler again, unless the user has set one."""
        if not self._installed or threading.current_thread() is not threading.main_thread():
            return
        self._installed = False
        if signal.getsignal(signal.SIGINT) == self._interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if is_harmful(self._worker, frame):
            self._put_off.send()
        else:
            self._put_off.drop()
            signal.default_int_handler(number, frame)
