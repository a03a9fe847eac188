"""Sum many arrays in pairs: log2(n) levels, and no process ever holds them all."""

import numpy as np

import miniray as ray


@ray.remote
def make(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(100_000)


@ray.remote
def add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left + right


def main() -> None:
    ray.init()
    count = 32
    level = [make.remote(seed) for seed in range(count)]
    levels = 0
    while len(level) > 1:
        # References only: the driver touches none of the arrays on the way. The list that is
        # replaced held the last references to its arrays, so their memory is given back.
        level = [
            add.remote(level[i], level[i + 1]) if i + 1 < len(level) else level[i]
            for i in range(0, len(level), 2)
        ]
        levels += 1
    total = ray.get(level[0])
    print(f"{count} arrays summed in {levels} levels, mean {total.mean() / count:.4f}")
    expected = sum(np.random.default_rng(seed).random(100_000) for seed in range(count))
    assert np.allclose(total, expected)


if __name__ == "__main__":
    main()
