"""Settings that cannot be are refused by name, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miniray import train
from miniray.train.datasets import Shard


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train.ScalingConfig(num_workers=-1), "num_workers=-1"),
        (lambda: train.ScalingConfig(num_workers=(3, 2)), r"num_workers=\(3, 2\)"),
        (lambda: train.ScalingConfig(num_workers=(0, 2)), "1 <= least <= most"),
        (lambda: train.ScalingConfig(placement_strategy="NEAR"), "'NEAR' is none of"),
        (lambda: train.ScalingConfig(use_gpu=True, resources_per_worker={"CPU": 1}), "reserves no GPU"),
        (lambda: train.ScalingConfig(resources_per_worker={"GPU": 1}), "use_gpu is False"),
        (lambda: train.FailureConfig(max_failures=-2), "max_failures=-2"),
        (lambda: train.CheckpointConfig(num_to_keep=0), "num_to_keep=0"),
        (lambda: train.CheckpointConfig(checkpoint_score_order="up"), "'max' or 'min'"),
        (lambda: train.RunConfig(name="a/b"), "becomes a folder"),
        (lambda: train.ScalingConfig(accelerator_type="A100"), "needs use_gpu"),
        (lambda: train.ScalingConfig(label_selector=[{}]), "one dict"),
        (lambda: train.SyncConfig(sync_artifacts=True), "into the checkpoint"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train.ScalingConfig(trainer_resources={"CPU": 1}), "resources_per_worker"),
        (lambda: train.FailureConfig(fail_fast=True), "fail_fast.*max_failures=0"),
        (lambda: train.CheckpointConfig(checkpoint_frequency=1), "checkpoint_frequency.*train.report"),
        (lambda: train.CheckpointConfig(checkpoint_at_end=True), "checkpoint_at_end.*train.report"),
        (lambda: train.RunConfig(stop={"loss": 1}), "stop.*return from the loop"),
        (lambda: train.RunConfig(log_to_file=True), "log_to_file.*logs"),
        (lambda: train.RunConfig(progress_reporter=print), "progress_reporter.*UserCallback"),
    ],
)
def test_settings_of_earlier_ray_versions_say_what_to_do_instead(make: Any, message: str) -> None:
    with pytest.raises(DeprecationWarning, match=message):
        make()


def test_workers_reserve_a_trace_of_their_kind_of_gpu() -> None:
    scaling = train.ScalingConfig(use_gpu=True, accelerator_type="A100")
    assert scaling.bundle == {"CPU": 1.0, "GPU": 1.0, "accelerator_type:A100": 0.001}


def test_every_worker_is_asked_for_on_nodes_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    from miniray.train import group

    class Reserved:
        def __init__(self, bundles: Any, **options: Any) -> None:
            self.asked = bundles, options["bundle_label_selector"]

        def wait(self, seconds: float) -> bool:
            return True

    monkeypatch.setattr(group, "placement_group", Reserved)
    monkeypatch.setattr(group, "room", lambda bundle: 2)
    zone = {"zone": "a"}
    for selector, labels in ((zone, [zone, zone]), (None, None)):
        scaling = train.ScalingConfig(num_workers=(1, 4), label_selector=selector)
        reserved, size = group.reserve(scaling, print)
        assert size == 2 and reserved.asked == ([{"CPU": 1.0}] * 2, labels)


def test_configurations_that_are_none_are_the_defaults() -> None:
    run = train.RunConfig(failure_config=None, checkpoint_config=None, sync_config=train.SyncConfig())
    assert run.failure_config == train.FailureConfig() and run.checkpoint_config == train.CheckpointConfig()


def test_defaults_are_rays() -> None:
    scaling = train.ScalingConfig()
    assert (scaling.min_workers, scaling.max_workers, scaling.bundle) == (1, 1, {"CPU": 1.0})
    assert train.ScalingConfig(use_gpu=True).bundle == {"CPU": 1.0, "GPU": 1.0}
    assert train.ScalingConfig(num_workers=(1, 4)).elastic
    run = train.RunConfig()
    assert run.failure_config.max_failures == 0 and run.checkpoint_config.num_to_keep is None
    assert run.path.parent == Path("~/miniray_results").expanduser()


def test_shares_cover_a_data_set_once_and_without_copies() -> None:
    data = {"x": np.arange(11), "y": np.arange(22).reshape(11, 2)}
    shards = [Shard(data, rank, 3) for rank in range(3)]
    assert [len(shard) for shard in shards] == [3, 4, 4]
    np.testing.assert_array_equal(np.concatenate([shard.data["x"] for shard in shards]), data["x"])
    assert all(np.shares_memory(shard.data["y"], data["y"]) for shard in shards)


def test_batches_are_in_order_or_shuffled_by_a_seed() -> None:
    shard = Shard(np.arange(10))
    assert [batch.tolist() for batch in shard.iter_batches(batch_size=4)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]
    ]  # fmt: skip
    assert [len(batch) for batch in shard.iter_batches(batch_size=4, drop_last=True)] == [4, 4]
    shuffled = [
        np.concatenate(list(shard.iter_batches(batch_size=3, local_shuffle_seed=7))) for _ in range(2)
    ]
    assert sorted(shuffled[0]) == list(range(10)) and shuffled[0].tolist() != list(range(10))
    np.testing.assert_array_equal(*shuffled)


def test_data_sets_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match="data set 'train' is list"):
        train.DataParallelTrainer(print, datasets={"train": [1, 2]})
    with pytest.raises(ValueError, match=r"its arrays have \[2, 3\] rows"):
        train.DataParallelTrainer(print, datasets={"train": {"a": np.zeros(2), "b": np.zeros(3)}})


def test_functions_of_a_loop_say_so_outside_of_one() -> None:
    for call in (train.get_context, train.get_checkpoint, lambda: train.report({})):
        with pytest.raises(RuntimeError, match="call this inside train_loop_per_worker"):
            call()


def test_a_local_checkpoint_goes_where_that_is_asked(tmp_path: Path) -> None:
    def loop() -> None:
        for name, delete in (("kept", False), ("gone", True)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
            made = train.Checkpoint.from_directory(tmp_path / name)
            train.report({}, made, delete_local_checkpoint_after_upload=delete)

    run = train.RunConfig("run", tmp_path / "runs", verbose=0)
    result = train.DataParallelTrainer(loop, scaling_config=train.ScalingConfig(0), run_config=run).fit()
    assert (tmp_path / "kept").exists() and not (tmp_path / "gone").exists()
    assert result.checkpoint is not None
    assert (Path(result.checkpoint.path) / "file").read_text() == "gone"


def test_what_torch_does_by_itself_now_is_refused_as_ray_does() -> None:
    for call in (train.torch.accelerate, train.torch.prepare_optimizer, train.torch.backward):
        with pytest.raises(DeprecationWarning, match="torch's own"):
            call(None)
