"""A joblib backend whose workers are the actors of a `util.multiprocessing.Pool`.

Large arguments that many calls share (the data of a model selection, say) go into the object
store once and travel as references from then on.
"""

from __future__ import annotations

import sys
from typing import Any

from joblib._parallel_backends import FallbackToBackend, MultiprocessingBackend, SequentialBackend
from joblib.parallel import BatchedCalls

from miniray import api, session
from miniray.cluster_info import cluster_resources
from miniray.ids import ObjectRef
from miniray.util.multiprocessing.pool import Pool

SHARED_BYTES = 10_000
"""Arguments larger than this are put into the store once."""


def _size(value: Any) -> int:
    return int(getattr(value, "nbytes", 0) or sys.getsizeof(value))


class _Shared(BatchedCalls):  # type: ignore[misc]
    """A batch whose large arguments are references."""

    items: list[Any]

    def __call__(self) -> list[Any]:
        self.items = [
            (function, tuple(_value(arg) for arg in args), {k: _value(v) for k, v in kwargs.items()})
            for function, args, kwargs in self.items
        ]
        results: list[Any] = super().__call__()
        return results

    def __reduce__(self) -> Any:
        return _Shared, (self.items, (self._backend, self._n_jobs), None, {})


def _value(argument: Any) -> Any:
    return api.get(argument) if isinstance(argument, ObjectRef) else argument


class _SharingPool(Pool):
    """A pool that remembers what it has put: `_registry` is a list of (object, reference)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._registry: list[tuple[Any, ObjectRef[Any]]] = []
        super().__init__(*args, **kwargs)

    def _reference(self, value: Any) -> Any:
        if isinstance(value, ObjectRef) or _size(value) < SHARED_BYTES:
            return value
        for known, reference in self._registry:
            if known is value:
                return reference
        reference = api.put(value)
        self._registry.append((value, reference))
        return reference

    def share(self, batch: BatchedCalls) -> _Shared:
        """`batch` with its large arguments in the store."""
        items = [
            (
                function,
                tuple(self._reference(arg) for arg in args),
                {k: self._reference(v) for k, v in kwargs.items()},
            )
            for function, args, kwargs in batch.items
        ]
        return _Shared(items, (batch._backend, batch._n_jobs), None, {})


class RayBackend(MultiprocessingBackend):  # type: ignore[misc]
    """Runs joblib's batches on actors. `ray_remote_args` are options of those actors."""

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.ray_remote_args = ray_remote_args
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **kwargs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many processes `n_jobs` means here; -1 is every CPU of the cluster."""
        if n_jobs == -1:
            if not api.is_initialized():
                session.init()
            return int(cluster_resources()["CPU"])
        return int(super().effective_n_jobs(n_jobs))

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        **_: Any,
    ) -> int:
        """Start the pool; returns how many processes it has."""
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self._pool = _SharingPool(count, ray_remote_args=ray_remote_args or self.ray_remote_args)
        self.parallel = parallel
        return count

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Run a batch on the pool."""
        if isinstance(func, BatchedCalls) and self._pool is not None:
            func = self._pool.share(func)
        return super().submit(func, callback)

    def terminate(self) -> None:
        """End the pool."""
        super().terminate()
        self.reset_batch_stats()
