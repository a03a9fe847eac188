"""A daemon that clears away what another one of this machine has left.

Who is connected to a daemon learns first of its end, and sweeps for some seconds: see `remains`. On the
daemon's event loop.
"""

from __future__ import annotations

import asyncio

from miniray.runtime import remains, sessions

LOOKS = 12
LOOK_EVERY_S = 0.25


class Sweeper:
    """Sweeps beside a daemon's loop when another daemon of this machine may have ended."""

    def __init__(self) -> None:
        self._looking: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Sweep for some seconds: its processes may still be ending."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(LOOKS):
            await asyncio.sleep(LOOK_EVERY_S)
            await loop.run_in_executor(None, remains.sweep, sessions.root())

    def close(self) -> None:
        """Look no further."""
        if self._looking is not None:
            self._looking.cancel()
