"""Torch runs: the process group, merging over it, prepared models and loaders, devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import miniray as ray  # noqa: E402
from miniray import train  # noqa: E402
from miniray.train import (  # noqa: E402
    Checkpoint,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TorchTrainer,
    UserCallback,
)
from miniray.train.sync import Merger, Parts, group_mean, merge  # noqa: E402

PARTS = Parts(weights=7, statistics=3, counters=2)


@pytest.fixture(scope="module", autouse=True)
def session() -> Any:
    ray.init(num_cpus=2, preload=["torch"])
    yield
    ray.shutdown()


class Heard(UserCallback):
    """All that all workers have reported."""

    def __init__(self) -> None:
        self.metrics: list[list[dict[str, Any]]] = []

    def after_report(self, run_config: Any, metrics: Any, checkpoint: Any) -> None:
        self.metrics.append(metrics)


def fit(loop: Any, path: Path, workers: int = 2, **options: Any) -> tuple[train.Result, Heard]:
    heard = Heard()
    run = RunConfig(
        "run", path, callbacks=[heard], verbose=0, failure_config=FailureConfig(options.pop("failures", 0))
    )
    trainer = TorchTrainer(loop, scaling_config=ScalingConfig(workers), run_config=run, **options)
    return trainer.fit(), heard


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": 1}, "backend=1: 'gloo'"),
        ({"init_method": "file"}, "init_method='file' is none of"),
        ({"timeout_s": 0}, "more than 0 seconds"),
    ],
)
def test_a_process_group_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train.torch.TorchConfig(**options)


def vector(rank: int) -> np.ndarray:
    draw = np.random.default_rng(rank)
    found = draw.normal(size=PARTS.size).astype(np.float32)
    found[PARTS.variances] = draw.uniform(0.1, 2.0, PARTS.statistics)
    return found


def test_a_merge_over_the_group_is_the_merge_of_all_vectors(tmp_path: Path) -> None:
    cases = [[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]]

    def loop() -> None:
        rank = train.get_context().get_world_rank()
        for shares in cases:
            train.report({"mean": group_mean(vector(rank), shares[rank], PARTS)})

    _, heard = fit(loop, tmp_path)
    for shares, (first, second) in zip(cases, heard.metrics, strict=True):
        assert first["mean"] == second["mean"], "the same bits on every rank"
        expected = merge([vector(0), vector(1)], shares, PARTS)
        np.testing.assert_allclose(first["mean"], expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("strategy", ["average", "weighted", "momentum"])
def test_strategies_go_on_from_the_groups_mean(strategy: str) -> None:
    rows, images = [vector(1), vector(2)], [30.0, 10.0]
    settings = {"strategy": strategy, "momentum": 0.5, "ema_decay": 0.9}
    whole, parted = Merger(PARTS, vector(9), **settings), Merger(PARTS, vector(9), **settings)
    for _ in range(3):
        shares = images if strategy == "weighted" else [1.0, 1.0]
        parted.advance(2, merge(rows, shares, PARTS))
        whole.merge(2, images, *rows)
    for mine, other in zip(parted.state(), whole.state()):
        np.testing.assert_array_equal(mine, other)


def regression(config: dict[str, Any]) -> None:
    """Four steps of a linear model on a share of the data, as a user would write it."""
    torch.manual_seed(3)
    model = train.torch.prepare_model(torch.nn.Linear(3, 1))
    inputs = torch.arange(24.0).reshape(8, 3) / 24
    data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    batch = 8 // train.get_context().get_world_size()
    loader = train.torch.prepare_data_loader(torch.utils.data.DataLoader(data, batch_size=batch))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        for values, targets in loader:
            loss = torch.nn.functional.mse_loss(model(values), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    train.report({"device": str(train.torch.get_device())}, Checkpoint.from_tensors(state))


def test_two_workers_train_the_model_that_one_trains(tmp_path: Path) -> None:
    one, _ = fit(regression, tmp_path / "one", workers=1)
    two, heard = fit(regression, tmp_path / "two", workers=2)
    assert one.checkpoint is not None and two.checkpoint is not None
    mine, theirs = one.checkpoint.tensors(), two.checkpoint.tensors()
    assert mine["weight"].shape == (1, 3)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name])
    assert {one["device"] for one in heard.metrics[0]} == {"cpu"}


def test_a_loader_gives_each_worker_its_share_shuffled_as_asked(tmp_path: Path) -> None:
    def loop() -> None:
        data = torch.utils.data.DataLoader(torch.arange(10), batch_size=3, shuffle=True)
        loader = train.torch.prepare_data_loader(data)
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append(torch.cat(list(loader)).tolist())
        train.report({"epochs": epochs})

    _, heard = fit(loop, tmp_path)
    first, second = (one["epochs"] for one in heard.metrics[0])
    assert sorted(first[0] + second[0]) == list(range(10)) and first[0] != first[1]


def test_torch_batches_come_from_the_shared_data(tmp_path: Path) -> None:
    def loop() -> None:
        shard = train.get_dataset_shard("d")
        batches = list(shard.iter_torch_batches(batch_size=2, dtypes={"x": torch.float64}))
        train.report(
            {"sum": sum(float(one["x"].sum()) for one in batches), "kind": str(batches[0]["x"].dtype)}
        )

    _, heard = fit(loop, tmp_path, datasets={"d": {"x": np.arange(9), "y": np.arange(9)}})
    assert sum(one["sum"] for one in heard.metrics[0]) == 36
    assert {one["kind"] for one in heard.metrics[0]} == {"torch.float64"}


def test_the_death_of_a_rank_in_a_reduction_is_survived(tmp_path: Path) -> None:
    def loop(config: dict[str, Any]) -> None:
        import os

        context, checkpoint = train.get_context(), train.get_checkpoint()
        first = int(checkpoint.get_metadata()["step"]) if checkpoint else 0
        for step in range(first, 4):
            if step == 2 and context.get_attempt() == 0 and context.get_world_rank() == 1:
                os.kill(os.getpid(), 9)
            total = torch.ones(2)
            torch.distributed.all_reduce(total)
            made = Checkpoint.from_tensors({"total": total})
            made.set_metadata({"step": step + 1})
            train.report({"step": step, "total": total}, made if context.get_world_rank() == 0 else None)

    result, _ = fit(loop, tmp_path, failures=1)
    assert [row["step"] for row in result.history] == [0, 1, 2, 3]
    assert all(row["total"] == [2.0, 2.0] for row in result.history)
