"""An asynchronous parameter server: workers push what they have learnt, and go on from what it holds.

    worker:  pull ─▶ w, version     train on w alone     push(update, version) ─▶ w', version' …

No worker waits for another. An update that was computed on parameters from which the server has moved
on by `s` updates is stale by `s`; `damping` makes it count by 1 / (1 + s)^damping (0: fully), as in
staleness-aware asynchronous SGD (Zhang, Gupta, Lian & Liu, 2016).

Vectors of more than 100 KiB travel through the object store, so a push is one copy into shared memory
and a pull a view of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miniray.train.sync.rules import Parts, Vector, merge


def apply_push(held: Vector, update: Vector, part: float, parts: Parts) -> Vector:
    """What a server that holds `held` holds after an update that counts by `part`, 0 to 1.

    Weights: held + part · update. Statistics, of which `update` has the worker's values: pooled with
    those held by shares 1 - part and part. Counters: the larger one. Pure; returns a new vector.
    """
    values = update.copy()
    values[: parts.weights] = held[: parts.weights]
    applied = merge([held, values], [1 - part, part], parts)
    applied[: parts.weights] = held[: parts.weights] + np.float32(part) * update[: parts.weights]
    if parts.counters:
        applied[-parts.counters :] = np.maximum(held[-parts.counters :], update[-parts.counters :])
    return applied


@dataclass(frozen=True)
class Staleness:
    """How stale the updates were that a server has applied."""

    updates: int
    mean: float
    most: int


class ParameterServer:
    """Holds one vector; made an actor by ``ray.remote(ParameterServer)``. Calls do not overlap."""

    def __init__(
        self, parts: Parts, initial: Vector, *, part: float = 1.0, damping: float = 0.0, version: int = 0
    ) -> None:
        """`part`: how much of each update counts; 1 / workers makes the server an asynchronous average.

        `version` continues an earlier server.
        """
        if not (0 < part <= 1 and damping >= 0):
            raise ValueError(f"part {part} must lie in (0, 1], and damping {damping} be zero or more")
        if initial.shape != (parts.size,):
            raise ValueError(f"a vector of {initial.shape} where the model has {parts.size} values")
        self._parts, self._part, self._damping = parts, part, damping
        self._held: Vector = np.array(initial, dtype=np.float32)
        self._version = version
        self._updates = self._stale_sum = self._stale_most = 0

    def pull(self) -> tuple[Vector, int]:
        """The vector, and its version: how many updates it has seen."""
        return self._held, self._version

    def push(self, update: Vector, version: int) -> tuple[Vector, int]:
        """Apply an update that was computed from `version`; returns what `pull` would."""
        stale = self._version - version
        if stale < 0:
            raise ValueError(f"an update from version {version}, and this server is at {self._version}")
        part = self._part / (1 + stale) ** self._damping
        self._held = apply_push(self._held, update, part, self._parts)
        self._version += 1
        self._updates += 1
        self._stale_sum += stale
        self._stale_most = max(self._stale_most, stale)
        return self.pull()

    def staleness(self) -> Staleness:
        """Of the updates so far."""
        return Staleness(self._updates, self._stale_sum / max(1, self._updates), self._stale_most)
