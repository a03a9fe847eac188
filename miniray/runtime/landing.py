"""Where the bytes of an object land that comes from another node, and how far they have come.

What has come can be sent on before the rest is there: a reader takes a view of the memory, which keeps it
whatever becomes of the object, and waits on `reached`. `arrived` is called by the threads that read, the
rest on the loop.
"""

from __future__ import annotations

import asyncio
import threading

STEP_LEAST_BYTES = 256 << 10
STEP_MOST_BYTES = 4 << 20
STEPS = 64
"""A large object is sent on in so many steps: each costs a turn of the loop, and delays those behind."""


class Landing:
    """`view` gets the bytes; `done` of them are there without a gap from the beginning.

    A fetch that breaks off leaves it for the next one, which asks for the rest only. `version` is the same
    for copies of the same bytes.
    """

    def __init__(self, view: memoryview, version: bytes = b"") -> None:
        self.view = view
        self.version = version
        self.done = 0
        self.is_whole = False
        self._size = len(view)
        self._step = min(max(self._size // STEPS, STEP_LEAST_BYTES), STEP_MOST_BYTES)
        self._ahead: dict[int, int] = {}
        """Begin and end of what has come behind a gap: parts that were read at once."""
        self._lock = threading.Lock()
        self._is_over = False
        self._waiting: dict[asyncio.Future[None], int] = {}
        """Who is told when so many bytes are there."""

    def __len__(self) -> int:
        return self._size

    def arrived(self, start: int, end: int) -> None:
        """The bytes from `start` to `end` are there."""
        with self._lock:
            self._ahead[start] = end
            while self.done in self._ahead:
                self.done = self._ahead.pop(self.done)
            told = [future for future, wanted in self._waiting.items() if wanted <= self.done]
            for future in told:
                del self._waiting[future]
        for future in told:
            future.get_loop().call_soon_threadsafe(_tell, future)

    def interrupted(self) -> None:
        """What is behind a gap is read again."""
        with self._lock:
            self._ahead.clear()

    def over(self, is_whole: bool) -> None:
        """All has come, or nothing more will: the memory is given back or sealed."""
        self._is_over, self.is_whole = True, is_whole
        self.view.release()
        with self._lock:
            told = list(self._waiting)
            self._waiting.clear()
        for future in told:
            _tell(future)

    async def reached(self, offset: int) -> int:
        """How far it has come once there is something worth sending behind `offset`, or all of it.

        ConnectionError when the rest will not come.
        """
        wanted = min(offset + self._step, self._size) if offset else min(1, self._size)
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            waits = self.done < wanted and not self._is_over
            if waits:
                self._waiting[future] = wanted
        try:
            if waits:
                await future
        finally:
            with self._lock:
                self._waiting.pop(future, None)
        if self._is_over and not self.is_whole:
            raise ConnectionError("it does not come here any more")
        return self.done


def _tell(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
