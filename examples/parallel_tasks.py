"""The smallest program: a function becomes a task, its result a reference."""

import os
import time

import miniray as ray


@ray.remote
def square(x: int) -> tuple[int, int]:
    time.sleep(0.05)  # stands for work
    return x * x, os.getpid()


def main() -> None:
    ray.init()
    started = time.perf_counter()
    refs = [square.remote(x) for x in range(20)]  # returns at once

    # Take results in the order in which they finish, not in which they were submitted.
    total, pids, pending = 0, set(), refs
    while pending:
        done, pending = ray.wait(pending, num_returns=1)
        value, pid = ray.get(done[0])
        total += value
        pids.add(pid)

    seconds = time.perf_counter() - started
    print(f"sum of squares {total}, {len(refs)} tasks on {len(pids)} workers")
    print(f"{seconds:.2f} s in parallel, {0.05 * len(refs):.2f} s one after the other")
    assert total == sum(x * x for x in range(20))


if __name__ == "__main__":
    main()
