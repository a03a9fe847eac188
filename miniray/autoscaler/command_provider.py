"""Nodes by commands of the user: whatever starts a machine that joins, and whatever lets it go.

Each runs in a shell with these variables, and must end within `WITHIN_S`::

    MINIRAY_ADDRESS          HOST:PORT of the head
    MINIRAY_NODE_HANDLE      what the node is called, now and when it is let go
    MINIRAY_NODE_KIND        the name of its kind
    MINIRAY_NODE_RESOURCES   what it is to offer, as a JSON object        (start only)
    MINIRAY_NODE_LABELS      labels it must join with, as a JSON object   (start only)

The start command returns when the machine is on its way; on it runs, in the end,
`miniray start --address "$MINIRAY_ADDRESS" --labels "$MINIRAY_NODE_LABELS"`. An exit code other than 0 says
that it will not come. The token is not passed on: the machine has it, or a join string, from elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miniray.autoscaler.autoscaler import NodeKind

WITHIN_S = 300.0


class CommandProvider:
    """A `NodeProvider`; its nodes outlive it."""

    def __init__(self, address: str, start: str, stop: str, within_s: float = WITHIN_S) -> None:
        """`start` and `stop` are commands for /bin/sh."""
        self._address = address
        self._start = start
        self._stop = stop
        self._within_s = within_s
        self._kinds: dict[str, str] = {}

    def start(self, kind: NodeKind, handle: str) -> None:
        """See `NodeProvider`. RuntimeError when the command fails."""
        from miniray.autoscaler.autoscaler import HANDLE_LABEL, TYPE_LABEL

        labels = {**kind.labels, HANDLE_LABEL: handle, TYPE_LABEL: kind.name}
        self._kinds[handle] = kind.name
        self._run(
            self._start, handle, MINIRAY_NODE_RESOURCES=json.dumps(dict(kind.resources)),
            MINIRAY_NODE_LABELS=json.dumps(labels),
        )  # fmt: skip

    def stop(self, handle: str) -> None:
        """See `NodeProvider`. RuntimeError when the command fails."""
        self._run(self._stop, handle)
        self._kinds.pop(handle, None)

    def close(self) -> None:
        """Nothing ends with it."""

    def _run(self, command: str, handle: str, **more: str) -> None:
        kind = self._kinds.get(handle) or handle.rsplit("-", 2)[0]
        environment = dict(os.environ, MINIRAY_ADDRESS=self._address, MINIRAY_NODE_HANDLE=handle,
                           MINIRAY_NODE_KIND=kind, **more)  # fmt: skip
        with tempfile.TemporaryFile("w+", errors="replace") as said:  # a pipe would be held by what stays
            process = subprocess.Popen(
                command, shell=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=said, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(self._within_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise RuntimeError(f"{command!r} did not end within {self._within_s:g} s") from None
            if code:
                said.seek(0)
                last = said.read().strip().splitlines()[-1:] or ["it said nothing"]
                raise RuntimeError(f"{command!r} ended with {code}: {last[0]}")
