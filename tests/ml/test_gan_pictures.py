"""Grids and charts, looked at pixel by pixel where that is possible."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

from ml.gan import plots  # noqa: E402
from ml.gan.progress import Progress  # noqa: E402


def test_a_grid_places_images_row_by_row() -> None:
    images = np.zeros((5, 3, 4, 4), dtype=np.uint8)
    images[:, 0] = np.arange(1, 6)[:, None, None] * 40
    sheet = np.asarray(plots.grid(images, columns=3, zoom=1, gap=1))
    assert sheet.shape == (2 * 5 + 1, 3 * 5 + 1, 3)
    assert [int(sheet[2 + 5 * (index // 3), 2 + 5 * (index % 3), 0]) for index in range(5)] == [
        40,
        80,
        120,
        160,
        200,
    ]


def test_a_grid_is_about_square_and_zoomed() -> None:
    assert plots.grid(np.zeros((9, 3, 32, 32), dtype=np.uint8), zoom=2, gap=2).size == (2 * 104, 2 * 104)


@pytest.mark.parametrize("count", [0, 1, 2, 1_000])
def test_a_chart_can_be_drawn_of_any_number_of_points(count: int) -> None:
    x = [float(value) for value in range(count)]
    picture = plots.chart("title", "epoch", [("a", x, [value**0.5 for value in x]), ("b", x, [0.5] * count)])
    assert picture.size == (900, 460)


def test_a_chart_shows_its_lines_and_survives_infinities() -> None:
    x = [float(value) for value in range(50)]
    y = [1.0] * 49 + [float("inf")]
    picture = np.asarray(plots.chart("", "epoch", [("a", x, y)])).astype(int)
    blue = (abs(picture - np.array(plots._COLOURS[0])).sum(axis=2) < 90).sum()
    assert blue > 400  # a line across the picture


def test_a_moving_average_keeps_a_constant_and_the_length() -> None:
    assert plots._smooth([2.0] * 500) == pytest.approx([2.0] * 500)
    assert plots._smooth([]) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2.37), (0, 90), (3, 3), (0, 0.004)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = plots._ticks(low, high)
    assert 1 <= len(ticks) <= 8 and min(ticks) >= low and max(ticks) <= high + 1e-9


@pytest.mark.parametrize("values", [(800.0, 7.4, 2.9), (3.0, 3.0), (0.0, 5.0), ()])
def test_a_logarithmic_chart_can_be_drawn_of_any_size(values: tuple[float, ...]) -> None:
    x = [float(at) for at in range(len(values))]
    assert plots.chart("", "epoch", [("a", x, values)], logarithmic=True).size == (900, 460)


def test_powers_of_ten_are_few_and_round() -> None:
    assert [value for _, value in plots._powers(0.3, 2.9)] == [2, 5, 10, 20, 50, 100, 200, 500]
    assert [round(value, 9) for _, value in plots._powers(-6, 3)][:2] == [1e-6, 1e-5]
    assert len(plots._powers(0.5, 0.5)) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_on_a_terminal_one_line_rewrites_itself() -> None:
    out = Terminal()
    progress = Progress(out, epochs=2, total_steps=10, done_steps=0, now=0.0)
    for step in range(1, 11):
        progress.advance(float(step), 1, 100, (step - 1) // 5, 0.5, 1.5)
    progress.close()
    text = out.getvalue()
    assert text.count("\n") == 1 and text.count("\r") == 10
    last = text.rsplit("\r", 1)[1]
    assert "2/2" in last and "100%" in last and "d_loss 0.500" in last and "100 images/s" in last


def test_elsewhere_a_line_every_few_seconds_and_at_the_end() -> None:
    out = io.StringIO()
    progress = Progress(out, epochs=1, total_steps=120, done_steps=0, now=0.0)
    for step in range(120):
        progress.advance((step + 1) * 0.2, 1, 10, 0, 0.5, 1.5)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in out.getvalue() and "100%" in lines[-1]


def test_the_rate_is_of_late_and_right_from_the_start() -> None:
    progress = Progress(io.StringIO(), epochs=1, total_steps=10_000, done_steps=0, now=0.0)
    progress.advance(2.0, 1, 100, 0, 0, 0)
    assert progress.rate == pytest.approx(50)
    for step in range(100):
        progress.advance(3.0 + step, 1, 300, 0, 0, 0)
    assert progress.rate == pytest.approx(300, rel=0.01)


def test_a_time_limit_bounds_the_time_left() -> None:
    out = Terminal()
    progress = Progress(out, epochs=10, total_steps=1_000, done_steps=0, now=0.0, limit_s=30.0)
    progress.advance(10.0, 10, 100, 0, 0, 0)
    assert "0:20 left" in out.getvalue()


def test_the_time_left_counts_only_what_this_part_of_the_run_did() -> None:
    out = Terminal()
    progress = Progress(out, epochs=10, total_steps=100, done_steps=80, now=0.0)
    progress.advance(10.0, 10, 100, 8, 0, 0)
    assert "90%" in out.getvalue() and "0:10 left" in out.getvalue()
