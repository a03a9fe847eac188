"""The guardian: a process between raylet and zygote that ends what is left when both are killed.

::

    raylet (subreaper) ── guardian (subreaper, session of its own) ── zygote (subreaper) ── workers

Each of the three can clean up alone, so of any two that are killed at the same moment the third is left
to do it: what a worker had started, in whatever session, becomes the child of the nearest subreaper
above it that lives. The guardian serves nobody: it reads a pipe whose only write end is the raylet's, as
a shell, for which a fifth of a megabyte is enough. At the pipe's end it becomes an interpreter that
cleans up (`main`). When all three are killed at once `remains` says who does it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from miniray.runtime import agent, boot, session_lock

TITLE = "miniray-guardian"
SHELL = "/bin/sh"
WAIT_THEN_CLEAN = 'read -r end; exec "$@"'
URL_REMOVAL_S = 30
"""What a raylet that was killed had spilled to some other file system is given up after so long."""


def become(raylets_end: int, lock: int, directories: list[str]) -> NoReturn:
    """Turn a fresh fork of the raylet, whose child is the zygote, into the guardian; never returns.

    `raylets_end` can be read when the raylet has ended. `lock` (of the session) and what is to be
    removed at the end, `directories`, are handed on.
    """
    try:
        agent.become_subreaper()
        os.setsid()     # a signal to the raylet's process group is none to this process
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(raylets_end, 0)
        os.set_inheritable(lock, True)
        clean = [*boot.interpreter(), boot.__file__, "guardian", *directories]
        os.execv(SHELL, ["sh", "-c", WAIT_THEN_CLEAN, TITLE, *clean])
    except OSError as error:
        sys.stderr.write(f"{TITLE}: {SHELL}: {error.strerror}\n")
    finally:
        os._exit(1)     # its child goes to the raylet


def main(directories: list[str]) -> NoReturn:
    """The raylet has ended: what `boot.py guardian DIRECTORY…` calls."""
    end_everything(directories)
    os._exit(0)


def end_everything(directories: list[str]) -> None:
    """Kill and reap all descendants, keep the logs of a raylet that was killed, remove the directories."""
    from miniray.runtime import kept_logs

    agent.end_below()
    kept_logs.keep_unsettled(directories[0])
    for directory in reversed(directories):  # the session's last: it says where the other one is
        if "://" not in directory:
            session_lock.remove(directory)
    for url in directories:
        if "://" in url:
            from miniray.runtime import spill_places

            spill_places.remove_within(url, URL_REMOVAL_S)
