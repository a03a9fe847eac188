"""What a job's workers print, in the driver: `(f pid=123) text`, stdout to stdout, stderr to stderr.

::

    worker ─▶ log file ─▶ its raylet (`logs`) ─▶ channel "log" of the job ─▶ I/O thread ─▶ queue ─▶ printer

The I/O thread only queues, so a terminal that stands still stops nothing; the printer is a daemon
thread that starts with the first line and sleeps in between. Lines of one worker keep their order.

Lines that several workers print, numbers in them apart, are shown once and then counted, as in
Ray: within `WINDOW_S` one line tells how often it came again. RAY_DEDUP_LOGS=0 shows each.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from miniray import config

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

WINDOW_S = 5.0
"""Equal lines are counted together for so long."""
QUEUE_LIMIT = 64 << 20
"""Bytes that wait for a blocked terminal; what comes on top is left out, and that is said."""
PROGRESS = b"__ray_tqdm_magic_token__"
"""A batch with this may hold states of progress bars (`experimental.tqdm_ray`) among its lines."""
LATE_LINES_S = 0.3
"""Raylets of other nodes read their workers' files this often at least (see `logs`)."""

_NUMBER = re.compile(r"\d|0x[0-9a-fA-F]")
_COLOURS = (35, 36, 32, 34, 95, 96, 92, 94)
"""Magenta, cyan, green, blue and their light forms: red and yellow are for what went wrong."""


class Line(NamedTuple):
    """One line and where it came from."""

    name: str
    pid: int
    ip: str
    text: str


@dataclass(slots=True)
class Repeated:
    """A line that was shown, and what came of the same kind since."""

    since: float
    sources: dict[tuple[str, int], None] = field(default_factory=dict)
    count: int = 0
    last: Line | None = None


class Deduplicator:
    """Equal lines of several workers become one. `now` is monotonic seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._recent: dict[str, Repeated] = {}
        self._explained = False

    def add(self, now: float, line: Line) -> Iterator[Line]:
        """What to show for a new line: itself, or nothing yet."""
        key = " ".join(word for word in line.text.split() if not _NUMBER.search(word))
        if not key:
            yield line
            return
        known = self._recent.get(key)
        if known is None:
            self._recent[key] = Repeated(now, {(line.ip, line.pid): None})
            yield line
            return
        known.sources[(line.ip, line.pid)] = None
        if len(known.sources) == 1:
            yield line  # a worker may say the same thing twice
        else:
            known.count += 1
            known.last = line

    def due(self, now: float) -> Iterator[Line]:
        """What was counted and is old enough to be told; all of it at `now` = infinity."""
        for key, known in list(self._recent.items()):
            if now - known.since < self._window_s:
                return
            del self._recent[key]
            if known.last is None:
                continue
            yield known.last if known.count == 1 else self._counted(known.last, known.count)
            if known.count > 1 and now != float("inf"):  # it seems to go on
                self._recent[key] = Repeated(now, known.sources)

    def next_due(self) -> float | None:
        """When `due` is worth a call; None: when there are lines again."""
        waiting = [known.since for known in self._recent.values() if known.count]
        return min(waiting) + self._window_s if waiting else None

    def _counted(self, line: Line, count: int) -> Line:
        text = f"{line.text} [repeated {count}x across cluster]"
        if not self._explained:
            self._explained = True
            text += " (equal lines of several workers are shown once: set RAY_DEDUP_LOGS=0 to see each)"
        return line._replace(text=text)


def _room() -> contextlib.AbstractContextManager[None]:
    """Progress bars, if there are any, make room meanwhile."""
    progress = sys.modules.get("miniray.experimental.tqdm_ray")
    return progress.instance().room() if progress is not None else contextlib.nullcontext()


class Sink:
    """One of the driver's streams: prefix, colour, deduplication."""

    def __init__(self, stream: str, own_ip: str, says_who: bool = True) -> None:
        self._stream = stream
        self._own_ip = own_ip
        self._says_who = says_who
        self.repeats = Deduplicator() if config.get("dedup_logs") else None
        knob = config.KNOBS["color_prefix"]
        self._per_worker: bool = config.get("color_prefix")
        self._asked = self._per_worker and any(os.environ.get(name) for name in knob.environment)

    def show(self, lines: Iterator[Line] | list[Line]) -> None:
        """Print now, above progress bars. A stream that is closed or broken swallows it."""
        file = getattr(sys, self._stream)
        if file is None:
            return
        with contextlib.suppress(OSError, ValueError):
            coloured = self._asked or file.isatty()
            text = "".join(f"{self._prefix(line, coloured)}{line.text}\n" for line in lines)
            if text:
                with _room():
                    file.write(text)
                    file.flush()

    def _prefix(self, line: Line, coloured: bool) -> str:
        if not self._says_who:
            return ""
        from miniray.printable import on_one_line  # most drivers print nothing of others

        name = f"{on_one_line(line.name)} " if line.name else ""
        elsewhere = f", ip={line.ip}" if line.ip and line.ip != self._own_ip else ""
        prefix = f"({name}pid={line.pid}{elsewhere})"
        if not coloured:
            return f"{prefix} "
        colour = _COLOURS[line.pid % len(_COLOURS)] if self._per_worker else 36
        return f"\x1b[2m\x1b[{colour}m{prefix}\x1b[0m "


