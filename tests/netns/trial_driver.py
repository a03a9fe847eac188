"""What `tests.netns.trial` has run on each engine: one JSON line for each part, with its seconds.

A line from stdin, the address it says, and parts begin: a tree of tasks over all nodes, one large object to
all nodes, a sort, and a sort during which somebody pulls a cable. Every result is checked.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np

import miniray as ray
from examples.sort_records import RECORD, check_all, make, sort


def say(**news: Any) -> None:
    print(json.dumps(news), flush=True)


@ray.remote(num_cpus=0.1)
def tree(depth: int, spread: int = 3) -> tuple[int, list[str]]:
    """How many tasks are in this tree, and the nodes that they ran on. `spread`: levels that go round."""
    here = ray.get_runtime_context().get_node_id()
    if not depth:
        return 1, [here]
    child = tree.options(scheduling_strategy="SPREAD") if spread else tree
    below = ray.get([child.remote(depth - 1, max(0, spread - 1)) for _ in range(2)])
    return 1 + sum(count for count, _ in below), sorted({here, *(one for _, nodes in below for one in nodes)})


def trees(nodes: int, depth: int) -> None:
    started = time.perf_counter()
    count, seen = ray.get(tree.remote(depth))
    seconds = time.perf_counter() - started
    say(part="tree", seconds=seconds, amount=count, unit="tasks", right=count == 2**(depth + 1) - 1,
        nodes=len(seen), of=nodes)  # fmt: skip


@ray.remote
def total(array: np.ndarray) -> int:
    return int(array[::4096].sum())


def broadcast(nodes: list[str], size: int) -> None:
    value = np.full(size, 3, np.uint8)
    expected = int(value[::4096].sum())
    at = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    ray.get([total.options(scheduling_strategy=at(node, soft=False)).remote(value[:1]) for node in nodes])
    started = time.perf_counter()
    ref = ray.put(value)
    sums = ray.get([total.options(scheduling_strategy=at(node, soft=False)).remote(ref) for node in nodes])
    seconds = time.perf_counter() - started
    say(part="broadcast", seconds=seconds, amount=size * (len(nodes) - 1) / 1e6, unit="MB",
        right=sums == [expected] * len(nodes))  # fmt: skip


def sorting(part: str, records: int, parts: int) -> None:
    bounds = [records * one // parts for one in range(parts + 1)]
    inputs = [make.remote(*pair) for pair in pairwise(bounds)]
    ray.wait(inputs, num_returns=parts, fetch_local=False)
    say(part=part, begins=True)
    started = time.perf_counter()
    outputs = sort(inputs, parts)
    del inputs
    ray.wait(outputs, num_returns=parts, fetch_local=False)
    seconds = time.perf_counter() - started
    right = True
    try:
        check_all(outputs, records)
    except (AssertionError, ray.exceptions.RayTaskError) as error:
        print(error, file=sys.stderr)
        right = False
    say(part=part, seconds=seconds, amount=records * RECORD.itemsize / 1e6, unit="MB", right=right)


def main() -> None:
    count, depth, records, parts, size = map(int, sys.argv[1:])
    ray.init(address=os.environ["TRIAL_ADDRESS"], configure_logging=False, log_to_driver=False)
    deadline = time.monotonic() + 180
    while len(nodes := [node["NodeID"] for node in ray.nodes() if node["Alive"]]) < count:
        assert time.monotonic() < deadline, f"{len(nodes)} of {count} nodes are here"
        time.sleep(0.05)
    trees(count, depth)
    trees(count, depth)
    broadcast(nodes, size)
    sorting("sort", records, parts)
    sorting("sort, cable pulled", records, parts)
    ray.shutdown()


if __name__ == "__main__":
    main()
