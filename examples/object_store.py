"""Put a large array once, read it from many tasks without copying it."""

import time

import numpy as np

import miniray as ray


@ray.remote
def slice_mean(image: np.ndarray, row: int) -> float:
    # `image` is a read-only view on shared memory: no bytes were copied to get here.
    assert not image.flags.writeable
    return float(image[row].mean())


def main() -> None:
    ray.init()
    image = np.random.default_rng(0).random((1_000, 10_000))  # 80 MB

    started = time.perf_counter()
    ref = ray.put(image)
    print(f"put  {image.nbytes / 1e6:.0f} MB in {time.perf_counter() - started:.3f} s")

    started = time.perf_counter()
    view = ray.get(ref)
    print(f"get  {view.nbytes / 1e6:.0f} MB in {time.perf_counter() - started:.6f} s (a view, not a copy)")

    means = ray.get([slice_mean.remote(ref, row) for row in range(100)])
    assert np.allclose(means, image[:100].mean(axis=1))
    print(f"100 tasks read it in place; the mean of the means is {np.mean(means):.4f}")


if __name__ == "__main__":
    main()
