"""The merge rules against plain NumPy written another way, and their edges."""

from __future__ import annotations

import numpy as np
import pytest

from miniray.train.sync import Merger, Parts, merge

PARTS = Parts(weights=7, statistics=3, counters=2)


def vectors(count: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(count, PARTS.size)).astype(np.float32)
    found[:, PARTS.variances] = draw.uniform(0.1, 2.0, (count, PARTS.statistics))
    return list(found)


def reference(rows: list[np.ndarray], shares: list[float]) -> np.ndarray:
    """In float64, by NumPy's own weighted mean; variances by the law of total variance."""
    table, share = np.asarray(rows, dtype=np.float64), np.asarray(shares, dtype=np.float64) / sum(shares)
    out = np.average(table, axis=0, weights=share)
    means = table[:, PARTS.means]
    out[PARTS.variances] = share @ (table[:, PARTS.variances] + means**2) - (share @ means) ** 2
    return out


@pytest.mark.parametrize("shares", [[1, 1, 1], [5, 1, 2], [0, 3, 1]])
def test_a_merge_is_the_weighted_mean_with_pooled_variances(shares: list[int]) -> None:
    rows = vectors(3)
    np.testing.assert_allclose(merge(rows, shares, PARTS), reference(rows, shares), rtol=2e-6, atol=2e-6)


def test_pooled_statistics_are_those_of_all_samples_together() -> None:
    samples = np.random.default_rng(1).normal(2.0, 3.0, (4, 500, PARTS.statistics))
    rows = vectors(4)
    for row, part in zip(rows, samples):
        row[PARTS.means], row[PARTS.variances] = part.mean(0), part.var(0)
    merged = merge(rows, [1] * 4, PARTS)
    together = samples.reshape(-1, PARTS.statistics)
    np.testing.assert_allclose(merged[PARTS.means], together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(merged[PARTS.variances], together.var(0), rtol=1e-4)


def test_one_vector_merges_to_itself() -> None:
    [row] = vectors(1)
    np.testing.assert_array_equal(merge([row], [3], PARTS), row)


def test_the_same_inputs_give_the_same_bits() -> None:
    rows = vectors(5)
    assert merge(rows, [1] * 5, PARTS).tobytes() == merge(rows, [1] * 5, PARTS).tobytes()


def test_merge_leaves_its_inputs_alone_and_takes_read_only_views() -> None:
    rows = vectors(2)
    before = [row.copy() for row in rows]
    for row in rows:
        row.flags.writeable = False
    merge(rows, [1, 1], PARTS)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize(
    ("rows", "shares", "says"),
    [
        (vectors(2), [1], "one share each"),
        ([], [], "at least one"),
        (vectors(2), [0, 0], "not all zero"),
        (vectors(2), [2, -1], "zero or more"),
        ([np.zeros(3, np.float32)], [1], "each must hold"),
    ],
)
def test_nonsense_is_refused_by_name(rows: list[np.ndarray], shares: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        merge(rows, shares, PARTS)


def test_average_ignores_image_counts_and_weighted_uses_them() -> None:
    rows, start = vectors(2), vectors(1, seed=9)[0]
    plain = Merger(PARTS, start, strategy="average").merge(1, [30, 10], *rows)
    weighted = Merger(PARTS, start, strategy="weighted").merge(1, [30, 10], *rows)
    np.testing.assert_allclose(plain, reference(rows, [1, 1]), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(weighted, reference(rows, [3, 1]), rtol=2e-6, atol=2e-6)


def test_momentum_follows_its_recurrence_on_weights_and_averages_the_rest() -> None:
    start, m = vectors(1, seed=9)[0], 0.6
    merger = Merger(PARTS, start, strategy="momentum", momentum=m)
    common, velocity = start[: PARTS.weights].astype(np.float64), np.zeros(PARTS.weights)
    for turn in range(4):
        rows = vectors(3, seed=turn)
        average = reference(rows, [1, 1, 1])
        velocity = m * velocity + average[: PARTS.weights] - common
        common = common + velocity
        merged = merger.merge(2, [1, 1, 1], *rows)
        np.testing.assert_allclose(merged[: PARTS.weights], common, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(merged[PARTS.weights :], average[PARTS.weights :], rtol=1e-5, atol=1e-5)
        assert (merged[PARTS.variances] > 0).all()


def test_momentum_zero_is_the_average() -> None:
    rows, start = vectors(3), vectors(1, seed=9)[0]
    moved = Merger(PARTS, start, strategy="momentum", momentum=0.0).merge(1, [1] * 3, *rows)
    np.testing.assert_allclose(moved, merge(rows, [1] * 3, PARTS), rtol=1e-5, atol=1e-6)


def test_the_moving_average_decays_per_step_not_per_merge() -> None:
    start, target = vectors(2, seed=3)
    often = Merger(PARTS, start, ema_decay=0.9)
    for _ in range(6):
        often.merge(1, [1], target)
    once = Merger(PARTS, start, ema_decay=0.9)
    once.merge(6, [1], target)
    np.testing.assert_allclose(often.state()[1], once.state()[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(once.state()[1], 0.9**6 * start + (1 - 0.9**6) * target, rtol=1e-5, atol=1e-6)


def test_without_decay_the_moving_average_is_the_merged_vector() -> None:
    start, target = vectors(2, seed=3)
    merger = Merger(PARTS, start)
    merger.merge(3, [1], target)
    np.testing.assert_array_equal(merger.state()[1], target)


def test_a_merger_continues_from_its_state() -> None:
    start = vectors(1, seed=9)[0]
    settings = {"strategy": "momentum", "momentum": 0.5, "ema_decay": 0.9}
    whole = Merger(PARTS, start, **settings)
    for turn in range(2):
        whole.merge(1, [1, 1], *vectors(2, seed=turn))
    merged, ema, velocity = whole.state()
    second = Merger(PARTS, merged, ema=ema, velocity=velocity, **settings)
    for turn in range(2, 4):
        expected = whole.merge(1, [1, 1], *vectors(2, seed=turn))
        np.testing.assert_array_equal(second.merge(1, [1, 1], *vectors(2, seed=turn)), expected)
    np.testing.assert_array_equal(second.state()[1], whole.state()[1])


@pytest.mark.parametrize("bad", [{"strategy": "median"}, {"momentum": 1.0}, {"ema_decay": -0.1}])
def test_a_merger_refuses_settings_outside_their_range(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Merger(PARTS, vectors(1)[0], **bad)  # type: ignore[arg-type]
