"""The event loop of a daemon, from its first task to its last."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

STRAGGLERS_S = 1.0


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run `main` and return its result, as `asyncio.run` does, for a process that ends after it.

    Tasks that are left are cancelled, and waited for no longer than `STRAGGLERS_S`: one that takes its
    cancellation for the end of a connection must not keep the daemon, and all below it, alive.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=STRAGGLERS_S))
