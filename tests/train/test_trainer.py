"""Runs on a real session: reports, checkpoints, restarts, growth. The loops are plain Python, no torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import miniray as ray
from miniray import train
from miniray.train import (
    Checkpoint,
    CheckpointConfig,
    DataConfig,
    DataParallelTrainer,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)

pytestmark = pytest.mark.usefixtures("ray_shared")
STEPS = 6


def trainer(
    loop: Any, path: Path, workers: Any = 2, failures: int = 0, **options: Any
) -> DataParallelTrainer:
    run = {"name": "run", "storage_path": path, "failure_config": FailureConfig(failures), "verbose": 0}
    run.update(options.pop("run", {}))
    return DataParallelTrainer(
        loop, scaling_config=ScalingConfig(workers), run_config=RunConfig(**run), **options
    )


def counting(config: dict[str, Any]) -> str:
    """Counts to STEPS; each worker stores its rank's count at odd steps. May die once, by a mark on disk."""
    rank, checkpoint = train.get_context().get_world_rank(), train.get_checkpoint()
    first = 0
    if checkpoint is not None:
        first = int((Path(checkpoint.path) / f"count-{rank}").read_text())
    for step in range(first, STEPS):
        _maybe_die(config, rank, step)
        made = None
        if step % 2:
            folder = Path(config["folder"]) / f"{rank}-{step}-{os.getpid()}"
            folder.mkdir()
            (folder / f"count-{rank}").write_text(str(step + 1))
            made = Checkpoint(folder)
        train.report({"step": step, "rank": rank}, checkpoint=made)
    return f"rank {rank}"


def _maybe_die(config: dict[str, Any], rank: int, step: int) -> None:
    mark = Path(config["folder"]) / "died"
    if config.get("die") == (rank, step) and not mark.exists():
        mark.touch()
        if config.get("how") == "raise":
            raise ArithmeticError("the loop went wrong")
        os.kill(os.getpid(), signal.SIGKILL)


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def test_a_run_reports_stores_and_returns(tmp_path: Path, wait_until: Any) -> None:
    heard: list[tuple[list[int], bool]] = []

    class Listener(UserCallback):
        def after_report(self, run_config: Any, metrics: Any, checkpoint: Any) -> None:
            heard.append(([one["rank"] for one in metrics], checkpoint is not None))

    result = trainer(
        counting, tmp_path, train_loop_config={"folder": str(tmp_path)}, run={"callbacks": [Listener()]}
    ).fit()
    assert steps(result.history) == list(range(STEPS)) and result.return_value == "rank 0"
    assert heard == [([0, 1], step % 2 == 1) for step in range(STEPS)]
    assert result.metrics is not None and result.metrics["training_iteration"] == STEPS
    assert result.checkpoint is not None
    assert sorted(path.name for path in Path(result.checkpoint.path).iterdir()) == ["count-0", "count-1"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "result.jsonl").read_text().splitlines()]
    assert steps(rows) == list(range(STEPS))
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 30.0)


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_a_failure_goes_on_from_the_last_checkpoint(tmp_path: Path, how: str) -> None:
    causes: list[dict[int, Exception]] = []

    class Listener(UserCallback):
        def after_exception(self, run_config: Any, worker_exceptions: dict[int, Exception]) -> None:
            causes.append(worker_exceptions)

    config = {"folder": str(tmp_path), "die": (1, 3), "how": how}
    made = trainer(counting, tmp_path, failures=1, train_loop_config=config, run={"callbacks": [Listener()]})
    result = made.fit()
    assert steps(result.history) == list(range(STEPS)), "the history of a run without a failure"
    expected = ray.exceptions.ActorDiedError if how == "kill" else ArithmeticError
    assert isinstance(causes[0][1], expected)


def test_one_failure_too_many_ends_the_run_and_a_new_fit_goes_on(tmp_path: Path) -> None:
    config = {"folder": str(tmp_path), "die": (0, 3), "how": "raise"}
    with pytest.raises(WorkerGroupError, match="the loop went wrong") as caught:
        trainer(counting, tmp_path, train_loop_config=config).fit()
    assert isinstance(caught.value, TrainingFailedError) and isinstance(
        caught.value.__cause__, ArithmeticError
    )
    failed = train.Result.from_path(tmp_path / "run")
    assert "the loop went wrong" in str(failed.error) and steps(failed.history)[:2] == [0, 1]

    assert DataParallelTrainer.can_restore(tmp_path / "run")
    again = DataParallelTrainer.restore(
        tmp_path / "run", counting, train_loop_config=config,
        scaling_config=ScalingConfig(2), run_config=RunConfig(verbose=0),
    )  # fmt: skip
    result = again.fit()
    assert steps(result.history) == list(range(STEPS)) and result.error is None
    with pytest.raises(ValueError, match="no run to go on with"):
        DataParallelTrainer.restore(tmp_path / "absent", counting)


