"""Between two nodes on this machine: the relay of calls and the transfer of objects."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from .measuring import Case, Row, Settings, rows_of

BATCH = 1_000


def measure(engine: str, settings: Settings) -> Iterator[Row]:
    """Start a cluster of two nodes, measure as a driver on the first, end it."""
    names = ("cross-node tasks", "cross-node actor calls", "cross-node 256 MB")
    if not any(settings.only in name for name in names):
        return
    ray = importlib.import_module(engine)
    cluster_utils = importlib.import_module(f"{engine}.cluster_utils")
    store = {"object_store_memory": 1 << 30}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **store})
    try:
        cluster.add_node(num_cpus=1, resources={"far": 100}, **store)
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            yield from rows_of(_cases(ray, settings, names), settings)
        finally:
            ray.shutdown()
    finally:
        cluster.shutdown()


def _cases(ray: Any, settings: Settings, names: tuple[str, ...]) -> Iterator[Case]:
    @ray.remote(num_cpus=1, resources={"far": 1})
    def nop() -> bytes:
        return b"ok"

    class Far:
        def call(self) -> bytes:
            return b"ok"

        def make(self, nbytes: int) -> Any:
            import numpy as np

            return np.ones(nbytes, np.uint8)

    far = ray.remote(num_cpus=0, resources={"far": 1})(Far).remote()
    ray.get([far.call.remote(), nop.remote()])
    nbytes = settings.sized(256_000_000)
    fresh: list[Any] = []

    def batch(call: Any) -> Callable[[], Any]:
        return lambda: ray.get([call.remote() for _ in range(BATCH)])

    def make() -> None:
        fresh[:] = [far.make.remote(nbytes)]
        ray.wait(fresh, fetch_local=False)

    tasks, calls, transfer = names
    yield Case(tasks, "/s", BATCH, batch(nop))
    yield Case(calls, "/s", BATCH, batch(far.call))
    if importlib.util.find_spec("numpy"):
        yield Case(transfer, "s", 1, lambda: ray.get(fresh[0]), "time", prepare=make)
