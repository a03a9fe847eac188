"""Pictures of a run, drawn with Pillow alone: a grid of images and a chart of the losses.

The chart is drawn at twice its size and scaled down, which smooths its lines. Pure functions: arrays in,
Pillow images out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_SCALE = 2  # drawn larger by this, then scaled down
_WIDTH, _HEIGHT = 900, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 56, 44
_INK, _GRID, _PAPER = (60, 60, 60), (228, 228, 228), (255, 255, 255)
_COLOURS = ((31, 119, 180), (214, 84, 40), (44, 140, 84), (128, 90, 180))
_LEAST = 1e-6  # what a logarithmic chart shows of zero
_SMOOTHING_POINTS = 120  # a curve is smoothed over this part of its length

Series = tuple[str, Sequence[float], Sequence[float]]  # legend, x, y


def grid(images: NDArray[np.uint8], columns: int = 0, zoom: int = 2, gap: int = 2) -> Image.Image:
    """Images (n, 3, h, w) side by side, row by row. `columns` 0: about square. `zoom` enlarges each pixel."""
    count, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 32, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def chart(title: str, x_name: str, series: Sequence[Series], logarithmic: bool = False) -> Image.Image:
    """Lines over a common x. The raw values are drawn faintly, a moving average of each strongly.

    `logarithmic`: equal steps upwards are equal factors, for values above 0 of very different size.
    """
    if logarithmic:
        series = [(name, x, [math.log10(max(value, _LEAST)) for value in y]) for name, x, y in series]
    picture = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _PAPER)
    draw = ImageDraw.Draw(picture)
    xs = [value for _, x, _ in series for value in x] or [0.0]
    ys = [value for _, _, y in series for value in y if math.isfinite(value)] or [0.0]
    bottom = min(ys) - 0.1 if logarithmic else min(0.0, *ys)
    frame = _Frame(min(0.0, *xs), max(xs), bottom, max(ys) if logarithmic else _upper(ys), logarithmic)
    _axes(draw, frame, x_name)
    _text(draw, (_LEFT, 10), title, size=16)
    for number, (name, x, y) in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        _line(draw, frame, x, y, tuple((value + 3 * 255) // 4 for value in colour), 1)
        _line(draw, frame, x, _smooth(y), colour, 2)
        left = _LEFT + 170 * number
        draw.line(_scaled((left, 42, left + 22, 42)), fill=colour, width=3 * _SCALE)
        _text(draw, (left + 28, 35), name, size=12)
    return picture.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)


def stacked(pictures: Sequence[Any]) -> Image.Image:
    """Pictures of one width, one below the other; at least one."""
    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), _PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


class _Frame:
    """The map from values to pixels of the unscaled picture."""

    def __init__(
        self, x_low: float, x_high: float, y_low: float, y_high: float, logarithmic: bool = False
    ) -> None:
        """`logarithmic`: the y are powers of ten."""
        self.x_ticks = _ticks(x_low, x_high)
        heights = _powers(y_low, y_high) if logarithmic else [(at, at) for at in _ticks(y_low, y_high)]
        self.y_ticks = heights
        self._x, self._y = (x_low, max(x_high, x_low + 1e-9)), (y_low, max(y_high, y_low + 1e-9))

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (min(max(y, self._y[0]), self._y[1]) - self._y[0]) / (self._y[1] - self._y[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)


def _upper(values: Sequence[float]) -> float:
    """The top of the y axis: above nearly all values, so that one early peak does not flatten the rest."""
    return 1.1 * float(np.quantile(values, 0.995))


def _ticks(low: float, high: float) -> list[float]:
    """About six round values in [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 7)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[tuple[float, float]]:
    """(exponent, value) of 1, 2 and 5 times the powers of ten from 10**low to 10**high; few of them."""
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [
            factor * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low - 1e-9 <= math.log10(factor * 10.0**power) <= high + 1e-9
        ]
        if len(values) <= 8:
            break
    return [(math.log10(value), value) for value in values] or [(low, float(f"{10**low:.2g}"))]


def _axes(draw: ImageDraw.ImageDraw, frame: _Frame, x_name: str) -> None:
    bottom = _HEIGHT - _BOTTOM
    for height, value in frame.y_ticks:
        _, y = frame.place(0, height)
        draw.line(_scaled((_LEFT, y, _WIDTH - _RIGHT, y)), fill=_GRID, width=_SCALE)
        _text(draw, (_LEFT - 8, y), f"{value:g}", size=12, anchor="rm")
    for value in frame.x_ticks:
        x, _ = frame.place(value, 0)
        draw.line(_scaled((x, bottom, x, bottom + 4)), fill=_INK, width=_SCALE)
        _text(draw, (x, bottom + 8), f"{value:g}", size=12, anchor="mt")
    draw.line(_scaled((_LEFT, bottom, _WIDTH - _RIGHT, bottom)), fill=_INK, width=_SCALE)
    _text(draw, ((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 18), x_name, size=12, anchor="mt")


def _line(
    draw: ImageDraw.ImageDraw, frame: _Frame, x: Sequence[float], y: Sequence[float], colour: Any, width: int
) -> None:
    points = [frame.place(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if len(points) > 1:
        draw.line([_scaled(point) for point in points], fill=colour, width=width * _SCALE, joint="curve")


def _smooth(values: Sequence[float]) -> list[float]:
    """A centred moving average; its window shrinks at both ends."""
    half = len(values) // _SMOOTHING_POINTS * 2
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(np.asarray(values, dtype=np.float64)))])
    found = []
    for index in range(len(values)):
        reach = min(half, index, len(values) - 1 - index)
        found.append(float((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)))
    return found


def _scaled(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(value * _SCALE for value in values)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *, size: int, anchor: str = "la"
) -> None:
    font = ImageFont.load_default(size=size * _SCALE)
    draw.text((at[0] * _SCALE, at[1] * _SCALE), text, fill=_INK, font=font, anchor=anchor)
