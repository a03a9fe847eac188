"""Application metrics: `Counter`, `Gauge`, `Histogram`, with Ray's names and checks.

::

    requests = Counter("requests", description="served", tag_keys=("route",))
    requests.inc(tags={"route": "/"})

A metric may be made anywhere, also before `init()`; recording never blocks and never fails for
want of a cluster. Each process keeps its own sums and tells the cluster what changed once in
`REPORT_S` and when it leaves; what a process recorded after its last report is lost if it is
killed. `miniray metrics` prints all of it in Prometheus' text format, `snapshots()` returns it.

Objects with the same name and kind in one process are one metric. Metrics can be pickled: the copy
records in the process where it is used.
"""

from __future__ import annotations

import bisect
import json
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from miniray.exceptions import RayError
from miniray.exposition import KEY_PREFIX, parsed

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

REPORT_S = 1.0
"""Seconds between reports of a process whose metrics change."""

Tags = tuple[str, ...]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


class _Series:
    """The values of one metric in this process, by the values of its tags."""

    def __init__(
        self, kind: str, name: str, description: str, tag_keys: Tags, boundaries: list[float]
    ) -> None:
        self.kind = kind
        self.name = name
        self.description = description
        self.tag_keys = tag_keys
        self.boundaries = boundaries
        self.values: dict[Tags, Any] = {}

    def row(self) -> dict[str, Any]:
        """As it is reported."""
        return {
            "name": self.name, "kind": self.kind, "description": self.description,
            "tag_keys": self.tag_keys, "boundaries": self.boundaries,
            "series": [[list(tags), value] for tags, value in self.values.items()],
        }  # fmt: skip


class _Registry:
    """All metrics of this process, and the thread that reports them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], _Series] = {}
        self._changed = False
        self._reporter: _Reporter | None = None

    def series(
        self, kind: str, name: str, description: str, tag_keys: Tags, boundaries: list[float]
    ) -> _Series:
        """The series of this name and kind; ValueError if it has other tags or boundaries."""
        with self._lock:
            found = self._series.get((kind, name))
            if found is None:
                found = self._series[kind, name] = _Series(kind, name, description, tag_keys, boundaries)
        if found.boundaries != boundaries or set(found.tag_keys) != set(tag_keys):
            raise ValueError(
                f"the {kind} {name!r} exists with tag keys {found.tag_keys} and boundaries "
                f"{found.boundaries}: give the same ones, or another name"
            )
        return found

    def record(self, series: _Series, tags: Tags, change: Any) -> None:
        """`change(old value or None)` is the new value."""
        with self._lock:
            series.values[tags] = change(series.values.get(tags))
            self._changed = True
        self._ensure_reporter()

    def take(self) -> list[dict[str, Any]] | None:
        """Everything recorded so far; None if nothing changed since the last call."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            return [series.row() for series in self._series.values() if series.values]

    def put_back(self) -> None:
        """What was taken did not arrive."""
        with self._lock:
            self._changed = True

    def _ensure_reporter(self) -> None:
        from miniray.runtime.worker import current_or_none

        worker = current_or_none()
        if worker is None or worker.closing:
            return
        with self._lock:
            if self._reporter is not None and self._reporter.worker is worker:
                return
            self._changed = True    # a new session knows nothing of what is recorded already
            self._reporter = _Reporter(worker)
        self._reporter.start()


class _Reporter(threading.Thread):
    """Reports this process's metrics to the cluster that `worker` is connected to."""

    def __init__(self, worker: CoreWorker) -> None:
        super().__init__(name="miniray-metrics", daemon=True)
        self.worker = worker
        self._leaving = threading.Event()
        worker.before_leaving.append(self._leave)

    def run(self) -> None:
        while not self._leaving.wait(REPORT_S):
            self._report()

    def _leave(self) -> None:
        self._leaving.set()
        self._report(timeout=1.0)

    def _report(self, timeout: float = 10.0) -> None:
        from miniray._proto import gcs_pb2
        from miniray.runtime.worker import current_or_none

        rows = REGISTRY.take()
        if rows is None:
            return
        worker = self.worker
        if current_or_none() is not worker:
            REGISTRY.put_back()
            return
        node_id, worker_id = worker.address
        report = {
            "job_id": worker.job_id.hex(), "node_id": node_id.hex(), "worker_id": worker_id.hex(),
            "time": time.time(), "metrics": rows,
        }  # fmt: skip
        put = gcs_pb2.KvPut(
            namespace=namespace_of(worker.job_id), key=KEY_PREFIX + worker_id,
            value=json.dumps(report).encode(), overwrite=True,
        )  # fmt: skip
        try:
            worker.request("kv_put", put, timeout)
        except RayError:
            REGISTRY.put_back()     # the head is away: the next report says it all


REGISTRY = _Registry()


def namespace_of(job_id: bytes) -> bytes:
    """The namespace of a job in the key-value store; it goes with the job."""
    from miniray.core.kv import JOB_PREFIX

    return JOB_PREFIX + job_id


def snapshots() -> list[dict[str, Any]]:
    """The latest report of every process of this job: job_id, node_id, worker_id, time (Unix
    seconds) and `metrics`, rows of name, kind, description, tag_keys, boundaries and series."""
    from miniray.runtime.worker import current

    worker = current()
    return list(reports_of(worker.job_id, worker.request))


