"""Event files of our own writer, as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from miniray.train.tensorboard import EventWriter

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = event_accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_every_point(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for step in range(1, 300):
        writer.scalars(step, {"loss": step / 4, "d/real": -1.0})
    writer.close()
    found = curves(tmp_path)
    assert found["loss"] == [(step, step / 4) for step in range(1, 300)]
    assert len(found["d/real"]) == 299


def test_a_run_that_went_back_replaces_its_later_points(tmp_path: Path) -> None:
    first = EventWriter(tmp_path)
    for step in range(1, 6):
        first.scalars(step, {"loss": 1.0})
    first.close()
    second = EventWriter(tmp_path, first_step=4)
    second.scalars(4, {"loss": 2.0})
    second.close()
    assert curves(tmp_path)["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
