"""What workers print, read from their log files as it grows and handed on by job.

Polling with a pause that doubles while nothing is new; `read_all` reads at once, before an exit
or a driver's goodbye. Lines are handed on whole; what follows the last line break waits for the
rest, for `UNFINISHED_S` or until the worker or its driver ends. Marks between the lines say which
task or actor wrote them (see `output`) and are not handed on.

A batch is JSON: {"pid", "ip", "name", "stream": "out" | "err", "lines": [...]}. Loop's thread;
one look reads `LOOK_BYTES` of a file at most, so a worker that prints without end stops nobody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

JOB = ":job_id:"
TASK = ":task_name:"
ACTOR = ":actor_name:"
"""Beginnings of marks, as in Ray's logs; written by `output`."""

READ_BYTES = 256 * 1024
LOOK_BYTES = 1 << 20
LINE_BYTES = 1 << 20
"""A longer line is handed on in pieces."""
UNFINISHED_S = 0.4
"""The beginning of a line is shown when nothing has followed for so long: a prompt, a progress bar."""
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 0.25

_JOB, _TASK, _ACTOR = JOB.encode(), TASK.encode(), ACTOR.encode()


@dataclass(slots=True)
class Tail:
    """One log file and how far it was read."""

    path: str
    stream: str
    fd: int = -1
    rest: bytes = b""
    name: str = ""
    """Who wrote the next line, when a mark has told."""
    waited_s: float = 0.0
    """For how long nothing has followed `rest`."""
    shown_early: bool = False
    """The beginning of this line was handed on without its end."""


@dataclass(slots=True)
class WorkerLogs:
    """The two files of one worker."""

    pid: int
    tails: list[Tail] = field(default_factory=list)


class Logs:
    """See the module head. `emit(startup_token, batch)` gets each batch as JSON bytes; `ip` is this
    node's address; `name_of` says what a worker runs as long as no mark has told."""

    def __init__(
        self, emit: Callable[[bytes, bytes], None], name_of: Callable[[bytes], str], ip: str = ""
    ) -> None:
        self._emit = emit
        self._name_of = name_of
        self._ip = ip
        self._workers: dict[bytes, WorkerLogs] = {}
        self.pause_s = PAUSE_FIRST_S

    def opened(self, startup_token: bytes, pid: int, stdout_path: str, stderr_path: str) -> None:
        """A worker writes to these files."""
        self._workers[startup_token] = WorkerLogs(pid, [Tail(stdout_path, "out"), Tail(stderr_path, "err")])

    def closed(self, startup_token: bytes) -> None:
        """The worker has ended: hand on the rest and close."""
        worker = self._workers.pop(startup_token, None)
        if worker is None:
            return
        for tail in worker.tails:
            self._read_to_the_end(startup_token, worker, tail)
            if tail.fd >= 0:
                os.close(tail.fd)

    def read_all(self, to_the_end: bool = False) -> None:
        """Hand on what is new; with `to_the_end` all of it, lines without an end too."""
        found = 0
        for startup_token, worker in self._workers.items():
            for tail in worker.tails:
                if to_the_end:
                    self._read_to_the_end(startup_token, worker, tail)
                else:
                    found += self._look(startup_token, worker, tail)
        self.pause_s = PAUSE_FIRST_S if found else min(PAUSE_MAX_S, 2 * self.pause_s)

    def close(self) -> None:
        """Stop reading."""
        for worker in self._workers.values():
            for tail in worker.tails:
                if tail.fd >= 0:
                    os.close(tail.fd)
        self._workers.clear()

    def _look(self, startup_token: bytes, worker: WorkerLogs, tail: Tail) -> int:
        found = self._read(startup_token, worker, tail, LOOK_BYTES)
        if found or not tail.rest:
            tail.waited_s = 0.0
            return found
        tail.waited_s += self.pause_s
        if tail.waited_s >= UNFINISHED_S and not tail.rest.startswith((_JOB, _TASK, _ACTOR)):
            rest, tail.rest = tail.rest, b""
            tail.shown_early = True
            self._hand_on(startup_token, worker, tail, [rest])
        return found

    def _read_to_the_end(self, startup_token: bytes, worker: WorkerLogs, tail: Tail) -> None:
        """Up to where the file ends now; an orphan of the worker may go on writing."""
        if self._open(tail):
            left = os.fstat(tail.fd).st_size - os.lseek(tail.fd, 0, os.SEEK_CUR)
            self._read(startup_token, worker, tail, left)
            rest, tail.rest = tail.rest, b""
            if rest:
                self._hand_on(startup_token, worker, tail, [rest])

    def _open(self, tail: Tail) -> bool:
        if tail.fd < 0:
            try:
                tail.fd = os.open(tail.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False  # the process has not come so far
        return True

    def _read(self, startup_token: bytes, worker: WorkerLogs, tail: Tail, most: int) -> int:
        """Read up to `most` bytes and hand on the whole lines. Returns how many bytes there were."""
        total = 0
        while total < most and self._open(tail):
            data = os.read(tail.fd, min(READ_BYTES, most - total))
            if not data:
                break
            total += len(data)
            *lines, tail.rest = (tail.rest + data).split(b"\n")
            if len(tail.rest) > LINE_BYTES:
                lines.append(tail.rest)
                tail.rest = b""
            if lines and tail.shown_early:
                tail.shown_early = False
                if not lines[0]:
                    del lines[0]    # nothing but the end of a line that was shown
            if lines:
                self._hand_on(startup_token, worker, tail, lines)
        return total

    def _hand_on(self, startup_token: bytes, worker: WorkerLogs, tail: Tail, lines: list[bytes]) -> None:
        for name, run in runs(tail, lines):
            batch = {
                "pid": worker.pid, "ip": self._ip, "name": name or self._name_of(startup_token),
                "stream": tail.stream, "lines": [line.decode("utf-8", "replace") for line in run],
            }  # fmt: skip
            self._emit(startup_token, json.dumps(batch).encode())


def runs(tail: Tail, lines: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Cut lines at their marks: (who wrote them, lines)."""
    run: list[bytes] = []
    for line in lines:
        if line[:1] != b":" or not line.startswith((_JOB, _TASK, _ACTOR)):
            run.append(line)
            continue
        if run:
            yield tail.name, run
            run = []
        if not line.startswith(_JOB):
            tail.name = line.split(b":", 2)[2].decode("utf-8", "replace")
    if run:
        yield tail.name, run


def without_marks(text: str) -> str:
    """A piece of a log file as it is shown to people."""
    return "".join(line for line in text.splitlines(True) if not line.startswith((JOB, TASK, ACTOR)))
