"""A daemon's loop ends, whatever its tasks make of their cancellation."""

from __future__ import annotations

import asyncio
import time

from miniray.runtime import loops


def test_a_task_that_ignores_its_cancellation_is_not_waited_for_long() -> None:
    cancelled = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                cancelled.append(True)

    async def main() -> int:
        task = asyncio.get_running_loop().create_task(stubborn())
        await asyncio.sleep(0)
        assert not task.done()
        return 7

    began = time.monotonic()
    assert loops.run(main()) == 7
    assert cancelled and time.monotonic() - began < 30


def test_others_have_their_time_to_clean_up() -> None:
    cleaned = []

    async def orderly() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    async def main() -> int:
        task = asyncio.get_running_loop().create_task(orderly())
        await asyncio.sleep(0)
        return 0 if not task.done() else 1

    assert loops.run(main()) == 0
    assert cleaned
