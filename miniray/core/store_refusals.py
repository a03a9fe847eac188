"""Why the object store has no room, in words that name the object, the figures and the holders. Pure."""

from __future__ import annotations

from collections.abc import Callable

from miniray._proto import common_pb2 as common
from miniray.core.node_effects import StoredObject, Survey

MIB = 1 << 20
HOLDERS_SHOWN = 5


def never_fits(object_id: bytes, size: int, capacity: int) -> common.Failure:
    """The object is larger than the whole store."""
    return common.Failure(kind=common.STORE_FULL, message=(
        f"object {object_id.hex()} of {size / MIB:.1f} MiB can never fit: the object store of this node "
        f"has {capacity / MIB:.1f} MiB; start it with a larger object_store_memory"))


def full(object_id: bytes, size: int, survey: Survey, client_name: Callable[[bytes], str],
         waited_s: float, disk_full: str) -> common.Failure:
    """Nothing could be evicted or spilled in time; `disk_full` says why spilling failed, if it did."""
    holders: dict[str, int] = {}
    for item in survey.objects:
        use = _use_of(item, client_name)
        holders[use] = holders.get(use, 0) + item.size
    top = sorted(holders.items(), key=lambda pair: -pair[1])[:HOLDERS_SHOWN]
    rest = "; ".join(f"{held / MIB:.1f} MiB {use}" for use, held in top)
    disk = f"; spilling failed: {disk_full}" if disk_full else ""
    return common.Failure(
        kind=common.OUT_OF_DISK if disk_full else common.STORE_FULL,
        message=(
            f"no room for object {object_id.hex()} of {size / MIB:.1f} MiB in the object store of "
            f"{survey.capacity / MIB:.1f} MiB after {waited_s:.0f} s: {rest}; "
            f"the largest free piece has {survey.largest_free / MIB:.1f} MiB{disk}"))


def _use_of(item: StoredObject, client_name: Callable[[bytes], str]) -> str:
    readers = ", ".join(dict.fromkeys(client_name(reader) for reader in item.readers))
    if item.deleting:
        return "freed already but still read" + (f" by {readers}" if readers else "")
    maker = client_name(item.creator) if item.creator else "a client that has ended"
    if not item.sealed:
        return f"being written by {maker}"
    if item.pinned:
        return f"read by {readers or 'clients'}"
    return f"held, made by {maker}"
