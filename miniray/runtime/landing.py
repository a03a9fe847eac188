"""Where the bytes of an object land that comes from another node, and how far they have come.

`arrived` is called by the threads that read, the rest on the loop.
"""

from __future__ import annotations

import threading


class Landing:
    """`view` gets the bytes; `done` of them are there without a gap from the beginning.

    A fetch that breaks off leaves it for the next one, which asks for the rest only.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.done = 0
        self._ahead: dict[int, int] = {}
        """Begin and end of what has come behind a gap: parts that were read at once."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.view)

    def arrived(self, start: int, end: int) -> None:
        """The bytes from `start` to `end` are there."""
        with self._lock:
            self._ahead[start] = end
            while self.done in self._ahead:
                self.done = self._ahead.pop(self.done)

    def interrupted(self) -> None:
        """What is behind a gap is read again."""
        self._ahead.clear()
