"""The raylet's side of the node's object store: client records, surveys, and patience.

A client that is stopped (SIGSTOP) while it is inside the store's mutex would stop the whole node.
So the raylet waits for the mutex only for a while, looks whether the holder stands still, and ends
it then; its death hands the mutex on. A holder that is merely slow is waited for. Loop's thread.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable
from typing import Any

from miniray import _native
from miniray.core.node_effects import StoredObject, Survey
from miniray.runtime import agent

log = logging.getLogger(__name__)

LOCK_WAIT_S = 0.25
LOCK_ATTEMPTS = 20
"""How long, and how often, the mutex is waited for."""


class NodeStore:
    """See the module head."""

    def __init__(self, native: _native.Store) -> None:
        self.native = native
        native.set_lock_timeout(LOCK_WAIT_S)
        self._clients: dict[int, bytes] = {}
        """Client record -> worker id."""

    def open_client(self, worker_id: bytes) -> int:
        """A record for one more client; RuntimeError when all are taken."""
        slot: int = self._patiently(self.native.open_client)
        self._clients[slot] = worker_id
        return slot

    def reap_client(self, slot: int) -> None:
        """The client's process has ended: its pins and unsealed objects come back."""
        self._clients.pop(slot, None)
        self._patiently(self.native.reap_client, slot)

    def delete(self, object_ids: Iterable[bytes]) -> None:
        """Delete objects; those that are not there are passed over."""
        for object_id in object_ids:
            self._patiently(self.native.delete, object_id)

    def survey(self) -> Survey:
        """What is in the store, oldest use first, and who reads it."""
        stats = self.native.stats()
        objects = []
        for oid, size, state, creator, primary in self.native.list():
            pins = self.native.pins(oid) if state == "sealed" else []
            objects.append(StoredObject(
                oid, size, state == "sealed", state == "deleting", primary, bool(pins),
                self._clients.get(creator, b""), tuple(self._clients.get(slot, b"") for slot in pins)))
        return Survey(stats["capacity"], stats["used"], stats["largest_free"], objects)

    def _patiently(self, call: Callable[..., Any], *args: Any) -> Any:
        for _ in range(LOCK_ATTEMPTS):
            try:
                return call(*args)
            except _native.StoreBusy as busy:
                if agent.is_stopped(busy.pid):
                    log.error("process %d was stopped while it held the object store: it ends", busy.pid)
                    agent.signal_process(busy.pid, signal.SIGKILL)
        return call(*args)
