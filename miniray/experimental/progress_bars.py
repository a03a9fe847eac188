"""Progress bars as text for a terminal: one line each, in a block at the lower end of the screen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from miniray.printable import on_one_line

WIDTH = 20
"""Characters of the bar itself."""


class Bar:
    """`n` of `total` (None: unknown) pieces of work. Rates count from when it was made."""

    def __init__(self) -> None:
        self.n: float = 0
        self.total: float | None = None
        self.desc = ""
        self.unit = "it"
        self._began = time.monotonic()

    def line(self) -> str:
        """`what: 42%|████    | 42/100 [3.1it/s]`, cut to nothing but its own length."""
        seconds = time.monotonic() - self._began
        rate = f"{self.n / seconds:.3g}" if seconds > 0 else "?"
        head = f"{on_one_line(self.desc)}: " if self.desc else ""
        tail = f"[{rate}{on_one_line(self.unit)}/s]"
        if not self.total:
            return f"{head}{self.n:g} {tail}"
        share = min(1.0, max(0.0, self.n / self.total))
        done = int(share * WIDTH)
        return f"{head}{share:4.0%}|{'█' * done}{' ' * (WIDTH - done)}| {self.n:g}/{self.total:g} {tail}"


def drawn(bars: Sequence[Bar]) -> tuple[str, int]:
    """The block of these bars, as many as the terminal has lines for, and its number of lines.

    The cursor stays at the end of the last line.
    """
    size = shutil.get_terminal_size()
    lines = [bar.line()[: size.columns - 1] for bar in bars[: max(1, size.lines - 1)]]
    return "\n".join(lines), len(lines)


def erased(lines: int) -> str:
    """What clears a block of so many lines and puts the cursor where it began."""
    up = f"\x1b[{lines - 1}A" if lines > 1 else ""
    return f"\r{up}\x1b[J"
