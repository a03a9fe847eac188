"""Parsers of what comes from outside: an answer or an error of the documented kind, soon, whatever the bytes.

A parser of frames may raise anything (its channel is closed then), but not go on for long.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miniray import exposition
from miniray.core import environments, events
from miniray.core.circuit import Circuit, Forgotten
from miniray.runtime import frames
from miniray.runtime import join_string as join_strings
from miniray.runtime.environment_setup import Problem, unpack
from miniray.web.guard import Guard, Refused

_FRAMES: tuple[Callable[[bytes], Any], ...] = (
    frames.unpack_reply, frames.unpack_bounce, frames.unpack_object, frames.unpack_answer,
    lambda frame: frames.unpack_slot(frame, 0), lambda frame: frames.unpack_result(frame, 0),
)  # fmt: skip


def frame(data: bytes) -> None:
    """Frames between workers: the first byte says which."""
    if data:
        with contextlib.suppress(struct.error, ValueError, IndexError):
            _FRAMES[data[0] % len(_FRAMES)](data[1:])


def circuit(data: bytes) -> None:
    """Batches of a circuit to another node: its books stay right."""
    end = Circuit(1)
    end.pack([b"x"])
    for at in range(0, len(data), 32):
        with contextlib.suppress(Forgotten, struct.error):
            end.unpack(data[at : at + 32])
        end.check()


def task_events(data: bytes) -> None:
    """Packed rows of task events: those that are whole, and no others."""
    found = list(events.unpack_rows(data))
    assert len(found) * 142 <= len(data)


def environment(data: bytes) -> None:
    """A runtime environment's JSON: what is kept is of the right kind, and nothing hidden is shown."""
    text = data.decode(errors="replace")
    fields = environments.parse(text)
    environments.malformed(text)
    assert environments.setup_limit_s(fields) >= 0
    shown = environments.parse(environments.shown(text)).get("env_vars") or {}
    assert all(value == environments.HIDDEN for value in shown.values())


def metrics(data: bytes) -> None:
    """A metric report of a process: nothing in it begins a line of its own."""
    report = exposition.parsed(data)
    if report is not None:
        for line in exposition.exposition([report]).splitlines():
            assert line.startswith("# ") or line[0].isalpha() or line[0] in "_:", line


def join_string(data: bytes) -> None:
    """Join strings: understood or refused with a ValueError."""
    sealed = join_strings._to_text(data + join_strings._checksum(data))
    for text in (data.decode(errors="replace"), join_strings.PREFIX + sealed):
        with contextlib.suppress(ValueError):
            found = join_strings.parse(text)
            assert isinstance(found.address, str) and isinstance(found.token, str)


def archive(data: bytes) -> None:
    """An archive of a working directory: plain files inside the target, or a Problem, and nothing outside."""
    with tempfile.TemporaryDirectory() as where:
        path = Path(where, "in.zip")
        path.write_bytes(data)
        target = Path(where, "out")
        with contextlib.suppress(Problem):
            unpack(path, target)
        assert set(os.listdir(where)) <= {"in.zip", "out"}
        for folder, folders, files in os.walk(target):
            for name in folders + files:
                assert not Path(folder, name).is_symlink()


def request_head(data: bytes) -> None:
    """The head of an HTTP request: let in only with the token and a Host of this machine."""
    lines = data.split(b"\n")
    pairs = [line.partition(b":") for line in lines[1:]]
    headers = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
    scope = {"type": "http", "method": "GET", "path": lines[0].decode("latin-1"), "scheme": "http",
             "server": ("127.0.0.1", 80), "headers": headers}  # fmt: skip
    try:
        Guard(_no_application, "fuzz-token").check(scope)
    except Refused:
        return
    assert scope["path"] == "/healthz" or (b"authorization", b"Bearer fuzz-token") in headers
    [host] = [value.lower() for name, value in headers if name == b"host"]
    assert b"127.0.0.1" in host or b"localhost" in host


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("not called")
