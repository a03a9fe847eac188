"""Starting daemons: a local session for `init()`, heads and nodes. Light: standard library only.

A daemon becomes a child of init (the user's `os.wait()` never meets it) and lives in a session of
its own; a local one ends with this process. Its output goes to `logs/daemon.log` of the session.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from miniray.runtime import boot
from miniray.runtime.daemon import HeadOptions, NodeOptions, options_json

READY_WITHIN_S = 30.0


@dataclass(frozen=True)
class LocalSession:
    """A daemon that was started for this process."""

    session_dir: str
    socket: str
    token: str
    node_id: str
    pid: int

    def end(self, within_s: float = 5.0) -> None:
        """Tell the daemon to end and wait until it has; kills it after `within_s`."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            os.kill(self.pid, 15)
            ready, _, _ = select.select([fd], [], [], within_s)
            if not ready:
                os.kill(self.pid, 9)  # the zygote cleans up
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)


def start_local(options: NodeOptions) -> LocalSession:
    """Start GCS and raylet in one daemon. RuntimeError says why it did not come up."""
    options.driver_pid = os.getpid()
    ready = start_daemon("local", options)
    return LocalSession(ready["session_dir"], ready["socket"], ready["token"], ready["node_id"], ready["pid"])


def start_daemon(
    kind: str, options: NodeOptions | HeadOptions, *, output: int | None = None
) -> dict[str, Any]:
    """Start a daemon ("local", "node" or "head") and wait until it can be reached.

    Returns its ready line. `output` is a descriptor for what it prints; None: this process's own.
    The options travel through a memfd: the token is in no command line. RuntimeError says why the
    daemon did not come up.
    """
    read_ready, write_ready = os.pipe()
    options_fd = os.memfd_create("options")
    try:
        options.ready_fd = write_ready
        os.write(options_fd, options_json(kind, options))
        os.lseek(options_fd, 0, os.SEEK_SET)
        launcher = subprocess.Popen(
            [sys.executable, boot.__file__, str(options_fd)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(write_ready, options_fd))
        os.close(write_ready)
        write_ready = -1
        if kind == "local":  # what this process will need anyway, while the daemon starts
            from miniray.runtime import driver  # noqa: F401
        line = _read_line(read_ready, launcher)
        launcher.wait()
    finally:
        os.close(read_ready)
        os.close(options_fd)
        if write_ready >= 0:
            os.close(write_ready)
    ready: dict[str, Any] = json.loads(line) if line else {"error": "it ended before it was ready"}
    if "error" in ready:
        raise RuntimeError(f"the {kind} daemon did not start: {ready['error']}")
    return ready


def _read_line(fd: int, launcher: subprocess.Popen[bytes]) -> bytes:
    """The daemon's line, b"" when it closed the pipe without one."""
    deadline = time.monotonic() + READY_WITHIN_S
    data = b""
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        ready, _, _ = select.select([fd], [], [], max(0.0, left))
        if not ready:
            launcher.kill()
            raise RuntimeError(f"the daemon was not ready after {READY_WITHIN_S:.0f} s")
        piece = os.read(fd, 65536)
        if not piece:
            return b""
        data += piece
    return data
