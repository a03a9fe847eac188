"""ObjectRefGenerator: the items of a streaming task, one reference at a time.

Iterate it (``for ref in gen``) or asynchronously (``async for ref in gen``). The next reference
comes as soon as the task has yielded the item; after an error, the last reference raises it.
Behaviour follows Ray's class of the same name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from miniray.ids import ObjectRef

if TYPE_CHECKING:
    from miniray.runtime.streams import Stream


class ObjectRefGenerator:
    """References to the items that a task yields, in order."""

    def __init__(self, stream: Stream, done: ObjectRef[Any]) -> None:
        self._stream = stream
        self._done = done

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        return self

    def __next__(self) -> ObjectRef[Any]:
        ref = self._stream.take(None)
        if ref is None:
            raise StopIteration
        return ref

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef[Any]:
        """The next reference; a nil reference when none came within `timeout_s` seconds."""
        deadline = None if timeout_s is None or timeout_s < 0 else time.monotonic() + timeout_s
        try:
            ref = self._stream.take(deadline)
        except TimeoutError:
            return ObjectRef.nil()
        if ref is None:
            raise StopIteration
        return ref

    def __aiter__(self) -> AsyncIterator[ObjectRef[Any]]:
        return self

    async def __anext__(self) -> ObjectRef[Any]:
        loop = asyncio.get_running_loop()
        more = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(more.set)

        while self._stream.when_more(wake):
            await more.wait()
            more.clear()
        ref = self._stream.take(None)
        if ref is None:
            raise StopAsyncIteration
        return ref

    def completed(self) -> ObjectRef[Any]:
        """A reference that is ready when the task has ended; it raises the task's error."""
        return self._done

    @property
    def _generator_ref(self) -> ObjectRef[Any]:
        return self._done

    def next_ready(self) -> bool:
        """True when the next reference would come without waiting; False when there is none."""
        return not self._stream.finished and not self._stream.when_more(lambda: None)

    def is_finished(self) -> bool:
        """True when the task has ended and every reference was taken."""
        return self._stream.finished

    def task_id(self) -> Any:
        """The id of the task."""
        return self._done.task_id()

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._done.hex()})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "You cannot return or pass a generator to other task. "
            "Serializing a ObjectRefGenerator is not allowed."
        )

    def __del__(self) -> None:
        self._stream.dropped()


class DynamicObjectRefGenerator:
    """The value of a task with ``num_returns="dynamic"``: references to all that it yielded."""

    def __init__(self, refs: list[ObjectRef[Any]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        while self._refs:
            yield self._refs.pop(0)

    def __len__(self) -> int:
        return len(self._refs)


__all__ = ["DynamicObjectRefGenerator", "ObjectRefGenerator"]
