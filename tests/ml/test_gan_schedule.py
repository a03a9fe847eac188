"""Who trains on what: shares cover the data once, and noise depends on indices alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ml.gan.schedule import Schedule
from ml.gan.streams import Stream, generator, normal_rows, permutation


@pytest.mark.parametrize(("images", "batch", "workers"), [(100, 10, 2), (103, 10, 2), (97, 7, 3), (5, 8, 2)])
def test_an_epoch_uses_each_image_at_most_once_and_leaves_little_out(
    images: int, batch: int, workers: int
) -> None:
    schedule = Schedule(images, batch, workers, seed=0)
    bounds = [
        schedule.share(step, rank) for step in range(schedule.steps_per_epoch) for rank in range(workers)
    ]
    used = [place for start, end in bounds for place in range(start, end)]
    assert used == list(range(len(used)))
    assert images - len(used) < max(1, (schedule.global_batch + 1) // 2)
    assert sorted(schedule.order(0)) == list(range(images))


def test_shares_of_a_step_differ_by_one_image_at_most() -> None:
    schedule = Schedule(1_003, 100, 3, seed=0)
    for step in range(schedule.steps_per_epoch):
        sizes = [end - start for start, end in (schedule.share(step, rank) for rank in range(3))]
        assert max(sizes) - min(sizes) <= 1


def test_a_global_batch_is_the_same_for_any_number_of_workers() -> None:
    one, four = Schedule(640, 64, 1, seed=3), Schedule(640, 16, 4, seed=3)
    for step in (0, 7, 23):
        bounds = [four.share(step, rank) for rank in range(4)]
        assert (bounds[0][0], bounds[-1][1]) == one.share(step, 0)
        assert [four.noise_start(step, rank) for rank in range(4)] == [
            one.noise_start(step, 0) + 16 * rank for rank in range(4)
        ]
        np.testing.assert_array_equal(one.order(step), four.order(step))


def test_noise_is_never_used_twice() -> None:
    schedule = Schedule(103, 10, 2, seed=0)
    used: list[int] = []
    for step in range(3 * schedule.steps_per_epoch):
        for rank in range(2):
            start, end = schedule.share(step, rank)
            first = schedule.noise_start(step, rank)
            used.extend(range(first, first + end - start))
    assert len(used) == len(set(used))


def test_rounds_tile_the_run_and_end_with_each_epoch() -> None:
    schedule = Schedule(1_000, 50, 2, seed=0)  # 10 steps an epoch
    rounds = list(schedule.rounds(0, 3, 4))
    assert [(one.first_step, one.steps) for one in rounds[:4]] == [(0, 4), (4, 4), (8, 2), (10, 4)]
    assert sum(one.steps for one in rounds) == 30
    assert [one.epoch for one in rounds if one.ends_epoch] == [0, 1, 2]


def test_rounds_go_on_from_the_middle_of_an_epoch() -> None:
    schedule = Schedule(1_000, 50, 2, seed=0)
    rounds = list(schedule.rounds(17, 2, 5))
    assert [(one.epoch, one.first_step, one.steps, one.ends_epoch) for one in rounds] == [(1, 17, 3, True)]


def test_images_of_a_round_are_counted_as_they_are_trained() -> None:
    schedule = Schedule(107, 10, 2, seed=0)
    for round_ in schedule.rounds(0, 1, 3):
        for rank in range(2):
            steps = range(round_.first_step, round_.first_step + round_.steps)
            assert schedule.images_in(round_, rank) == sum(
                end - start for start, end in (schedule.share(step, rank) for step in steps)
            )


def test_noise_rows_do_not_depend_on_how_a_range_is_cut() -> None:
    whole = normal_rows(5, Stream.DRAWING, 0, 50, 13)
    pieces = [
        normal_rows(5, Stream.DRAWING, first, count, 13) for first, count in ((0, 1), (1, 30), (31, 19))
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_noise_is_normal_and_streams_and_seeds_are_unrelated() -> None:
    rows = normal_rows(1, Stream.TRAINING_NOISE, 0, 4_000, 24)
    assert abs(rows.mean()) < 0.02 and abs(rows.std() - 1) < 0.02 and abs((rows**4).mean() - 3) < 0.2
    columns = np.corrcoef(rows.T) - np.eye(24)
    assert abs(columns).max() < 0.08
    for other in (
        normal_rows(2, Stream.TRAINING_NOISE, 0, 4_000, 24),
        normal_rows(1, Stream.DRAWING, 0, 4_000, 24),
    ):
        assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 0.02


def test_noise_does_not_touch_the_global_generator() -> None:
    np.random.seed(0)
    expected = np.random.RandomState(0).random()
    normal_rows(0, Stream.DRAWING, 0, 10, 10)
    permutation(0, Stream.DATA_ORDER, 0, 10)
    assert np.random.random() == expected


def test_another_process_draws_the_same_rows() -> None:
    code = (
        "from ml.gan.streams import Stream, normal_rows; "
        "print(normal_rows(7, Stream.DRAWING, 3, 2, 5).tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == normal_rows(7, Stream.DRAWING, 3, 2, 5).tobytes().hex()


def test_permutations_differ_by_index_and_repeat_by_seed() -> None:
    first, second = (permutation(4, Stream.DATA_ORDER, index, 100) for index in (0, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(first, permutation(4, Stream.DATA_ORDER, 0, 100))
    assert generator(4, Stream.SYNTHETIC_DATA).random() != generator(5, Stream.SYNTHETIC_DATA).random()
