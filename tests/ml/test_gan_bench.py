"""What `make bench-gan` says of the rates that it has measured."""

from __future__ import annotations

import pytest

from ml.gan import bench


def test_ratios_are_medians_over_turns_not_ratios_of_medians(capsys: pytest.CaptureFixture[str]) -> None:
    """The machine was twice as busy in the second turn: all ways met that alike."""
    options = bench._parser().parse_args(["--workers", "2", "--turns", "3"])
    costs = {
        "plain": [bench.Cost(900.0, 2.0), bench.Cost(450.0, 2.0), bench.Cost(900.0, 2.0)],
        "steps": [bench.Cost(1000.0, 1.98), bench.Cost(500.0, 2.0), bench.Cost(1000.0, 2.0)],
        "miniray": [bench.Cost(990.0, 2.0), bench.Cost(495.0, 2.0), bench.Cost(1010.0, 2.0)],
        "one process": [bench.Cost(900.0, 2.0), bench.Cost(450.0, 2.0), bench.Cost(800.0, 2.0)],
    }
    bench._show(options, costs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "width 32, batch 2 x 64, ddp, median of 3 turns"
    assert lines[2].split() == ["torchrun,", "2", "x", "1", "thread:", "plain", "PyTorch", "900", "2.00"]
    assert [line.split()[-1] for line in lines[-4:]] == ["1.0%", "0.0%", "1.10x", "1.10x"]


def test_the_first_round_is_not_counted() -> None:
    assert bench._rate([1.0, 10.0, 12.0, 11.0]) == 11.0


def test_the_run_is_long_enough_for_all_rounds() -> None:
    options = bench._parser().parse_args(["--workers", "4", "--rounds", "20"])
    config = bench._config(options)
    steps = config.epochs * (bench._IMAGES // (config.batch_size * config.workers))
    assert steps >= 5 * (options.rounds + bench._WARM_UP_ROUNDS)
