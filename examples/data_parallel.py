"""Data-parallel training by hand: every worker has the model and a part of the data; gradients are averaged.

`train_torch.py` is the same with TorchTrainer, which adds restarts and checkpoints.
"""

import numpy as np

import miniray as ray

TRUE_WEIGHTS = np.array([2.0, -3.4, 0.5, 4.2])
WORKERS, STEPS, RATE = 2, 60, 0.1


@ray.remote
class Worker:
    def __init__(self, rank: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        share = slice(len(inputs) * rank // WORKERS, len(inputs) * (rank + 1) // WORKERS)
        self.inputs, self.targets = inputs[share], targets[share]  # views of shared memory: no copies

    def gradient(self, weights: np.ndarray) -> tuple[np.ndarray, float]:
        error = self.inputs @ weights - self.targets
        return 2 * self.inputs.T @ error / len(error), float(np.mean(error**2))


def main() -> None:
    ray.init()
    random = np.random.default_rng(0)
    inputs = random.normal(size=(20_000, TRUE_WEIGHTS.size))
    targets = inputs @ TRUE_WEIGHTS
    data = ray.put(inputs), ray.put(targets)
    workers = [Worker.remote(rank, *data) for rank in range(WORKERS)]
    weights = np.zeros(TRUE_WEIGHTS.size)
    for step in range(STEPS):
        answers = ray.get([worker.gradient.remote(weights) for worker in workers])
        weights -= RATE * np.mean([gradient for gradient, _ in answers], axis=0)
        if step % 20 == 0:
            print(f"step {step}: loss {np.mean([loss for _, loss in answers]):.4f}")
    print(f"weights {np.round(weights, 3)}, true {TRUE_WEIGHTS}")
    assert np.allclose(weights, TRUE_WEIGHTS, atol=0.05)


if __name__ == "__main__":
    main()
