"""Images from a generator: image i depends on the weights, the seed and i, and on nothing else.

Images are independent ones, or, with `walk` steps, strips of so many that lead from one to another.

Floating-point results depend on the size of a batch and on the number of threads that share it. So images
are always drawn in the same chunks of CHUNK (a range that begins or ends inside one draws all of it and
keeps its part), each chunk by one thread; more threads draw more chunks at a time. The same bytes come out
for any number of threads, tasks or machines of one kind of processor. Across kinds of processors, or on a
GPU, single values may differ by one.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml.gan.model import Generator
from ml.gan.streams import Stream, normal_rows, walk_rows

CHUNK = 16
_CALIBRATION_BATCHES, _CALIBRATION_BATCH = 16, 64


def chunks(first: int, count: int) -> list[tuple[int, int]]:
    """The range cut at multiples of CHUNK: (first, count) of each piece."""
    bounds = [first, *range((first // CHUNK + 1) * CHUNK, first + count, CHUNK), first + count]
    return [(start, end - start) for start, end in pairwise(bounds) if end > start]


def draw_chunk(
    generator: Generator, seed: int, first: int, count: int, walk: int = 0
) -> NDArray[np.uint8]:
    """Images `first` … `first + count - 1`, which must lie in one chunk, as uint8 (count, 3, 32, 32).

    The caller has set torch to one thread; `generator` is in evaluation mode, on any device.
    """
    start = first // CHUNK * CHUNK
    place = (seed, Stream.DRAWING, start, CHUNK, generator.latent_dim)
    noise = torch.from_numpy(walk_rows(*place, walk) if walk else normal_rows(*place))
    with torch.inference_mode():
        images = generator(noise.to(next(generator.parameters()).device))
        scaled = images.add(1.0).mul(127.5).round().clamp(0, 255).byte().cpu().numpy()
    kept: NDArray[np.uint8] = scaled[first - start : first - start + count]
    return kept


def calibrate(generator: Generator, seed: int) -> None:
    """Measure the generator's BatchNorm statistics anew, with its present weights, over fresh noise.

    The running statistics of training lag behind the weights, and those of a moving average of weights
    belong to no network at all; images drawn with them are dull and noisy.
    """
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for "mean over all batches"
    generator.train()
    with torch.no_grad():
        for first in range(0, _CALIBRATION_BATCHES * _CALIBRATION_BATCH, _CALIBRATION_BATCH):
            noise = normal_rows(seed, Stream.CALIBRATION, first, _CALIBRATION_BATCH, generator.latent_dim)
            generator(torch.from_numpy(noise))
    generator.eval()
    for layer, momentum in zip(norms, momenta):
        layer.momentum = momentum


def draw_images(
    generator: Generator, seed: int, first: int, count: int, walk: int = 0
) -> NDArray[np.uint8]:
    """Images of any range, one chunk after the other in the calling thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return np.concatenate([draw_chunk(generator, seed, *piece, walk) for piece in chunks(first, count)])
    finally:
        torch.set_num_threads(threads)
