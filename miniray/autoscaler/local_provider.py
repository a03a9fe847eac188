"""Nodes as daemons of this machine: for tests, and for trying out what an autoscaler would do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from miniray.runtime import launch, sessions
from miniray.runtime.daemon import NodeOptions

if TYPE_CHECKING:
    from miniray.autoscaler.autoscaler import NodeKind

STORE_BYTES = 150 << 20


class LocalProvider:
    """A `NodeProvider` whose nodes end with this process at the latest."""

    def __init__(self, address: str, token: str = "", store_bytes: int = STORE_BYTES) -> None:
        """`address` is HOST:PORT of the head; the token is that of a session here if it is not given."""
        self._address = address
        self._token = token or next((s.token() for s in sessions.living() if s.address == address), "")
        self._store_bytes = store_bytes
        self.nodes: dict[str, launch.LocalSession] = {}

    def start(self, kind: NodeKind, handle: str) -> None:
        """See `NodeProvider`."""
        from miniray.autoscaler.autoscaler import HANDLE_LABEL, TYPE_LABEL

        offered = dict(kind.resources)
        options = NodeOptions(
            gcs_address=self._address, token=self._token, num_cpus=offered.pop("CPU", 0),
            num_gpus=offered.pop("GPU", 0), memory=int(offered.pop("memory", 0)), resources=offered,
            labels={**kind.labels, HANDLE_LABEL: handle, TYPE_LABEL: kind.name}, node_name=handle,
            object_store_memory=self._store_bytes, driver_pid=os.getpid(),
        )  # fmt: skip
        self.nodes[handle] = launch.LocalSession(launch.start_daemon("node", options))

    def stop(self, handle: str) -> None:
        """See `NodeProvider`."""
        node = self.nodes.pop(handle, None)
        if node is not None:
            node.end()

    def close(self) -> None:
        """End all of them."""
        for handle in list(self.nodes):
            self.stop(handle)
