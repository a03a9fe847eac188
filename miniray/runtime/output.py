"""A worker's stdout and stderr: files that say which task or actor wrote what follows.

A worker's descriptors 1 and 2 are log files of the session. Whoever reads them (the raylet, for
the driver; people) must know what printed a line, and a worker runs many functions. So before the
first text of another task or actor goes a line of its own, as in Ray's logs::

    :job_id:01000000
    :task_name:f            or, once per process, :actor_name:A
    what f printed

For tasks it is written only when something is printed: one that prints nothing costs nothing. What
bypasses `sys.stdout` (C code, child processes) counts for whoever printed last.

Text leaves the process with each line; `settle` writes out what no line break has ended, before a
task's result is told. Any thread.
"""

from __future__ import annotations

import faulthandler
import io
import os
import sys

from miniray.runtime.logs import ACTOR, JOB, TASK
from miniray.runtime.process_look import STACK_FILE, STACK_SIGNAL
from miniray.runtime.task_context import CURRENT

unfinished = False
"""Some stream holds the beginning of a line; see `settle`."""

_job = ""
_actor = ""


class MarkedStream(io.TextIOWrapper):
    """Line-buffered text on a descriptor, with marks where the writer changes."""

    def __init__(self, descriptor: int) -> None:
        raw = io.FileIO(descriptor, "wb", closefd=False)
        # Not buffered below the text layer: `sys.stdout.buffer.write` needs no flush either.
        super().__init__(raw, "utf-8", "backslashreplace", line_buffering=True)
        self._marked = ""
        self.in_line = False

    def write(self, text: str) -> int:
        """Write, behind a mark when another task or actor wrote before."""
        global unfinished
        if not text:
            return 0
        if _actor:
            if self._marked != _actor:
                self.mark(_actor)
        elif (context := CURRENT.get()) is not None and context.name != self._marked:
            self.mark(context.name)
        super().write(text)
        self.in_line = text[-1] != "\n"
        unfinished = unfinished or self.in_line
        return len(text)

    def mark(self, name: str) -> None:
        """What follows was written by `name`."""
        lines = "\n" if self.in_line else ""
        if not self._marked:
            lines += f"{JOB}{_job}\n"
        self._marked = name
        name = name.replace("\n", " ")  # else it could be a mark of its own
        super().write(f"{lines}{ACTOR if _actor else TASK}{name}\n")


def install() -> None:
    """Make `sys.stdout` and `sys.stderr` of this worker marked streams."""
    sys.stdout = sys.__stdout__ = MarkedStream(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = MarkedStream(2)  # type: ignore[misc]
    faulthandler.enable(all_threads=False)  # a crash leaves its stack in the log
    faulthandler.register(STACK_SIGNAL, os.memfd_create(STACK_FILE), all_threads=True)


def belongs_to(job_id: bytes) -> None:
    """The job this process works for."""
    global _job
    _job = job_id.hex()


def is_actor(name: str) -> None:
    """This process is an actor from now on: every line is its own, whoever writes it."""
    global _actor
    if name != _actor:
        _actor = name
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, MarkedStream):
                stream.mark(name)


def settle() -> None:
    """Write out lines that were begun and not ended."""
    global unfinished
    unfinished = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, MarkedStream) and stream.in_line:
            stream.flush()
