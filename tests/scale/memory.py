"""What a restarted head, and a raylet that has just joined, hold: bytes by the allocator's own books.

`PYTHONMALLOC=malloc python -m tests.scale.memory DATABASE` prints one line of JSON. With that setting
objects of Python are in those books too, and no arena, page or free list blurs what one row takes.
A process of its own, for what the hollow cluster itself needs would hide it. Without the setting and with
several databases it prints what a restart on each of them takes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray.core.head import Head
from miniray.core.node import Node
from miniray.runtime.sqlite_storage import SqliteStorage

SETTING = {"PYTHONMALLOC": "malloc"}
"""Of the environment of this process."""


class _Books(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost")]  # fmt: skip


def used_bytes() -> int:
    """What is allocated and not freed."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Books
    books = mallinfo2()
    return int(books.uordblks + books.hblkhd)


def measure(path: str) -> dict[str, Any]:
    """Bytes per row of each kind, seconds of a restart, of a collection, bytes per node in a raylet."""
    storage = SqliteStorage(path)
    rows = [row for row in storage.load() if not _is_of_the_past(*row)]
    storage.close()
    figures: dict[str, Any] = {}
    kept: list[Any] = []
    for kind, tables in (("node", ["node"]), ("actor", ["actor", "actor_task"]), ("group", ["group"])):
        mine = [row for row in rows if row[0] in tables]
        count = sum(1 for row in mine if row[0] == kind)
        before = used_bytes()
        head = Head(Random(1))
        head.restore(0.0, mine)
        kept.append(head)
        figures[kind] = (used_bytes() - before) / max(1, count)
    nodes = [common.NodeInfo.FromString(value) for table, _, value in rows if table == "node"]
    for info in nodes:
        info.available.CopyFrom(info.total)
    view = gcs.NodeMessage(view=gcs.ClusterView(full=True, nodes=nodes)).SerializeToString()
    before = used_bytes()
    raylet = Node(common.NodeInfo(node_id=bytes(28)), Random(1), store_bytes=1)
    raylet.head_message(0.0, gcs.NodeMessage.FromString(view))
    figures["view"] = (used_bytes() - before) / max(1, len(nodes))
    return figures


def _is_of_the_past(table: str, key: bytes, value: bytes) -> bool:
    """What a probe has ended, of which the head keeps a row for a while."""
    if table == "node":
        return common.NodeInfo.FromString(value).state == common.NODE_DEAD
    if table == "actor":
        return common.ActorInfo.FromString(value).state == common.DEAD
    return table == "group" and common.PlacementGroupInfo.FromString(value).state == common.GROUP_REMOVED


@dataclass(frozen=True)
class Restart:
    """Seconds of a restart of the head on a database, of one collection then, and the rows that it read."""

    restart_s: float
    collection_s: float
    rows: int


def restarts(paths: list[str], rounds: int = 4) -> list[Restart]:
    """For each database; they take turns, and the cheapest round of each counts.

    The caller's process holds nothing much, for a collection goes through all of it.
    """
    best: list[Restart] = []
    for _ in range(rounds):
        this = [_restart(path) for path in paths]
        best = [Restart(min(a.restart_s, b.restart_s), min(a.collection_s, b.collection_s), a.rows)
                for a, b in zip(best or this, this, strict=True)]  # fmt: skip
    return best


def _restart(path: str) -> Restart:
    gc.collect()
    gc.disable()
    storage = SqliteStorage(path)
    start = time.thread_time()
    rows = storage.load()
    head = Head(Random(1))
    head.restore(0.0, rows)
    restored = time.thread_time()
    gc.collect()
    collected = time.thread_time()
    gc.enable()
    storage.close()
    assert head.members.living, "a head without nodes"
    return Restart(restored - start, collected - restored, len(rows))


if __name__ == "__main__":
    if SETTING.items() <= os.environ.items():
        print(json.dumps(measure(sys.argv[1])))
    else:
        print(json.dumps([asdict(restart) for restart in restarts(sys.argv[1:])]))