class LogStream:
    """The output of one job's workers; made by its driver."""

    def __init__(self, worker: CoreWorker) -> None:
        ip = self._own_ip = worker.node_info.host
        says_who = not worker.job.logging      # else the records do
        self._sinks = {"out": Sink("stdout", ip, says_who), "err": Sink("stderr", ip, says_who)}
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._left_out = 0
        self._wanted = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._last_arrival = 0.0
        self.far = False
        """Lines have come from other nodes."""
        worker.subscribe("log", worker.job_id, self._arrived)

    def _arrived(self, publication: Any) -> None:
        """A batch came. I/O thread."""
        self._last_arrival = time.monotonic()
        self.far = self.far or publication.cursor > 0   # this node's raylet hands its own on directly
        if publication.resync or self._queued_bytes > QUEUE_LIMIT:
            self._left_out += 1
        else:
            self._queue.append(publication.data)
            self._queued_bytes += len(publication.data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._print, name="miniray-log", daemon=True)
            self._thread.start()
        self._wanted.set()

    def await_late_lines(self) -> None:
        """Before a driver leaves nodes whose raylets may still be reading."""
        began = time.monotonic()
        while time.monotonic() < max(began, min(self._last_arrival, began + 1.0)) + LATE_LINES_S:
            time.sleep(0.01)

    def close(self, within_s: float = 2.0) -> None:
        """Everything that has come is printed; waits `within_s` for a terminal that stands still."""
        self._closing = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(within_s)

    def _print(self) -> None:
        """The printer thread."""
        while True:
            self._wanted.wait(self._pause())
            self._wanted.clear()
            closing = self._closing
            self._take_turn()
            if closing:
                break
        for sink in self._sinks.values():
            if sink.repeats is not None:
                sink.show(sink.repeats.due(float("inf")))

    def _without_progress(self, lines: list[Line]) -> list[Line]:
        """States of progress bars go to their manager; the other lines."""
        from miniray.experimental import tqdm_ray

        others = []
        for line in lines:
            state = tqdm_ray.state_in(line.text, line.pid)
            if state is None:
                others.append(line)
            else:
                elsewhere = line.ip if line.ip != self._own_ip else ""
                tqdm_ray.instance().process_state_update(state, elsewhere)
        return others

    def _pause(self) -> float | None:
        due = [sink.repeats.next_due() for sink in self._sinks.values() if sink.repeats is not None]
        times = [at for at in due if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _take_turn(self) -> None:
        """Print what is queued, and what was counted long enough."""
        while self._queue:
            data = self._queue.popleft()
            self._queued_bytes -= len(data)
            batch = json.loads(data)
            sink = self._sinks[batch["stream"]]
            lines = [Line(batch["name"], batch["pid"], batch["ip"], text) for text in batch["lines"]]
            if PROGRESS in data:
                lines = self._without_progress(lines)
            if sink.repeats is not None:
                now = time.monotonic()
                lines = [shown for line in lines for shown in sink.repeats.add(now, line)]
            sink.show(lines)
        if self._left_out:
            missed, self._left_out = self._left_out, 0
            text = f"{missed} pieces of output were left out: more came than could be shown"
            self._sinks["err"].show([Line("miniray", os.getpid(), "", text)])
        for sink in self._sinks.values():
            if sink.repeats is not None:
                sink.show(sink.repeats.due(time.monotonic()))
