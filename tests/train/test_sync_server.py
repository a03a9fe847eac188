"""The asynchronous parameter server against a reference in float64, alone and as an actor."""

from __future__ import annotations

import numpy as np
import pytest

import miniray as ray
from miniray.train.sync import ParameterServer, Parts, apply_push

PARTS = Parts(weights=7, statistics=3, counters=2)


def vector(seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    found = draw.normal(size=PARTS.size).astype(np.float32)
    found[PARTS.variances] = draw.uniform(0.1, 2.0, PARTS.statistics)
    return found


def reference(held: np.ndarray, update: np.ndarray, part: float) -> np.ndarray:
    """In float64: weights move by a part of the update, statistics are those of a mixture of two samples."""
    held, update = held.astype(np.float64), update.astype(np.float64)
    out = (1 - part) * held + part * update
    out[: PARTS.weights] = held[: PARTS.weights] + part * update[: PARTS.weights]
    second = (1 - part) * (held[PARTS.variances] + held[PARTS.means] ** 2)
    second += part * (update[PARTS.variances] + update[PARTS.means] ** 2)
    out[PARTS.variances] = second - out[PARTS.means] ** 2
    out[-PARTS.counters :] = np.maximum(held[-PARTS.counters :], update[-PARTS.counters :])
    return out


@pytest.mark.parametrize("part", [1.0, 0.5, 0.1])
def test_a_push_moves_weights_and_pools_statistics(part: float) -> None:
    held, update = vector(1), vector(2)
    before = held.copy(), update.copy()
    np.testing.assert_allclose(
        apply_push(held, update, part, PARTS), reference(held, update, part), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(held, before[0])
    np.testing.assert_array_equal(update, before[1])


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_stale_updates_count_less(damping: float) -> None:
    server = ParameterServer(PARTS, vector(0), part=0.8, damping=damping)
    expected = vector(0).astype(np.float64)
    for version, seed in ((0, 1), (0, 2), (1, 3), (3, 4)):
        held, now = server.push(vector(seed), version)
        stale = now - 1 - version
        expected = reference(expected, vector(seed), 0.8 / (1 + stale) ** damping)
        np.testing.assert_allclose(held, expected, rtol=1e-4, atol=1e-5)
    seen = server.staleness()
    assert (seen.updates, seen.mean, seen.most) == (4, 0.5, 1)


def test_a_worker_alone_gets_what_it_pushed() -> None:
    """One worker, all of each update: training through the server is training without it."""
    server = ParameterServer(PARTS, vector(0))
    held, version = server.pull()
    trained = vector(5)
    update = trained.copy()
    update[: PARTS.weights] -= held[: PARTS.weights]
    np.testing.assert_allclose(server.push(update, version)[0], trained, rtol=1e-6, atol=1e-6)


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="part 0"):
        ParameterServer(PARTS, vector(0), part=0)
    with pytest.raises(ValueError, match="15"):
        ParameterServer(PARTS, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="from version 3, and this server is at 0"):
        ParameterServer(PARTS, vector(0)).push(vector(1), 3)


def test_workers_push_through_the_object_store(ray_shared: object) -> None:
    """Pushes of two tasks interleave as they like; every one is applied once, to a large vector."""
    parts = Parts(weights=50_000, statistics=0, counters=0)

    @ray.remote
    def train(server: ray.ActorHandle, pushes: int) -> int:
        held, version = ray.get(server.pull.remote())
        assert not held.flags.writeable
        for _ in range(pushes):
            held, version = ray.get(server.push.remote(np.ones(parts.size, np.float32), version))
        return int(version)

    server = ray.remote(ParameterServer).options(num_cpus=0).remote(parts, np.zeros(parts.size, np.float32))
    versions = ray.get([train.remote(server, 10) for _ in range(2)])
    held, version = ray.get(server.pull.remote())
    assert version == max(versions) == 20
    np.testing.assert_array_equal(held, np.full(parts.size, 20, np.float32))
    ray.kill(server)
