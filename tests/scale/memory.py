"""What a restarted head, and a raylet that has just joined, hold: bytes by the growth of the process.

`python -m tests.scale.memory DATABASE` prints one line of JSON. A process of its own, for what the
hollow cluster itself needs would hide it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from random import Random
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray.core.head import Head
from miniray.core.node import Node
from miniray.runtime.sqlite_storage import SqliteStorage

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory of this process that is its own."""
    gc.collect()
    with open("/proc/self/statm") as file:
        _, resident, shared = (int(word) for word in file.read().split()[:3])
    return (resident - shared) * _PAGE


def measure(path: str) -> dict[str, Any]:
    """Bytes per row of each kind, seconds of a restart, of a collection, bytes per node in a raylet."""
    storage = SqliteStorage(path)
    rows = storage.load()
    storage.close()
    figures: dict[str, Any] = {}
    kept: list[Any] = []
    for kind, tables in (("node", ["node"]), ("actor", ["actor", "actor_task"]), ("group", ["group"])):
        mine = [row for row in rows if row[0] in tables]
        count = sum(1 for row in mine if row[0] == kind)
        before = resident_bytes()
        head = Head(Random(1))
        head.restore(0.0, mine)
        kept.append(head)
        figures[kind] = (resident_bytes() - before) / max(1, count)
    start = time.thread_time()
    head = Head(Random(1))
    head.restore(0.0, rows)
    figures["restart_s"] = time.thread_time() - start
    nodes = [common.NodeInfo.FromString(value) for table, _, value in rows if table == "node"]
    for info in nodes:
        info.available.CopyFrom(info.total)
    view = gcs.NodeMessage(view=gcs.ClusterView(full=True, nodes=nodes)).SerializeToString()
    before = resident_bytes()
    raylet = Node(common.NodeInfo(node_id=bytes(28)), Random(1), store_bytes=1)
    raylet.head_message(0.0, gcs.NodeMessage.FromString(view))
    figures["view"] = (resident_bytes() - before) / max(1, len(nodes))
    del raylet
    kept.clear()
    gc.collect()
    start = time.thread_time()
    gc.collect()
    figures["collection_s"] = time.thread_time() - start
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