def test_workers_share_the_data_in_place(tmp_path: Path) -> None:
    def loop() -> None:
        part, whole = train.get_dataset_shard("part"), train.get_dataset_shard("whole")
        train.report({
            "rows": [part.start, part.stop], "sum": part.data.sum(), "whole": len(whole),
            "owns": part.data.flags.owndata or part.data.flags.writeable,
        })  # fmt: skip
        with pytest.raises(KeyError, match="no data set 'other'"):
            train.get_dataset_shard("other")

    data = np.arange(200_000)
    seen: list[Any] = []

    class Listener(UserCallback):
        def after_report(self, run_config: Any, metrics: Any, checkpoint: Any) -> None:
            seen.extend(metrics)

    trainer(
        loop, tmp_path, datasets={"part": data, "whole": data}, run={"callbacks": [Listener()]},
        dataset_config=DataConfig(datasets_to_split=["part"]),
    ).fit()  # fmt: skip
    assert [one["rows"] for one in seen] == [[0, 100_000], [100_000, 200_000]]
    assert sum(one["sum"] for one in seen) == data.sum()
    assert all(one["whole"] == 200_000 and not one["owns"] for one in seen)


def test_contexts_say_where_a_worker_stands(tmp_path: Path) -> None:
    def loop() -> None:
        context = train.get_context()
        train.report({
            "at": [context.get_world_rank(), context.get_world_size(), context.get_local_rank(),
                   context.get_local_world_size(), context.get_node_rank()],
            "name": context.get_experiment_name(), "env": os.environ["RANK"],
            "node": context.get_node_id() == ray.get_runtime_context().get_node_id(),
        })  # fmt: skip

    result = trainer(loop, tmp_path).fit()
    assert result.metrics is not None
    assert result.metrics["at"] == [0, 2, 0, 2, 0] and result.metrics["name"] == "run"
    assert result.metrics["env"] == "0" and result.metrics["node"]


def test_an_elastic_run_takes_what_fits(tmp_path: Path) -> None:
    config = {"folder": str(tmp_path)}
    result = trainer(sizes, tmp_path, workers=(1, 8), train_loop_config=config).fit()
    assert result.metrics is not None and result.metrics["size"] == ray.cluster_resources()["CPU"]


def sizes(config: dict[str, Any]) -> None:
    train.report({"size": train.get_context().get_world_size()})


def test_an_elastic_run_starts_small_and_grows_at_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miniray.train.group.PATIENCE_S", 0.5)

    @ray.remote(num_cpus=1)
    class Holder:
        def hold(self) -> None:
            pass

    holder = Holder.remote()
    ray.get(holder.hold.remote())

    class Release(UserCallback):
        def after_report(self, run_config: Any, metrics: Any, checkpoint: Any) -> None:
            ray.kill(holder)

    def loop(config: dict[str, Any]) -> None:
        size, step = train.get_context().get_world_size(), 0
        while size < 2 and step < 3000:
            Path(config["folder"], str(step)).mkdir()
            train.report({"size": size}, Checkpoint(Path(config["folder"], str(step))))
            step += 1
        train.report({"size": size})

    scaling = ScalingConfig((1, 2), elastic_resize_monitor_interval_s=0.1)
    result = DataParallelTrainer(
        loop, train_loop_config={"folder": str(tmp_path)}, scaling_config=scaling,
        run_config=RunConfig(
            "run", tmp_path, callbacks=[Release()], verbose=0, checkpoint_config=CheckpointConfig(1)
        ),
    ).fit()  # fmt: skip
    sizes = [row["size"] for row in result.history]
    assert sizes[0] == 1 and sizes[-1] == 2, sizes


def test_a_loop_runs_in_this_process_without_workers(tmp_path: Path) -> None:
    config = {"folder": str(tmp_path)}
    result = trainer(counting, tmp_path, workers=0, train_loop_config=config).fit()
    assert steps(result.history) == list(range(STEPS)) and result.checkpoint is not None
    with pytest.raises(TrainingFailedError, match="division"):
        trainer(lambda: 1 / 0, tmp_path / "other", workers=0).fit()


def test_reports_that_not_all_workers_make_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def loop() -> None:
        for step in range(1 + train.get_context().get_world_rank()):
            train.report({"step": step})

    result = trainer(loop, tmp_path, run={"verbose": 1}).fit()
    assert steps(result.history) == [0]
    said = capsys.readouterr().out
    assert "report 1 came from workers [1] only and does not count" in said
    assert "run: report 1  2 workers" in said


def test_checkpoints_travel_where_the_folder_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path means another folder in each process: the workers run in a working directory of their own."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    elsewhere = shutil.make_archive(str(tmp_path / "elsewhere"), "zip", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    run = {
        "storage_path": "/proc/self/cwd/runs",
        "worker_runtime_env": {"working_dir": f"file://{elsewhere}"},
    }
    config = {"folder": str(tmp_path), "die": (1, 4)}

    def loop(config: dict[str, Any]) -> None:
        seen = Path("/proc/self/cwd/runs").exists()
        (Path(config["folder"]) / f"seen-{train.get_context().get_world_rank()}").write_text(str(seen))
        counting(config)

    result = trainer(loop, tmp_path, failures=1, run=run, train_loop_config=config).fit()
    assert [(tmp_path / f"seen-{rank}").read_text() for rank in range(2)] == ["False", "False"]
    assert (tmp_path / "died").exists() and steps(result.history) == list(range(STEPS))
    kept = sorted((tmp_path / "runs" / "run").glob("checkpoint_*"))
    assert [(one / f"count-{rank}").read_text() for one in kept for rank in range(2)] == list("224466")
    assert result.checkpoint is not None and Path(result.checkpoint.path).name == kept[-1].name
