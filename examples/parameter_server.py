"""Asynchronous data-parallel training: one actor holds the weights, tasks send gradients.

The model is a linear regression in plain numpy, so that every line that distributes is visible.
"""

import numpy as np

import miniray as ray

TRUE_WEIGHTS = np.array([2.0, -3.4, 0.5, 4.2])
LEARNING_RATE = 0.1


@ray.remote
class ParameterServer:
    def __init__(self, size: int) -> None:
        self.weights = np.zeros(size)
        self.updates = 0

    def apply(self, gradient: np.ndarray) -> np.ndarray:
        self.weights = self.weights - LEARNING_RATE * gradient
        self.updates += 1
        return self.weights

    def state(self) -> tuple[np.ndarray, int]:
        return self.weights, self.updates


@ray.remote
def train(server: "ray.ActorHandle", shard: int, steps: int) -> float:
    """Run `steps` gradient steps on one shard of the data; returns the last loss."""
    random = np.random.default_rng(shard)
    inputs = random.normal(size=(500, TRUE_WEIGHTS.size))
    targets = inputs @ TRUE_WEIGHTS + random.normal(scale=0.01, size=500)
    weights, _ = ray.get(server.state.remote())
    loss = 0.0
    for _ in range(steps):
        error = inputs @ weights - targets
        loss = float(np.mean(error**2))
        weights = ray.get(server.apply.remote(2 * inputs.T @ error / len(targets)))
    return loss


def main() -> None:
    ray.init()
    server = ParameterServer.options(num_cpus=0).remote(TRUE_WEIGHTS.size)
    losses = ray.get([train.remote(server, shard, steps=40) for shard in range(4)])
    weights, updates = ray.get(server.state.remote())
    print(f"{updates} updates, losses {np.round(losses, 4)}")
    print(f"weights {np.round(weights, 3)}, true {TRUE_WEIGHTS}")
    assert np.allclose(weights, TRUE_WEIGHTS, atol=0.05)


if __name__ == "__main__":
    main()
