"""Calls whose form may still change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miniray import api

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker


def get_local_object_locations(obj_refs: Sequence[Any]) -> dict[Any, dict[str, Any]]:
    """Where the objects are, as far as this process knows: ref → {"node_ids", "object_size", …}.

    Node ids are hexadecimal; `object_size` is in bytes, None while unknown; `did_spill` is False.
    RuntimeError without a session.
    """
    from miniray.core.directory import INLINE

    worker = _worker()
    found = {}
    with worker.lock:
        for ref in obj_refs:
            entry = ref.entry
            nodes = [node.hex() for node in entry.locations]
            here = worker.address[0].hex()
            if here not in nodes and worker.store.contains(entry.id):
                nodes.append(here)  # a copy that was pulled: its owner knows, this borrower need not
            if entry.state == INLINE and not nodes:
                nodes = [here]  # it is in this process
            size = entry.size if entry.ready else None
            found[ref] = {"node_ids": nodes, "object_size": size, "did_spill": False}
    return found


def get_object_locations(obj_refs: Sequence[Any], timeout_ms: int = -1) -> dict[Any, dict[str, Any]]:
    """The same, after asking the owners of borrowed references.

    Waits for their answers at most `timeout_ms` milliseconds (-1: one second); an object that is
    still being made has no locations.
    """
    from miniray.core.directory import UNKNOWN

    worker = _worker()
    unknown = [ref for ref in obj_refs if ref.entry.state == UNKNOWN]
    if unknown:
        timeout = 1.0 if timeout_ms < 0 else timeout_ms / 1000
        worker.wait(unknown, len(unknown), timeout, fetch_local=False)
    return get_local_object_locations(obj_refs)


def _worker() -> CoreWorker:
    worker = api.current_worker()
    if worker is None:
        raise RuntimeError("Ray hasn't been initialized.")
    return worker
