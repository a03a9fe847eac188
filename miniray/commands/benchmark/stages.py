"""Where the microseconds of a call go, stage by stage on both sides, by time stamps and sampling.

::

    driver   call ─ submit ─▶ send ┄┄ ring ┄┄┐                ┌┄┄▶ frame ─ handle ─▶ ─ get ─▶ value
    worker                                   └▶ frame ─ dispatch ─▶ body ─▶ ─ reply ─▶ send ┄┄┘

A `Recorder` in each process stamps the passage of a frame at four seams (the ring's send, the
pump's handler, the body's start and end); the clock is the machine's, so the stamps of both sides
are one line, and the stages of a call add up to the whole. Calls are made one at a time for that.
How each side spends its CPU when calls are queued in batches is sampled on its main thread: share
of samples by the function that was running.

Limit: the stamps themselves take about a microsecond per call.
"""

from __future__ import annotations

import collections
import signal
import statistics
import time
from itertools import pairwise
from types import FrameType, SimpleNamespace
from typing import Any

STAGES = ("submit", "ring to the worker", "dispatch", "body", "reply", "ring to the driver", "handle", "get")
BATCH = 1_000
WARM_UP = 200
SAMPLE_S = 0.001
SHOWN = 12

_recorder: Recorder | None = None


class Recorder:
    """Stamps and samples of the process it is installed in."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.handled: list[int] = []
        self.done: list[int] = []
        self.body: list[int] = []
        self.samples: collections.Counter[str] = collections.Counter()

    def install(self) -> None:
        """Put the stamps into this process's worker library; they stay."""
        global _recorder
        from miniray.runtime import transport, worker

        _recorder = self
        clock, pump = time.perf_counter_ns, worker.current().pump
        handle, send = pump._handle, transport.RingChannel.send

        def stamped_handle(frames: list[Any]) -> None:
            if frames:
                self.handled.append(clock())
            handle(frames)
            if frames:
                self.done.append(clock())

        def stamped_send(channel: Any, *arguments: Any, **options: Any) -> None:
            self.sent.append(clock())
            send(channel, *arguments, **options)

        pump._handle = stamped_handle
        transport.RingChannel.send = stamped_send  # type: ignore[method-assign,assignment]

    def clear(self) -> None:
        """Forget the stamps."""
        for stamps in (self.sent, self.handled, self.done, self.body):
            stamps.clear()

    def sample(self, on: bool) -> None:
        """Begin or end sampling the main thread by its CPU time."""
        if on:
            signal.signal(signal.SIGPROF, self._sampled)
        interval = SAMPLE_S if on else 0.0
        signal.setitimer(signal.ITIMER_PROF, interval, interval)
        if not on:  # not the default: a signal that is still under way would end the process
            signal.signal(signal.SIGPROF, signal.SIG_IGN)

    def _sampled(self, _number: int, frame: FrameType | None) -> None:
        if frame is not None:
            module = frame.f_globals.get("__name__", "?").removeprefix("miniray.")
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # 3.10 has no qualified one
            self.samples[f"{module}.{name}"] += 1


def remote_install() -> None:
    """Prepare the worker's side."""
    Recorder().install()


def remote_body() -> None:
    """The call that is measured."""
    assert _recorder is not None
    now = time.perf_counter_ns()
    _recorder.body += (now, now)
    _recorder.body[-1] = time.perf_counter_ns()


def remote_stamps() -> tuple[list[int], list[int], list[int]]:
    """(frames handled, body's start and end, frames sent) since the last time."""
    assert _recorder is not None
    found = list(_recorder.handled), list(_recorder.body), list(_recorder.sent)
    _recorder.clear()
    return found


def remote_sample(on: bool) -> tuple[dict[str, int], float]:
    """Begin or end sampling. Returns the samples and the CPU seconds of the main thread so far."""
    assert _recorder is not None
    if on:
        _recorder.samples.clear()
    _recorder.sample(on)
    return dict(_recorder.samples), time.thread_time()


class _Actor:
    """The actor whose calls are profiled."""

    install = staticmethod(remote_install)
    body = staticmethod(remote_body)
    stamps = staticmethod(remote_stamps)
    sample = staticmethod(remote_sample)


def profile(seconds: float) -> list[dict[str, Any]]:
    """Reports for a task and an actor call, on a session of their own with one CPU."""
    import miniray as ray

    ray.init(address="local", num_cpus=1, log_to_driver=False, configure_logging=False)
    try:
        here = Recorder()
        here.install()
        task = SimpleNamespace(
            install=ray.remote(remote_install), body=ray.remote(remote_body),
            stamps=ray.remote(remote_stamps), sample=ray.remote(remote_sample))
        actor = ray.remote(num_cpus=0)(_Actor).remote()
        return [_report("task", here, task, seconds), _report("actor call", here, actor, seconds)]
    finally:
        ray.shutdown()


def _report(name: str, here: Recorder, side: Any, seconds: float) -> dict[str, Any]:
    """`side` has what runs at the other end, by name: each with `.remote`."""
    import miniray as ray

    ray.get(side.install.remote())
    for _ in range(WARM_UP):
        ray.get(side.body.remote())
    lines: list[list[float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or not lines:
        ray.get(side.stamps.remote())
        here.clear()
        began = time.perf_counter_ns()
        ray.get(side.body.remote())
        ended = time.perf_counter_ns()
        if len(here.done) != len(here.handled):
            continue  # another thread of this process has handled the reply, and is not through with it
        sent, handled, done = here.sent[0], here.handled[-1], here.done[-1]
        there_handled, body, there_sent = ray.get(side.stamps.remote())
        reply = next(stamp for stamp in there_sent if stamp > body[1])
        arrived = max(stamp for stamp in there_handled if stamp < body[0])
        marks = (began, sent, arrived, body[0], body[1], reply, handled, done, ended)
        lines.append([(after - before) / 1000 for before, after in pairwise(marks)])
    stages = {stage: statistics.median(column) for stage, column in zip(STAGES, zip(*lines))}
    total = statistics.median(sum(line) for line in lines)
    report = {"name": name, "calls": len(lines), "total_us": total, "stages": stages}
    return report | _sampled_batches(here, side, seconds)


def _sampled_batches(here: Recorder, side: Any, seconds: float) -> dict[str, Any]:
    """CPU per call and the functions that take it, on both sides, with batches of calls queued."""
    import miniray as ray

    _, there_before = ray.get(side.sample.remote(True))
    here.samples.clear()
    here.sample(True)
    calls, before, end = 0, time.thread_time(), time.monotonic() + seconds
    while time.monotonic() < end or not calls:
        ray.get([side.body.remote() for _ in range(BATCH)])
        calls += BATCH
    spent = time.thread_time() - before
    here.sample(False)
    samples, there_after = ray.get(side.sample.remote(False))
    return {
        "cpu_us": {"driver": spent / calls * 1e6, "worker": (there_after - there_before) / calls * 1e6},
        "functions": {"driver": _shares(dict(here.samples)), "worker": _shares(samples)},
    }


def _shares(samples: dict[str, int]) -> dict[str, float]:
    total = sum(samples.values())
    best = sorted(samples.items(), key=lambda item: item[1], reverse=True)[:SHOWN]
    return {name: count / total for name, count in best}
