"""A first-in first-out queue that tasks, actors and drivers share; it lives in an actor.

The interface is that of `queue.Queue`, with asynchronous and batch forms. Behaviour follows Ray's
class of the same name. Order holds per producer.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable
from typing import Any

from miniray import api
from miniray.decorator import remote


class Empty(queue.Empty):
    """There is no item, or not enough of them."""


class Full(queue.Full):
    """There is no room."""


class Queue:
    """`maxsize` 0: no limit. `actor_options` are those of the actor behind it."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        self.actor: Any = remote(_QueueActor).options(**(actor_options or {})).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items there are."""
        count: int = api.get(self.actor.qsize.remote())
        return count

    def qsize(self) -> int:
        """How many items there are."""
        return self.size()

    def empty(self) -> bool:
        """True when there is no item."""
        return bool(api.get(self.actor.empty.remote()))

    def full(self) -> bool:
        """True when there is no room."""
        return bool(api.get(self.actor.full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item. Full when there is no room: at once without `block`, else after `timeout` s."""
        api.get(self._put(item, block, timeout))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """`put`, without blocking the event loop."""
        await self._put(item, block, timeout)

    def _put(self, item: Any, block: bool, timeout: float | None) -> Any:
        _check(timeout)
        return self.actor.put.remote(item, timeout) if block else self.actor.put_nowait.remote(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first item. Empty when there is none: at once without `block`, else after `timeout` s."""
        return api.get(self._get(block, timeout))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """`get`, without blocking the event loop."""
        return await self._get(block, timeout)

    def _get(self, block: bool, timeout: float | None) -> Any:
        _check(timeout)
        return self.actor.get.remote(timeout) if block else self.actor.get_nowait.remote()

    def put_nowait(self, item: Any) -> None:
        """Add an item; Full when there is no room."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items, or none and raise Full when they do not all fit."""
        if not isinstance(items, Iterable):
            raise TypeError("Argument 'items' must be an Iterable")
        api.get(self.actor.put_nowait_batch.remote(list(items)))

    def get_nowait(self) -> Any:
        """Take the first item; Empty when there is none."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take exactly `num_items` items; Empty when there are fewer."""
        if not isinstance(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        items: list[Any] = api.get(self.actor.get_nowait_batch.remote(num_items))
        return items

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the actor: at once with `force`, else after the calls made so far, within the grace."""
        if self.actor is not None:
            if not force:
                done, _ = api.wait([self.actor.__ray_terminate__.remote()], timeout=grace_period_s)
                force = not done
            if force:
                api.kill(self.actor, no_restart=True)
        self.actor = None


def _check(timeout: float | None) -> None:
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")


class _QueueActor:
    """The queue itself: an asyncio actor, so that waiting calls do not hold up the others."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    def qsize(self) -> int:
        return self.queue.qsize()

    def empty(self) -> bool:
        return self.queue.empty()

    def full(self) -> bool:
        return self.queue.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except asyncio.TimeoutError:
            raise Full from None

    async def get(self, timeout: float | None = None) -> Any:
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except asyncio.TimeoutError:
            raise Empty from None

    def put_nowait(self, item: Any) -> None:
        try:
            self.queue.put_nowait(item)
        except asyncio.QueueFull:
            raise Full from None

    def put_nowait_batch(self, items: list[Any]) -> None:
        if self.maxsize > 0 and len(items) + self.qsize() > self.maxsize:
            raise Full(
                f"Cannot add {len(items)} items to queue of size {self.qsize()} and maxsize {self.maxsize}."
            )
        for item in items:
            self.queue.put_nowait(item)

    def get_nowait(self) -> Any:
        try:
            return self.queue.get_nowait()
        except asyncio.QueueEmpty:
            raise Empty from None

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        if num_items > self.qsize():
            raise Empty(f"Cannot get {num_items} items from queue of size {self.qsize()}.")
        return [self.queue.get_nowait() for _ in range(num_items)]
