"""The folder of a run: what a kill leaves, what is kept, what a run goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miniray.train import Checkpoint, CheckpointConfig, Result, StorageError
from miniray.train.controller import Gathering
from miniray.train.session import Report
from miniray.train.storage import (
    HISTORY,
    STATE,
    RunFolder,
    Saved,
    chosen_to_go,
    packed,
    persist,
    sees,
    unpack,
)


def reported(
    folder: RunFolder, iteration: int, files: dict[str, str] | None = None, **metrics: float
) -> None:
    """One report, with a checkpoint of `files`, as controller and worker make it."""
    row = {"training_iteration": iteration, "time_total_s": 0.0, **metrics}
    folder.append(row)
    if files is not None:
        source = folder.path.parent / f"source-{iteration}"
        source.mkdir()
        for name, text in files.items():
            (source / name).write_text(text)
        persist(Checkpoint(source), str(folder.path), f"start-{iteration}")
        folder.commit(f"start-{iteration}", row)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.glob("checkpoint_*"))


def test_a_run_goes_on_from_the_newest_checkpoint_and_forgets_later_reports(path: Path) -> None:
    folder = RunFolder(path)
    assert folder.go_back() == 0 and folder.latest is None
    reported(folder, 1)
    reported(folder, 2, {"weights": "two"}, loss=0.5)
    reported(folder, 3)
    folder.close()

    again = RunFolder(path)
    assert again.go_back() == 2
    assert [row["training_iteration"] for row in again.history] == [1, 2]
    assert again.latest is not None
    assert (Path(again.latest.path) / "weights").read_text() == "two"
    reported(again, 3, {"weights": "three"})
    again.close()
    rows = [json.loads(line) for line in (path / HISTORY).read_text().splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3]
    assert Result.from_path(path).checkpoint == Checkpoint(path / "checkpoint_000001")


def test_files_of_several_workers_become_one_checkpoint(path: Path, tmp_path: Path) -> None:
    folder = RunFolder(path)
    folder.go_back()
    for rank in range(2):
        source = tmp_path / str(rank)
        source.mkdir()
        (source / f"rank-{rank}").write_text(str(rank))
        persist(Checkpoint(source), str(path), "start-0")
    row = {"training_iteration": 1}
    folder.append(row)
    found = folder.commit("start-0", row)
    folder.close()
    assert sorted(one.name for one in Path(found.path).iterdir()) == ["rank-0", "rank-1"]


def test_a_kill_between_the_two_renames_leaves_the_earlier_state(path: Path) -> None:
    folder = RunFolder(path)
    folder.go_back()
    reported(folder, 1, {"weights": "one"})
    folder.close()
    (path / "checkpoint_000001").mkdir()  # moved to its name, and not yet in the state
    (path / ".staging" / "start-9").mkdir(parents=True)  # staged by workers that are gone
    with (path / HISTORY).open("a") as file:
        file.write('{"training_iteration": 2, "lo')  # cut in the middle of a line

    again = RunFolder(path)
    assert again.go_back() == 1 and names(path) == ["checkpoint_000000"]
    reported(again, 2, {"weights": "two"})
    again.close()
    assert names(path) == ["checkpoint_000000", "checkpoint_000001"]
    assert [row["training_iteration"] for row in Result.from_path(path).history] == [1, 2]
    assert not (path / ".staging").exists()


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (CheckpointConfig(), [0, 1, 2, 3, 4]),
        (CheckpointConfig(num_to_keep=2), [3, 4]),
        (CheckpointConfig(num_to_keep=1), [4]),
        (CheckpointConfig(2, "loss", "min"), [1, 3, 4]),
        (CheckpointConfig(1, "loss", "max"), [0, 4]),
        (CheckpointConfig(1, "absent", "max"), [4]),
    ],
)
def test_the_best_and_the_newest_are_kept(keep: CheckpointConfig, left: list[int]) -> None:
    losses = [9.0, 1.0, 5.0, 2.0, float("nan")]
    saved = [Saved(str(at), at, {"loss": loss}) for at, loss in enumerate(losses)]
    gone = chosen_to_go(saved, keep)
    assert [at for at, one in enumerate(saved) if one not in gone] == left


def test_retention_removes_directories_and_ranks_results(path: Path) -> None:
    folder = RunFolder(path, CheckpointConfig(1, "loss", "min"))
    folder.go_back()
    for iteration, loss in enumerate([3.0, 1.0, 2.0], 1):
        reported(folder, iteration, {"weights": str(iteration)}, loss=loss)
    result = folder.result()
    folder.close()
    assert names(path) == ["checkpoint_000001", "checkpoint_000002"]
    assert [metrics["loss"] for _, metrics in result.best_checkpoints] == [1.0, 2.0]
    best = result.get_best_checkpoint("loss", "min")
    assert best is not None and best.path.endswith("checkpoint_000001")
    with pytest.raises(ValueError, match="no checkpoint was reported with a metric 'acc'"):
        result.get_best_checkpoint("acc", "max")


def test_two_drivers_cannot_train_in_one_folder(path: Path) -> None:
    first = RunFolder(path)
    with pytest.raises(StorageError, match="another process trains in"):
        RunFolder(path)
    first.close()
    RunFolder(path).close()


def test_a_run_that_ended_before_its_first_checkpoint_is_one(path: Path) -> None:
    RunFolder(path).close()
    found = Result.from_path(path)
    assert found.checkpoint is None and found.metrics is None and found.error is None


def test_a_damaged_state_is_said_and_not_overwritten(path: Path) -> None:
    path.mkdir()
    (path / STATE).write_text("{")
    with pytest.raises(StorageError, match=r"run_state\.json is damaged"):
        RunFolder(path)
    with pytest.raises(StorageError, match="is not the folder of a run"):
        Result.from_path(path.parent)
    assert (path / STATE).read_text() == "{"


def test_a_node_knows_the_drivers_folder_by_its_mark(path: Path) -> None:
    folder = RunFolder(path)
    folder.mark("abc")
    assert sees(str(path), "abc") and not sees(str(path), "xyz") and not sees(str(path / "other"), "abc")
    folder.close()
    assert not sees(str(path), "abc")


def test_files_travel_as_they_are_and_stay_in_their_directory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "weights").write_bytes(bytes(range(256)))
    (source / "empty").touch()
    files = packed(Checkpoint(source))
    unpack(files, tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "weights").read_bytes() == bytes(range(256))
    assert (tmp_path / "copy" / "empty").read_bytes() == b""
    for name in ("../out", "/tmp/out", "deep/../../out"):
        with pytest.raises(StorageError, match="may not lie outside"):
            unpack({name: files["empty"]}, tmp_path / "copy")


def test_a_report_counts_when_every_rank_has_made_it() -> None:
    gathering = Gathering(2)
    first = [Report(0, {"rank": rank}, False) for rank in range(2)]
    assert gathering.add(1, first[1]) is None
    assert gathering.add(1, Report(1, {}, False)) is None
    assert gathering.add(0, first[0]) == first
    assert gathering.incomplete() == {1: [1]}


def test_metadata_lies_beside_the_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint.from_directory(tmp_path)
    assert checkpoint.get_metadata() == {}
    checkpoint.set_metadata({"step": 1, "old": True})
    checkpoint.update_metadata({"step": 2})
    assert checkpoint.get_metadata() == {"step": 2, "old": True}
    copied = Checkpoint(checkpoint.to_directory(tmp_path / "copy"))
    with copied.as_directory() as folder:
        assert folder == copied.path and copied.get_metadata()["step"] == 2
    with pytest.raises(FileNotFoundError, match="a checkpoint is a directory"):
        Checkpoint.from_directory(tmp_path / "absent")
