"""A look at a process of this node from outside, when it does not answer by itself.

The kernel knows whether it is stopped, asleep or busy. What its threads execute a worker tells on
`STACK_SIGNAL`: faulthandler writes all Python stacks to a memfd of the worker's own, from a signal
handler and without the interpreter lock, so also while native code holds that. Loop thread of the
raylet; nothing blocks.
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

from miniray.runtime.own_code import is_library, is_package

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

STACK_SIGNAL = signal.SIGRTMIN + 9
"""Of the real-time signals, which programs hardly ever use; see `output.install`."""
STACK_FILE = "miniray-stack"

WRITTEN_AFTER_S = 0.3

_ENDING = 0x4 | 0x400
"""Flags of a process in the kernel: it exits, or a signal has killed it (PF_EXITING, PF_SIGNALED)."""
_LINE = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)

STATES = {
    "R": "it is busy and does not give up its interpreter lock: native code, or a very long operation",
    "S": "it sleeps in a system call and does not give up its interpreter lock, or its raylet link is stuck",
    "D": "it waits for a disk or a device driver",
    "T": "it is stopped by a signal (SIGSTOP)",
    "t": "a debugger has stopped it",
    "Z": "it has ended",
}


def look(loop: asyncio.AbstractEventLoop, pid: int, stack: bool, then: Callable[[str, str], None]) -> None:
    """`then(state, stacks)` soon; `stacks` is "" where there are none to be had."""
    letter = state_of(pid)
    words = STATES.get(letter, "it has ended" if not letter else f"its state is {letter}")
    if letter == "T":
        words += f": `kill -CONT {pid}` lets it go on"
    told = letter == "R" or (stack and letter == "S")   # a signal may end a sleep: only who asks for it
    number = stack_descriptor(pid) if told else None
    if number is None:
        loop.call_soon(then, words, "")
        return
    path = f"/proc/{pid}/fd/{number}"
    before = _size(path)
    try:
        os.kill(pid, STACK_SIGNAL)
    except OSError:
        loop.call_soon(then, words, "")
        return

    def written() -> None:
        stacks = _rest(path, before)
        line = user_line(stacks)
        then(f"{words}, at {line}" if line else words, stacks if stack else "")

    loop.call_later(WRITTEN_AFTER_S, written)


def user_line(stacks: str) -> str:
    """The innermost line of user code in faulthandler's text, of the first thread with one; "" for none."""
    own = (found for found in _LINE.finditer(stacks) if not is_package(found[1]))
    chosen = next((found for found in own if not is_library(found[1])), None)
    return f"{chosen[1]}:{chosen[2]} in {chosen[3]}" if chosen is not None else ""


def state_of(pid: int) -> str:
    """The kernel's letter for a process; "" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def lives(pid: int) -> bool:
    """Whether the process runs, or could: it has not ended and is not on its way there."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in ("Z", "X") and not int(fields[6]) & _ENDING


def stack_descriptor(pid: int) -> int | None:
    """Where the process writes its stacks, if it does so on our signal."""
    try:
        with open(f"/proc/{pid}/status") as file:
            caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
        if not caught >> (STACK_SIGNAL - 1) & 1:
            return None
        for name in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith(f"/memfd:{STACK_FILE}"):
                return int(name)
    except (OSError, StopIteration):
        pass
    return None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _rest(path: str, start: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
