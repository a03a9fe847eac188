"""Helpers of the system tests: drivers as processes of their own, and looking at process tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from miniray.runtime import agent

DEADLINE_S = 30.0
"""How long anything may take before a test gives up; reached only on failure."""

PRELUDE = """
import json, os, signal, subprocess, sys, time
import miniray as ray

def say(**news):
    print(json.dumps(news), flush=True)
"""


def eventually(condition: Callable[[], Any], what: str = "", within_s: float = DEADLINE_S) -> Any:
    """Wait until `condition()` is true and return it."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or condition}"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """True while `pid` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def zygote_of(daemon: int) -> int:
    """The zygote of a node's daemon; its forks bear its name, and come after it."""
    return next(pid for pid in agent.descendants_of(daemon)
                if Path(f"/proc/{pid}/comm").read_text() == "miniray-zygote\n")


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Script:
    """A driver in a process of its own: Python text that `say()`s JSON to the test."""

    def __init__(
        self, code: str, *, merge: bool = False, enter: Sequence[str] = (), **environment: str
    ) -> None:
        """`enter`: a command that runs the one that follows it somewhere else (`nsenter`, say)."""
        self.process = subprocess.Popen(
            [*enter, sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT if merge else None,
            env={**os.environ, **environment}, start_new_session=True)  # fmt: skip

    def hear(self) -> dict[str, Any]:
        """The next thing it says; other lines are passed over. AssertionError when it ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)  # type: ignore[no-any-return]
        raise AssertionError(f"the driver ended with status {self.process.wait()}")

    def go_on(self) -> None:
        """Let its `input()` return."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a driver to its end; its output is captured."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)], capture_output=True, text=True,
        timeout=60, env={**os.environ, **environment}, check=False)  # fmt: skip


def kill(pid: int) -> None:
    """SIGKILL one process."""
    os.kill(pid, signal.SIGKILL)


class Effects:
    """Appends from any process; one write is one line."""

    def __init__(self, path: str) -> None:
        self.path = path

    def happened(self, what: str = "once") -> int:
        """Note one effect; returns how many of its kind there are now."""
        with open(self.path, "a") as file:
            file.write(f"{what}\n")
        return self.count(what)

    def count(self, what: str = "once") -> int:
        """How many effects of a kind there were."""
        return self.lines().count(what)

    def lines(self) -> list[str]:
        """All effects, in order."""
        try:
            with open(self.path) as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []
