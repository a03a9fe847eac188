"""A pipeline that cannot run out of memory: never more than LIMIT blocks are in flight.

A generator task yields blocks, tasks transform them, and the driver stops taking new blocks
while too many are unfinished. The generator in turn pauses when nobody takes its blocks.
"""

import numpy as np

import miniray as ray

BLOCKS, BLOCK_SIZE, LIMIT = 40, 250_000, 4


@ray.remote(num_returns="streaming", _generator_backpressure_num_objects=LIMIT)
def produce():
    for index in range(BLOCKS):
        yield np.full(BLOCK_SIZE, index, dtype=np.float64)  # 2 MB each


@ray.remote
def transform(block: np.ndarray) -> float:
    return float(np.sqrt(block).sum())


def main() -> None:
    ray.init()
    total, in_flight, most = 0.0, [], 0
    for block in produce.remote():
        in_flight.append(transform.remote(block))
        del block  # the task holds the only reference now; the block is freed when it ends
        most = max(most, len(in_flight))
        if len(in_flight) >= LIMIT:
            done, in_flight = ray.wait(in_flight)
            total += sum(ray.get(done))
    total += sum(ray.get(in_flight))
    expected = sum(np.sqrt(index) for index in range(BLOCKS)) * BLOCK_SIZE
    print(f"{BLOCKS} blocks of {BLOCK_SIZE * 8 / 1e6:.0f} MB, at most {most} in flight, sum {total:,.0f}")
    assert np.isclose(total, expected) and most <= LIMIT


if __name__ == "__main__":
    main()
