"""What a test leaves in object stores: nothing, or it says why.

When the body of a test has passed and its session is still up, all its references are gone: within
`SETTLE_S` the store of its node must be empty, and no process may know of an object in another one.
Whatever is left fails the test by name, with who holds it. `@pytest.mark.holds_objects("reason")` is
for tests that leave objects on purpose.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

SETTLE_S = 10.0
TOLD = 5
"""Objects that are told of at length."""


def left() -> list[str]:
    """Objects in stores, after a while; [] when there is none."""
    from miniray import api

    worker = api.current_worker()
    if worker is None:
        return []
    deadline = time.monotonic() + SETTLE_S
    while found := [oid.hex() for oid, *_ in worker.store.list()] or list(_elsewhere()):
        if time.monotonic() > deadline:
            return [*map(_told, found[:TOLD]), *found[TOLD:]]
        gc.collect()    # an exception and its frames are a cycle
        time.sleep(0.02)
    return []


def _elsewhere() -> Iterator[str]:
    """Objects that somebody knows in a store of another node; a cluster of one has no other."""
    import miniray as ray
    from miniray.util import state

    here = ray.get_runtime_context().get_node_id()
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        for row in state.list_objects(limit=10_000, raise_on_missing_output=False):
            if row["state"] == "STORED" and set(row["locations"]) - {here}:
                yield row["object_id"]


def _told(oid: str) -> str:
    from miniray.util import state

    rows = state.list_objects(filters=[("object_id", "=", oid)], limit=100, raise_on_missing_output=False)
    holders = [
        f"{row['type'].lower()} {row['pid']} has {row['local_references']} references "
        f"({row['reference_type']}, {row['state']}, {row['object_size']} bytes)"
        for row in rows
    ]
    return f"object {oid}: {'; '.join(holders) or 'nobody knows it'}; {state.explain(oid)}"
