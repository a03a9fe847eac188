"""Random numbers as a pure function of (seed, stream, index): no hidden state anywhere.

Workers are forked, and forked processes share the state of every global generator: they would draw the
same "random" noise. So nothing in this job draws from a global generator. Noise row i is a function of the
seed and of i alone, computed with the counter-based generator Philox, which can jump to any position.
That makes a run repeatable, lets a resumed run go on without saved generator states, and gives the same
images however many processes share the work.

`Generator.normal` of NumPy takes a varying number of draws per value and could not be cut at any index;
Box–Muller takes exactly two draws for two values, so rows can be.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_BLOCK = 4  # Philox4x64 makes four 64-bit words per counter value


class Stream(IntEnum):
    """Independent sequences under one seed."""

    TRAINING_NOISE = 1
    DATA_ORDER = 2
    DRAWING = 3
    SYNTHETIC_DATA = 4
    CALIBRATION = 5
    FEATURES = 6


def _philox(seed: int, stream: Stream, skip_words: int = 0) -> np.random.Philox:
    bits = np.random.Philox(key=np.array([seed & (2**64 - 1), int(stream)], dtype=np.uint64))
    bits.advance(skip_words // _WORDS_PER_BLOCK)
    return bits


def normal_rows(seed: int, stream: Stream, first: int, count: int, width: int) -> NDArray[np.float32]:
    """Rows `first` … `first + count - 1` of an endless table of N(0, 1) values with `width` columns.

    Returns (count, width) float32. Overlapping ranges agree exactly, however they are cut.
    """
    words_per_row = -(-width // _WORDS_PER_BLOCK) * _WORDS_PER_BLOCK
    bits = _philox(seed, stream, first * words_per_row)
    uniform = np.random.Generator(bits).random((count, 2, words_per_row // 2))
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, 0]))
    angle = 2.0 * np.pi * uniform[:, 1]
    rows = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return rows[:, :width].astype(np.float32)


def walk_rows(
    seed: int, stream: Stream, first: int, count: int, width: int, steps: int
) -> NDArray[np.float32]:
    """Rows of an endless table of walks: each `steps` rows lead from one N(0, 1) vector to another.

    Returns (count, width) float32. Walks keep the typical length of a vector (spherical interpolation), so
    what lies between two latent vectors is as likely as they are. Ranges agree however they are cut.
    """
    last = first + count - 1
    walks = np.arange(first // steps, last // steps + 1)
    ends = normal_rows(seed, stream, 2 * int(walks[0]), 2 * len(walks), width).astype(np.float64)
    start, goal = ends[0::2, None], ends[1::2, None]
    cosine = (start * goal).sum(-1) / (np.linalg.norm(start, axis=-1) * np.linalg.norm(goal, axis=-1))
    angle = np.arccos(np.clip(cosine, -1 + 1e-9, 1 - 1e-9))[..., None]
    along = np.linspace(0, 1, steps)[None, :, None]
    rows = (np.sin((1 - along) * angle) * start + np.sin(along * angle) * goal) / np.sin(angle)
    skip = first % steps
    return rows.reshape(-1, width)[skip : skip + count].astype(np.float32)


def permutation(seed: int, stream: Stream, index: int, size: int) -> NDArray[np.int64]:
    """The `index`-th shuffling of range(size)."""
    return generator(seed, stream, index).permutation(size)


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """A NumPy generator of its own for (seed, stream, index): independent of every other one."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed & (2**64 - 1), int(stream), index]))
    )
