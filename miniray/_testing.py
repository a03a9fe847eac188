"""Looks inside for tests: what no public call tells. Not an interface; may change any day."""

from __future__ import annotations

from typing import Any

from miniray import api


def object_exists(ref: Any) -> bool:
    """True when the object (a reference or its id) is in this node's store or in this process's memory."""
    from miniray.core.directory import INLINE

    id = ref if isinstance(ref, bytes) else ref.binary()
    worker = api.connected_worker()
    with worker.lock:
        entry = worker.owner.directory.find(id)
    return (entry is not None and entry.state == INLINE) or bool(worker.store.contains(id))


def get_all_reference_counts() -> dict[bytes, dict[str, int]]:
    """Hex id (as bytes) → {"local": references here, "submitted": tasks that hold it}, without zeros.

    Objects only: what stands for an actor's handle is left out.
    """
    worker = api.connected_worker()
    worker.collect_released()
    with worker.lock:
        entries = list(worker.owner.directory.objects.values())
    return {
        entry.id.hex().encode(): {"local": entry.local, "submitted": entry.pins}
        for entry in entries
        if (entry.local or entry.pins) and not (entry.rare is not None and entry.rare.stands_for)
    }


def get_memory_store_size() -> int:
    """How many objects this process keeps in its own memory, without what stands for actors' handles."""
    from miniray.core.directory import INLINE

    worker = api.connected_worker()
    with worker.lock:
        entries = list(worker.owner.directory.objects.values())
    return sum(
        entry.state == INLINE and not (entry.rare is not None and entry.rare.stands_for) for entry in entries
    )
