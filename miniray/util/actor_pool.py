"""A pool of actors that work off values, one call per actor at a time.

Behaviour follows Ray's class of the same name. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from miniray import api
from miniray.exceptions import ActorDiedError

V = TypeVar("V")

Call = Callable[[Any, Any], Any]
"""(actor, value) → the reference that its method returned."""


class ActorPool:
    """Spreads calls over `actors`; a call waits until an actor is free.

    ``list(pool.map(lambda actor, value: actor.double.remote(value), values))``
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle_actors = list(actors)
        self._running: dict[Any, tuple[int, Any]] = {}
        self._futures: dict[int, Any] = {}
        self._next_task = 0
        self._next_return = 0
        self._pending_submits: list[tuple[Call, Any]] = []

    def map(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of `values`. What was submitted before is forgotten."""
        self._forget(lambda: self.get_next(timeout=0, ignore_if_timedout=True))
        for value in values:
            self.submit(fn, value)
        return self._rest(self.get_next)

    def map_unordered(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Results in the order they come. What was submitted before is forgotten."""
        self._forget(lambda: self.get_next_unordered(timeout=0, ignore_if_timedout=True))
        for value in values:
            self.submit(fn, value)
        return self._rest(self.get_next_unordered)

    def _forget(self, take: Callable[[], Any]) -> None:
        while self.has_next():
            try:
                take()
            except TimeoutError:
                pass

    def _rest(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def submit(self, fn: Call, value: Any) -> None:
        """Call `fn` with a free actor and `value`, as soon as there is one."""
        if not self._idle_actors:
            self._pending_submits.append((fn, value))
            return
        actor = self._idle_actors.pop()
        future = fn(actor, value)
        self._running[_key(future)] = (self._next_task, actor)
        self._futures[self._next_task] = future
        self._next_task += 1

    def has_next(self) -> bool:
        """True while there are results to come."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission.

        StopIteration when there is none. TimeoutError after `timeout` seconds; then with
        `ignore_if_timedout` that result is given up.
        """
        self._need_next()
        if self._next_return >= self._next_task:
            raise ValueError("It is not allowed to call get_next() after get_next_unordered().")
        future = self._futures[self._next_return]
        late = timeout is not None and not api.wait(_refs(future), timeout=timeout)[0]
        if late and not ignore_if_timedout:
            raise TimeoutError("Timed out waiting for result")
        return self._finish(self._next_return, future, late)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result that comes next, whichever it is. Otherwise as `get_next`."""
        self._need_next()
        ready, _ = api.wait(list(self._running), num_returns=1, timeout=timeout)
        if not ready and not ignore_if_timedout:
            raise TimeoutError("Timed out waiting for result")
        future = ready[0] if ready else next(iter(self._running))
        return self._finish(self._running[future][0], future, not ready)

    def _need_next(self) -> None:
        if not self.has_next():
            raise StopIteration("No more results to get")

    def _finish(self, index: int, future: Any, late: bool) -> Any:
        _, actor = self._running.pop(_key(future))
        del self._futures[index]
        self._next_return = max(self._next_return, index + 1)
        if late:
            self._free(actor)
            raise TimeoutError(f"Timed out waiting for result. The task {future} has been ignored.")
        try:
            value = api.get(future)
        except ActorDiedError:
            self._start_pending()  # the dead actor stays out
            raise
        except BaseException:
            self._free(actor)
            raise
        self._free(actor)
        return value

    def _free(self, actor: Any) -> None:
        self._idle_actors.append(actor)
        self._start_pending()

    def _start_pending(self) -> None:
        if self._pending_submits and self._idle_actors:
            self.submit(*self._pending_submits.pop(0))

    def has_free(self) -> bool:
        """True when an actor is idle and nothing waits for one."""
        return bool(self._idle_actors) and not self._pending_submits

    def pop_idle(self) -> Any | None:
        """Take an idle actor out of the pool; None if there is none."""
        return self._idle_actors.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor. ValueError if it is in the pool already."""
        if actor in self._idle_actors or any(actor == busy for _, busy in self._running.values()):
            raise ValueError("Actor already belongs to current ActorPool")
        self._free(actor)


def _key(future: Any) -> Any:
    return tuple(future) if isinstance(future, list) else future


def _refs(future: Any) -> list[Any]:
    return list(future) if isinstance(future, (list, tuple)) else [future]
