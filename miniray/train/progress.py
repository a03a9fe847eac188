"""The live line of a run in the driver's terminal: one line that rewrites itself, or one now and then.

Writes to the stream it is given and nowhere else. Clock values are arguments.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, TextIO

_REDRAW_S = 0.2
_LINE_EVERY_S = 10.0
_MOST_METRICS = 5


class ProgressLine:
    """Shows the newest report of a run."""

    def __init__(self, out: TextIO | None, name: str, now: float) -> None:
        """`out` None: show nothing."""
        self._out, self._name = out, name
        self._live = out is not None and out.isatty()
        self._started = now
        self._shown = now - (_LINE_EVERY_S if not self._live else _REDRAW_S)
        self._drawn = ""

    def report(
        self, now: float, iteration: int, workers: int, metrics: Mapping[str, Any], last: bool = False
    ) -> None:
        """A new report has come; it is shown unless one was shown just before, or if it is the `last`."""
        if self._out is None or (
            not last and now - self._shown < (_REDRAW_S if self._live else _LINE_EVERY_S)
        ):
            return
        self._shown = now
        numbers = [
            f"{name} {value:.4g}"
            for name, value in metrics.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        crowd = f"{workers} worker{'' if workers == 1 else 's'}" if workers else "in this process"
        minutes, seconds = divmod(int(now - self._started), 60)
        parts = [
            f"{self._name}: report {iteration}",
            crowd,
            f"{minutes}:{seconds:02}",
            *numbers[:_MOST_METRICS],
        ]
        self._write("  ".join(parts))

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._out is not None:
            self.close()
            self._out.write(f"{self._name}: {text}\n")
            self._out.flush()

    def close(self) -> None:
        """Leave the live line as it stands and go to the next one."""
        if self._drawn and self._out is not None:
            self._out.write("\n")
            self._out.flush()
            self._drawn = ""

    def _write(self, line: str) -> None:
        assert self._out is not None
        if self._live:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._out.write("\r" + line.ljust(len(self._drawn)))
            self._drawn = line
        else:
            self._out.write(line + "\n")
        self._out.flush()
