"""Data-parallel training with TorchTrainer: the loop of one process, run by several as one.

It reports, stores checkpoints, and survives the death of a worker: run it, and `kill -9` one of its workers.
`data_parallel.py` is the same by hand. Needs the extra `[ml]`.
"""

import tempfile

import numpy as np
import torch

import miniray as ray
from miniray import train
from miniray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig, TorchTrainer

TRUE_WEIGHTS = torch.tensor([2.0, -3.4, 0.5, 4.2])


def loop(config: dict) -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    first, checkpoint = 0, train.get_checkpoint()
    if checkpoint is not None:
        model.load_state_dict(checkpoint.tensors())
        first = checkpoint.get_metadata()["epoch"] + 1
    model = train.torch.prepare_model(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    shard = train.get_dataset_shard("train")
    for epoch in range(first, config["epochs"]):
        for batch in shard.iter_torch_batches(batch_size=500, local_shuffle_seed=epoch):
            loss = torch.nn.functional.mse_loss(model(batch["x"]).squeeze(), batch["y"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
        stored = Checkpoint.from_tensors(state)
        stored.set_metadata({"epoch": epoch})
        train.report({"loss": loss}, checkpoint=stored if train.get_context().get_world_rank() == 0 else None)


def main() -> None:
    ray.init()
    inputs = np.random.default_rng(0).normal(size=(10_000, 4)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        result = TorchTrainer(
            loop,
            train_loop_config={"epochs": 4},
            datasets={"train": {"x": inputs, "y": inputs @ TRUE_WEIGHTS.numpy()}},
            scaling_config=ScalingConfig(num_workers=(1, 2)),  # two, or one where there is one CPU
            run_config=RunConfig("linear", folder, failure_config=FailureConfig(max_failures=2)),
        ).fit()
        weights = result.checkpoint.tensors()["weight"][0]
    print(f"losses {[round(row['loss'], 5) for row in result.history]}")
    print(f"weights {weights.tolist()}, true {TRUE_WEIGHTS.tolist()}")
    assert torch.allclose(weights, TRUE_WEIGHTS, atol=0.05)


if __name__ == "__main__":
    main()