def reports_of(job_id: bytes, request: Callable[[str, Any], Any]) -> Iterator[dict[str, Any]]:
    """The latest report of every process of a job; `request` asks the GCS."""
    from miniray._proto import gcs_pb2

    space = namespace_of(job_id)
    for key in request("kv_keys", gcs_pb2.KvKeys(namespace=space, prefix=KEY_PREFIX)).kv_names.keys:
        found = request("kv_get", gcs_pb2.KvGet(namespace=space, key=key)).kv
        report = parsed(found.value) if found.found else None
        if report is not None:
            yield report


class Metric:
    """What the three kinds share. Not to be used by itself."""

    kind = ""

    _boundaries: Sequence[float] = ()

    def __init__(
        self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None
    ) -> None:
        if not name:
            raise ValueError("Empty name is not allowed. Please provide a metric name.")
        discarded = not _NAME.fullmatch(name)
        if discarded:
            warnings.warn(
                f"Invalid metric name: {name}. It is not reported: a name consists of letters, digits, _ "
                "and :, and does not begin with a digit.",
                UserWarning, stacklevel=3,
            )  # fmt: skip
        if tag_keys is not None and not isinstance(tag_keys, tuple):
            raise TypeError(f"tag_keys should be a tuple type, got: {type(tag_keys)}")
        for key in tag_keys or ():
            if not isinstance(key, str):
                raise TypeError(f"Tag keys must be str, got {type(key)}.")
        self._name = name
        self._description = description
        self._tag_keys = tag_keys or ()
        self._default_tags: dict[str, str] = {}
        make = _Series if discarded else REGISTRY.series
        self._series = make(self.kind, name, description, self._tag_keys, list(self._boundaries))

    def set_default_tags(self, default_tags: dict[str, str]) -> Metric:
        """Tags used where a call gives none. Returns the metric. ValueError for an unknown key."""
        self._checked(default_tags)
        self._default_tags = dict(default_tags)
        return self

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        return {
            "name": self._name, "description": self._description,
            "tag_keys": self._tag_keys, "default_tags": self._default_tags,
        }  # fmt: skip

    def _checked(self, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            if key not in self._tag_keys:
                raise ValueError(f"Unrecognized tag key {key}.")
            if not isinstance(value, str):
                raise TypeError(f"Tag values must be str, got {type(value)}.")

    def _tags(self, tags: dict[str, str] | None) -> Tags:
        given = self._default_tags
        if tags:
            self._checked(tags)
            given = {**given, **tags}
        missing = [key for key in self._tag_keys if key not in given]
        if missing:
            raise ValueError(f"Missing value for tag key(s): {','.join(missing)}.")
        return tuple(given[key] for key in self._series.tag_keys)

    def _number(self, value: Any) -> float:
        if not isinstance(value, (int, float)):
            raise TypeError(f"value must be int or float, got {type(value)}.")
        return value

    def __reduce__(self) -> Any:
        return _restore, (type(self), self._arguments(), self._default_tags)

    def _arguments(self) -> tuple[Any, ...]:
        return self._name, self._description, self._tag_keys


def _restore(kind: type[Metric], arguments: tuple[Any, ...], default_tags: dict[str, str]) -> Metric:
    return kind(*arguments).set_default_tags(default_tags)


class Counter(Metric):
    """A sum that only grows. The series of different processes add up."""

    kind = "counter"

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        """Add `value`. ValueError unless it is above 0."""
        added = self._number(value)
        if added <= 0:
            raise ValueError(f"value must be >0, got {value}")
        REGISTRY.record(self._series, self._tags(tags), lambda old: (old or 0.0) + added)


class Gauge(Metric):
    """The latest value of something."""

    kind = "gauge"

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Record `value`."""
        latest = self._number(value)
        REGISTRY.record(self._series, self._tags(tags), lambda _old: latest)


class Histogram(Metric):
    """How often values fell between boundaries, their number and their sum."""

    kind = "histogram"

    def __init__(
        self, name: str, description: str = "", boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:  # fmt: skip
        if not boundaries:
            raise ValueError(
                "boundaries argument should be provided when using the Histogram class. "
                "e.g., Histogram('name', boundaries=[1.0, 2.0])"
            )
        if any(edge <= 0 for edge in boundaries):
            raise ValueError(f"Invalid `boundaries` argument at {self!r}: boundaries must be > 0.")
        self._boundaries = sorted(float(edge) for edge in boundaries)
        super().__init__(name, description, tag_keys)

    def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Count `value` in."""
        seen = self._number(value)
        bucket = bisect.bisect_left(self._boundaries, seen)

        def counted(old: Any) -> Any:
            counts, total = old or ([0] * (len(self._boundaries) + 1), 0.0)
            counts = [count + (i == bucket) for i, count in enumerate(counts)]
            return counts, total + seen

        REGISTRY.record(self._series, self._tags(tags), counted)

    @property
    def info(self) -> dict[str, Any]:
        """As for every metric, and the boundaries."""
        return {**super().info, "boundaries": self._boundaries}

    def _arguments(self) -> tuple[Any, ...]:
        return self._name, self._description, self._boundaries, self._tag_keys


__all__ = ["Counter", "Gauge", "Histogram", "snapshots"]
