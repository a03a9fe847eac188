"""Estimate pi by throwing darts; an actor gathers the progress of all tasks."""

import math

import numpy as np

import miniray as ray

TASKS, ROUNDS, DARTS_PER_ROUND = 8, 10, 100_000


@ray.remote
class Progress:
    def __init__(self) -> None:
        self.darts = self.hits = 0

    def report(self, darts: int, hits: int) -> None:
        self.darts += darts
        self.hits += hits

    def estimate(self) -> tuple[int, float]:
        return self.darts, 4 * self.hits / max(self.darts, 1)


@ray.remote
def throw(seed: int, progress: "ray.ActorHandle") -> int:
    # A seed per task: independent streams, and the same pi on every run.
    random = np.random.default_rng(seed)
    total = 0
    for _ in range(ROUNDS):
        x, y = random.random((2, DARTS_PER_ROUND))
        hits = int(np.count_nonzero(x * x + y * y < 1))
        progress.report.remote(DARTS_PER_ROUND, hits)
        total += hits
    return total


def main() -> None:
    ray.init()
    progress = Progress.options(num_cpus=0).remote()
    pending = [throw.remote(seed, progress) for seed in range(TASKS)]
    hits = 0
    while pending:
        done, pending = ray.wait(pending)
        hits += sum(ray.get(done))
        darts, estimate = ray.get(progress.estimate.remote())
        print(f"{darts:>9,} darts: pi is about {estimate:.5f}")
    pi = 4 * hits / (TASKS * ROUNDS * DARTS_PER_ROUND)
    print(f"pi = {pi:.5f}, off by {abs(pi - math.pi):.5f}")
    assert abs(pi - math.pi) < 0.005


if __name__ == "__main__":
    main()
