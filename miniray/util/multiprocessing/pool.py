"""The standard library's `Pool` on actors, one per process.

Functions and arguments travel as those of tasks do. As in the standard library the items of a
`map` are handed out in chunks; unlike there a failed item does not stop its chunk, and `imap`
returns its error as a value (as Ray's Pool does). Not thread-safe but for the callbacks.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import TimeoutError
from typing import Any

from miniray import api, session
from miniray.cluster_info import cluster_resources
from miniray.decorator import remote
from miniray.exceptions import RayError

Function = Callable[..., Any]

CHUNKS_PER_PROCESS = 4


class Failed(Exception):
    """One item's error, on its way back among the results of its chunk."""

    def __init__(self, underlying: Exception) -> None:
        super().__init__(underlying)
        self.underlying = underlying


class PoolActor:
    """One process of a pool."""

    def __init__(self, initializer: Function | None = None, initargs: Sequence[Any] = ()) -> None:
        if initializer is not None:
            initializer(*initargs)

    def ping(self) -> None:
        """Answered once the process is ready."""

    def run(self, function: Function, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """The results of `function` for each (args, kwargs), errors as `Failed`."""
        results: list[Any] = []
        for args, kwargs in calls:
            try:
                results.append(function(*args, **kwargs))
            except Exception as error:
                results.append(Failed(error))
        return results


class AsyncResult:
    """What the `…_async` calls return: the results of one or more chunks."""

    def __init__(
        self,
        chunks: list[Any],
        single: bool = False,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> None:
        self._chunks = chunks
        self._single = single
        if callback is not None or error_callback is not None:
            notify = threading.Thread(target=self._notify, args=(callback, error_callback), daemon=True)
            notify.start()

    def _notify(
        self, callback: Callable[[Any], Any] | None, error_callback: Callable[[BaseException], Any] | None
    ) -> None:
        try:
            value = self.get()
        except Exception as error:
            if error_callback is not None:
                error_callback(error)
        else:
            if callback is not None:
                callback(value)

    def wait(self, timeout: float | None = None) -> None:
        """Until all results are there, or `timeout` seconds have passed."""
        if self._chunks:
            api.wait(self._chunks, num_returns=len(self._chunks), timeout=timeout)

    def ready(self) -> bool:
        """True when all results are there."""
        if not self._chunks:
            return True
        return not api.wait(self._chunks, num_returns=len(self._chunks), timeout=0)[1]

    def successful(self) -> bool:
        """True when no item failed. ValueError while results are missing."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        try:
            return not any(isinstance(item, Failed) for chunk in api.get(self._chunks) for item in chunk)
        except Exception:
            return False

    def get(self, timeout: float | None = None) -> Any:
        """The result, or the list of results. Raises the first item's error, or TimeoutError."""
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        results = [item for chunk in api.get(self._chunks) for item in chunk]
        for item in results:
            if isinstance(item, Failed):
                raise item.underlying
        return results[0] if self._single else results


class IMapIterator:
    """The results of `imap`: chunks are handed out as earlier ones come back."""

    def __init__(
        self, pool: Pool, function: Function, iterable: Iterable[Any], chunksize: int | None
    ) -> None:
        self._pool = pool
        self._function = function
        self._items = iter(iterable)
        self._chunksize = chunksize or 1
        self._running: deque[Any] = deque()
        self._results: deque[Any] = deque()
        self._handed_out = 0
        for _ in range(pool.size):
            self._hand_out()

    def _hand_out(self) -> None:
        items = list(itertools.islice(self._items, self._chunksize))
        if items:
            calls: list[Any] = [((item,), {}) for item in items]
            self._running.append(self._pool.submit(self._handed_out % self._pool.size, self._function, calls))
            self._handed_out += 1

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result, an item's error as a value. TimeoutError after `timeout` seconds."""
        if not self._results:
            if not self._running:
                raise StopIteration
            chunk = self._take(timeout)
            if chunk is None:
                raise TimeoutError
            self._running.remove(chunk)
            self._hand_out()
            self._results.extend(api.get(chunk))
        item = self._results.popleft()
        return item.underlying if isinstance(item, Failed) else item

    def _take(self, timeout: float | None) -> Any:
        """The chunk whose results come next, once it is ready; None after `timeout` seconds."""
        raise NotImplementedError


class OrderedIMapIterator(IMapIterator):
    """Results in the order of the items."""

    def _take(self, timeout: float | None) -> Any:
        ready, _ = api.wait([self._running[0]], timeout=timeout)
        return ready[0] if ready else None


class UnorderedIMapIterator(IMapIterator):
    """Results in the order they come."""

    def _take(self, timeout: float | None) -> Any:
        ready, _ = api.wait(list(self._running), num_returns=1, timeout=timeout)
        return ready[0] if ready else None


class Pool:
    """`multiprocessing.Pool`'s interface.

    `processes` defaults to the cluster's CPUs; ValueError for more than there are. Connects to
    `ray_address`, or starts a local session, when this process has none. `ray_remote_args` are
    options of the actors.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Function | None = None,
        initargs: Sequence[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        self._closed = False
        self._initializer = initializer
        self._initargs = tuple(initargs or ())
        self._maxtasksperchild = maxtasksperchild or -1
        self._actor_class = remote(**{"num_cpus": 0, **(ray_remote_args or {})})(PoolActor)
        self._leaving: list[Any] = []
        self._next = 0
        self.size = self._connect(processes, ray_address)
        self._actors = [self._new_actor() for _ in range(self.size)]
        self._counts = [0] * self.size
        api.get([actor.ping.remote() for actor in self._actors])

    def _connect(self, processes: int | None, address: str | None) -> int:
        if not api.is_initialized():
            known = address is not None or processes is None
            session.init(address) if known else session.init(num_cpus=processes)
        cpus = int(cluster_resources().get("CPU", 0))
        if processes is None:
            processes = cpus
        if processes <= 0:
            raise ValueError("Processes in the pool must be >0.")
        if processes > cpus:
            raise ValueError(
                f"Tried to start a pool with {processes} processes on an existing ray cluster, but there are "
                f"only {cpus} CPUs in the ray cluster."
            )
        return processes

    def _new_actor(self) -> Any:
        return self._actor_class.remote(self._initializer, self._initargs)

    def submit(
        self, index: int, function: Function, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    ) -> Any:
        """Run `calls` on process `index`: a reference to the list of results."""
        reference = self._actors[index].run.remote(function, calls)
        self._counts[index] += 1
        if self._counts[index] == self._maxtasksperchild:
            self._leaving.append(self._actors[index].__ray_terminate__.remote())
            self._actors[index] = self._new_actor()
            self._counts[index] = 0
        return reference

    def _turn(self) -> int:
        index = self._next
        self._next = (index + 1) % self.size
        return index

    # ---- one call

    def apply(self, func: Function, args: Any = None, kwargs: dict[str, Any] | None = None) -> Any:
        """``func(*args, **kwargs)`` on some process."""
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Function,
        args: Any = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """`apply` without waiting."""
        self._check_running()
        chunk = self.submit(self._turn(), func, [(tuple(args or ()), kwargs or {})])
        return AsyncResult([chunk], True, callback, error_callback)

    # ---- many calls

    def _map(
        self,
        func: Function,
        calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]],
        length: int,
        chunksize: int | None,
        callback: Any = None,
        error_callback: Any = None,
    ) -> AsyncResult:
        self._check_running()
        size = chunksize or max(1, -(-length // (self.size * CHUNKS_PER_PROCESS)))
        chunks = []
        for index in itertools.count():
            part = list(itertools.islice(calls, size))
            if not part:
                break
            chunks.append(self.submit(index % self.size, func, part))
        return AsyncResult(chunks, False, callback, error_callback)

    def map(self, func: Function, iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """``[func(item) for item in iterable]`` over the processes."""
        results: list[Any] = self.map_async(func, iterable, chunksize).get()
        return results

    def map_async(
        self,
        func: Function,
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """`map` without waiting."""
        items = list(iterable)
        calls: Iterator[Any] = (((item,), {}) for item in items)
        return self._map(func, calls, len(items), chunksize, callback, error_callback)

    def starmap(self, func: Function, iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """``[func(*item) for item in iterable]`` over the processes."""
        results: list[Any] = self.starmap_async(func, iterable, chunksize=chunksize).get()
        return results

    def starmap_async(
        self,
        func: Function,
        iterable: Iterable[Any],
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
        chunksize: int | None = None,
    ) -> AsyncResult:
        """`starmap` without waiting."""
        items = list(iterable)
        calls: Iterator[Any] = ((tuple(item), {}) for item in items)
        return self._map(func, calls, len(items), chunksize, callback, error_callback)

    def imap(self, func: Function, iterable: Iterable[Any], chunksize: int | None = 1) -> IMapIterator:
        """Results one by one, in order; items are taken from `iterable` as processes become free."""
        self._check_running()
        return OrderedIMapIterator(self, func, iterable, chunksize)

    def imap_unordered(
        self, func: Function, iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        """Results one by one, as they come."""
        self._check_running()
        return UnorderedIMapIterator(self, func, iterable, chunksize)

    # ---- its end

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def close(self) -> None:
        """Take no more work; the processes end after what they have."""
        if not self._closed:
            self._closed = True
            self._leaving.extend(actor.__ray_terminate__.remote() for actor in self._actors)

    def terminate(self) -> None:
        """End the processes at once; unfinished work fails."""
        self.close()
        for actor in self._actors:
            try:
                api.kill(actor)
            except (RayError, ValueError):
                continue  # it has ended, or the session has

    def join(self) -> None:
        """Wait until the processes have ended. ValueError before `close` or `terminate`."""
        if not self._closed:
            raise ValueError("Pool is still running")
        if self._leaving:
            api.wait(self._leaving, num_returns=len(self._leaving))
