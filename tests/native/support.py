"""Helpers of the native tests: ids, and child processes that act as other clients of a store."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from miniray._native import Store

DEADLINE_S = 20.0
"""How long anything may take before a test gives up; reached only on failure."""


def oid(n: int) -> bytes:
    """The n-th object id."""
    return n.to_bytes(28, "little")


def payload(n: int, size: int) -> bytes:
    """`size` bytes that tell which object they belong to."""
    return (b"%08x" % (n & 0xFFFFFFFF) * (size // 8 + 1))[:size]


def eventually(condition: Callable[[], Any]) -> Any:
    """Waits until `condition()` is true and returns it."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.001)
    return value


class Child:
    """A forked process running `function(socket, *args)`; exit status 0 unless it raised."""

    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        self.pid = os.fork()
        if self.pid == 0:
            self.socket.close()
            theirs.settimeout(DEADLINE_S)
            status = 1
            try:
                function(theirs, *args)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        theirs.close()
        self._status: int | None = None

    def hear(self) -> bytes:
        """One byte that the child sent; fails if it ended instead."""
        said = self.socket.recv(1)
        assert said, f"the child ended with status {self.join()}"
        return said

    def say(self) -> None:
        self.socket.sendall(b".")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.join() == -signal.SIGKILL

    def join(self) -> int:
        """Waits for its end; the exit status, negative for a signal."""
        if self._status is None:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
                    break
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    raise AssertionError("the child did not end in time")
                time.sleep(0.001)
            self.socket.close()
        return self._status


def client(store: Store, function: Callable[..., None], *args: Any) -> tuple[Child, int]:
    """A child that attaches to `store` and runs `function(socket, its store, *args)`; and its slot."""
    slot, fd = store.open_client(), store.fd

    def run(peer: socket.socket) -> None:
        function(peer, Store.attach(fd, slot), *args)

    return Child(run), slot
