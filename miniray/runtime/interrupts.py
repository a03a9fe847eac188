"""Ctrl-C in a driver, at a moment when it does no harm.

Python raises KeyboardInterrupt between any two instructions of the main thread: also where the owner
machine is half-way through a step, or where the right to drain has just been taken and nobody would
give it back. There the signal is put off for `AGAIN_S` and sent once more; in user code, and where
the library sleeps, it is raised at once. Signals that come while one is put off are one with it, as those
are that come before Python has looked. A handler of the user's own is left alone.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from miniray.runtime.waiting import Pump, Waiter

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

AGAIN_S = 0.001

FRAMES_SEEN = 4
"""A critical function may have called so many others, of the standard library, deep."""

_CRITICAL = frozenset(
    function.__code__
    for function in (
        Pump.wait, Pump.attend, Pump._drain, Pump._stand_by, Pump._release, Pump._pass_on, Pump.poll_now,
    )
)
_SLEEPING = Waiter.sleep.__code__


class Interrupts:
    """The SIGINT handler of one connected driver."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._installed = False
        self._put_off: threading.Timer | None = None

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

    def _interrupted(self, number: int, frame: FrameType | None) -> Any:
        put_off = self._put_off
        if not self._harmful(frame):
            if put_off is not None:
                put_off.cancel()
                self._put_off = None
            signal.default_int_handler(number, frame)
        if put_off is None:
            self._put_off = again = threading.Timer(AGAIN_S, self._send_again, (threading.get_ident(),))
            again.daemon = True
            again.start()

    def _send_again(self, main: int) -> None:
        self._put_off = None
        signal.pthread_kill(main, signal.SIGINT)

    def _harmful(self, frame: FrameType | None) -> bool:
        """Would an exception here leave something half-done?"""
        worker = self._worker
        if worker.closing:
            return False
        if worker.lock._is_owned():  # type: ignore[attr-defined]
            return True
        if worker.pump.asleep:
            return False
        for _ in range(FRAMES_SEEN):
            if frame is None or frame.f_code is _SLEEPING:
                return False
            if frame.f_code in _CRITICAL:
                return True
            frame = frame.f_back
        return False
