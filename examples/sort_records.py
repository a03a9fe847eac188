"""Sort 100-byte records over all nodes, shuffled all-to-all: sort_records.py [RECORDS] [PARTS]."""

import sys
import time
from itertools import pairwise

import numpy as np

import miniray as ray

RECORD = np.dtype([("key", "u8"), ("number", "u8"), ("body", "u4", 21)])


def bodies(numbers: np.ndarray) -> np.ndarray:
    return (numbers[:, None] * np.uint64(2654435761) + np.arange(21, dtype="u8")).astype("u4")


@ray.remote(scheduling_strategy="SPREAD")
def make(first: int, last: int) -> np.ndarray:
    records = np.empty(last - first, RECORD)
    records["key"] = np.random.default_rng(first).integers(0, 2**64, last - first, "u8")
    records["number"] = np.arange(first, last)
    records["body"] = bodies(records["number"])
    return records


@ray.remote
def split(records: np.ndarray, parts: int) -> list[np.ndarray]:
    places = (records["key"] >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)
    order = np.argsort(places, kind="stable")
    return np.split(records[order], np.searchsorted(places[order], np.arange(1, parts)))


@ray.remote(scheduling_strategy="SPREAD")
def merge(*pieces: np.ndarray) -> np.ndarray:
    records = np.concatenate(pieces)
    return records[np.argsort(records["key"])]


@ray.remote
def check(records: np.ndarray, total: int) -> tuple[int, int, np.ndarray]:
    """First key, last key, and a bit for each record that is here; none is harmed or out of order."""
    keys, numbers = records["key"], records["number"]
    assert (keys[:-1] <= keys[1:]).all() and (records["body"] == bodies(numbers)).all()
    return int(keys[0]), int(keys[-1]), np.packbits(np.bincount(numbers.astype("i8"), minlength=total) == 1)


def sort(inputs: list, parts: int) -> list:
    pieces = [split.options(num_returns=parts).remote(one, parts) for one in inputs]
    return [merge.remote(*column) for column in zip(*pieces)]


def check_all(outputs: list, total: int) -> None:
    found = ray.get([check.remote(one, total) for one in outputs])
    assert all(one[1] <= following[0] for one, following in pairwise(found))
    assert (sum(np.unpackbits(one[2], count=total) for one in found) == 1).all(), "each record once"


def main(total: int = 200_000, parts: int = 8) -> None:
    ray.init()
    bounds = [total * part // parts for part in range(parts + 1)]
    inputs = [make.remote(*pair) for pair in pairwise(bounds)]
    ray.wait(inputs, num_returns=parts, fetch_local=False)
    start = time.perf_counter()
    outputs = sort(inputs, parts)
    ray.wait(outputs, num_returns=parts, fetch_local=False)
    rate = total * RECORD.itemsize / (time.perf_counter() - start) / 1e6
    check_all(outputs, total)
    print(f"{total} records sorted at {rate:.0f} MB/s, each of them checked")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
