"""When the workers of a node must end although nobody tells them: its raylet stands still.

A head gives a silent node up and starts its actors elsewhere. A raylet that was stopped (SIGSTOP, a
debugger, a machine that was frozen) cannot end their first lives, so its zygote does, before the
head's patience is over: there are never two of one actor. Pure; the zygote asks every `pause_s`.
Limit: a node that is cut off while its raylet runs keeps its actors until it is told of its end,
since it cannot know whether the head, which may come back, is gone or only out of reach.
"""

from __future__ import annotations

SHARE = 0.8
"""Of the head's patience: the rest is for news that were under way, and for the killing."""


class Fence:
    """Watches one raylet once it is told for how long the head waits."""

    def __init__(self) -> None:
        self.silent_s = 0.0
        """The head's patience; 0: nobody gives this node up, as in a local session."""
        self._looked_at = 0.0
        self._still_since: float | None = None

    def watch(self, now: float, silent_s: float) -> None:
        """From now on a head waits so long for this node."""
        self.silent_s = silent_s
        self._looked_at = now

    @property
    def pause_s(self) -> float | None:
        """How long to sleep at most before the next look."""
        return self.silent_s / 10 if self.silent_s else None

    def slept(self, seconds: float) -> bool:
        """The zygote slept for that long. True when it stood still itself, so that workers must end."""
        return bool(self.silent_s) and seconds > SHARE * self.silent_s

    def looked(self, now: float, is_still: bool) -> bool:
        """`is_still`: the raylet's process is stopped. True when workers must end."""
        before, self._looked_at = self._looked_at, now
        if not is_still or not self.silent_s:
            self._still_since = None
            return False
        if self._still_since is None:
            self._still_since = before      # it may have stopped just after the last look
        return now - self._still_since >= SHARE * self.silent_s
