"""Small exchanges between the workers of a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miniray import train
from miniray.train import DataParallelTrainer, RunConfig, ScalingConfig, WorkerGroupError
from miniray.train.exceptions import SessionMisuseError

pytestmark = pytest.mark.usefixtures("ray_shared")


def fit(loop: Any, path: Path, workers: int) -> train.Result:
    run = RunConfig(name="run", storage_path=path, verbose=0)
    scaling = ScalingConfig(workers, resources_per_worker={"CPU": 0.5})
    return DataParallelTrainer(
        loop, train_loop_config={"path": str(path)}, scaling_config=scaling, run_config=run
    ).fit()


def meeting(config: dict[str, Any]) -> list[Any]:
    from miniray.train import collective

    rank = train.get_context().get_world_rank()
    here = Path(config["path"])
    (here / f"came-{rank}").touch()
    collective.barrier()
    came = len(list(here.glob("came-*")))
    given = [collective.broadcast_from_rank_zero({"turn": turn, "by": rank}) for turn in range(20)]
    (here / f"given-{rank}").write_text(repr(given))
    collective.barrier()
    return [came, given]


def disagreeing(config: dict[str, Any]) -> None:
    from miniray.train import collective

    collective.barrier() if train.get_context().get_world_rank() else collective.broadcast_from_rank_zero(1)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_wait_and_get_what_worker_0_gave(workers: int, tmp_path: Path) -> None:
    came, given = fit(meeting, tmp_path, workers).return_value
    assert came == workers
    assert given == [{"turn": turn, "by": 0} for turn in range(20)]
    assert {path.read_text() for path in tmp_path.glob("given-*")} == {repr(given)}


def test_different_functions_at_the_same_time_are_an_error_that_names_the_workers(tmp_path: Path) -> None:
    with pytest.raises(WorkerGroupError) as raised:
        fit(disagreeing, tmp_path, 2)
    assert "worker 0 broadcast_from_rank_zero, worker 1 barrier" in str(raised.value)


def test_outside_of_a_loop() -> None:
    with pytest.raises(SessionMisuseError):
        train.collective.barrier()
