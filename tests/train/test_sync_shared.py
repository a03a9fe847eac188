"""Sums of all ranks in shared memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import miniray as ray  # noqa: E402
from miniray import train  # noqa: E402
from miniray.train import RunConfig, ScalingConfig, TorchTrainer  # noqa: E402

RANKS, TURNS = 3, 5
SHAPES = ((4, 3, 5, 2), (7,), (6, 2, 3, 3))


@pytest.fixture(scope="module", autouse=True)
def session() -> Any:
    ray.init(num_cpus=RANKS, preload=["torch"])
    yield
    ray.shutdown()


def addends(rank: int, turn: int) -> list[np.ndarray]:
    draw = np.random.default_rng([rank, turn])
    return [draw.normal(size=shape).astype(np.float32) for shape in SHAPES]


def fit(loop: Any, path: Path) -> Any:
    run = RunConfig("run", path, verbose=0)
    return TorchTrainer(loop, scaling_config=ScalingConfig(RANKS), run_config=run).fit()


def test_every_rank_gets_the_same_sums_turn_by_turn(tmp_path: Path) -> None:
    def loop(config: dict[str, Any]) -> None:
        from miniray.train.sync.shared import SharedSum

        rank = train.get_context().get_world_rank()
        shared = SharedSum.made(sum(int(np.prod(shape)) for shape in SHAPES))
        assert shared is not None
        for turn in range(TURNS):
            tensors = [torch.from_numpy(values) for values in addends(rank, turn)]
            tensors[2] = tensors[2].to(memory_format=torch.channels_last)
            shared.add_up(tensors)
            rows = [None] * RANKS
            torch.distributed.all_gather_object(rows, [tensor.numpy().tobytes() for tensor in tensors])
            sums = [tensor.flatten().tolist() for tensor in tensors]
            train.report({"sums": sums, "different": len({tuple(row) for row in rows})})
        with pytest.raises(ValueError, match="made for 235 at a time"):
            shared.add_up([torch.zeros(236)])
        with pytest.raises(ValueError, match="float64"):
            shared.add_up([torch.zeros(2, dtype=torch.float64)])

    rows = fit(loop, tmp_path).history
    assert len(rows) == TURNS
    for turn, row in enumerate(rows):
        parts = [addends(rank, turn) for rank in range(RANKS)]
        for at, total in enumerate(row["sums"]):
            expected = (parts[0][at] + parts[1][at]) + parts[2][at]
            np.testing.assert_array_equal(np.float32(total), expected.ravel())
        assert row["different"] == 1


def test_no_rank_shares_what_one_cannot_reach(tmp_path: Path) -> None:
    def loop(config: dict[str, Any]) -> None:
        from miniray.train.sync import shared

        if train.get_context().get_world_rank() == 1:
            shared._BOOT_ID = Path("/proc/sys/kernel/ostype")  # another machine, by its id
        train.report({"none": shared.SharedSum.made(10) is None})
        total = torch.ones(1)
        torch.distributed.all_reduce(total)  # the group is as good as before
        assert total.item() == RANKS

    assert fit(loop, tmp_path).metrics["none"]


def test_a_rank_that_dies_ends_the_sum_of_the_others(tmp_path: Path) -> None:
    def loop(config: dict[str, Any]) -> None:
        import os

        from miniray.train.sync.shared import SharedSum

        shared = SharedSum.made(10)
        assert shared is not None
        if train.get_context().get_world_rank() == 2:
            os._exit(7)
        shared.add_up([torch.ones(10)])

    with pytest.raises(train.TrainingFailedError):
        fit(loop, tmp_path)
