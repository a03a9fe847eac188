"""The live line of a run: one line that rewrites itself on a terminal, a line now and then elsewhere.

Writes to the stream it is given and nowhere else. Clock values are arguments.
"""

from __future__ import annotations

import shutil
from typing import TextIO

_REDRAW_S = 0.2
_LINE_EVERY_S = 10.0
_BAR, _SHORTEST_BAR = 20, 5
_RATE_MEMORY_S = 5.0  # the rate shown is that of about the last seconds


class Progress:
    """Counts steps, images and time, and shows them."""

    def __init__(
        self, out: TextIO, epochs: int, total_steps: int, done_steps: int, now: float, limit_s: float = 0.0
    ) -> None:
        """`limit_s`: the run ends after so many seconds at the latest; 0: no limit."""
        self._out, self._epochs, self._total = out, epochs, total_steps
        self._first, self._done = done_steps, done_steps
        self._started = self._before = now
        self._limit_s = limit_s
        self._live = out.isatty()
        self._shown = now - _LINE_EVERY_S if self._live else now
        self._drawn = ""
        self._recent_images = self._recent_s = 0.0  # both fade at the same pace

    @property
    def rate(self) -> float:
        """Images per second lately."""
        return self._recent_images / self._recent_s if self._recent_s else 0.0

    def advance(self, now: float, steps: int, images: int, epoch: int, d_loss: float, g_loss: float) -> None:
        """`steps` more are done, on `images` images, in epoch `epoch` (counted from 0)."""
        passed = max(now - self._before, 1e-6)
        keep = 0.5 ** (passed / _RATE_MEMORY_S)
        self._done += steps
        self._recent_images = keep * self._recent_images + images
        self._recent_s = keep * self._recent_s + passed
        self._before = now
        last = self._done >= self._total
        if last or now - self._shown >= (_REDRAW_S if self._live else _LINE_EVERY_S):
            self._shown = now
            self._show(self._line(now, epoch, d_loss, g_loss))

    def _line(self, now: float, epoch: int, d_loss: float, g_loss: float) -> str:
        part = min(1.0, self._done / max(1, self._total))
        speed = (self._done - self._first) / max(now - self._started, 1e-6)
        left = (self._total - self._done) / speed if speed else 0.0
        if self._limit_s:
            left = min(left, max(0.0, self._started + self._limit_s - now))
        head = f"epoch {epoch + 1:>3}/{self._epochs}"
        rest = (
            f"{part:4.0%}  {self.rate:7,.0f} images/s"
            f"  d_loss {d_loss:.3f}  g_loss {g_loss:.3f}  {_clock(left)} left"
        )
        return f"{head} {self._bar(part, len(head) + len(rest) + 2)}{rest}"

    def _bar(self, part: float, taken: int) -> str:
        """As long as the terminal has room for beside `taken` columns of text; none rather than a stub."""
        room = shutil.get_terminal_size().columns - taken - 4 if self._live else _BAR
        length = min(_BAR, room)
        return f"[{'#' * round(part * length):.<{length}}] " if length >= _SHORTEST_BAR else ""

    def _show(self, line: str) -> None:
        if self._live:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._out.write("\r" + line.ljust(len(self._drawn)))
            self._drawn = line
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """A line of its own, above the live line."""
        self.close()
        self._out.write(text + "\n")
        self._out.flush()

    def close(self) -> None:
        """Leave the live line as it stands and go to the next one."""
        if self._drawn:
            self._out.write("\n")
            self._out.flush()
            self._drawn = ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
