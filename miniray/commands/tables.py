"""Plain tables for a terminal or a pipe: aligned columns, no colours, no wrapping, no control characters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from miniray.printable import on_one_line

UNIT = 10_000
"""Resource amounts on the wire are in units of 1/10,000."""

BYTES = ("memory", "object_store_memory")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lines of aligned columns; numbers (by the look of a column) to the right."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *texts]) for i in range(len(header))]
    right = [bool(texts) and all(_is_number(row[i]) for row in texts) for i in range(len(header))]
    lines = []
    for row in [list(header), *texts]:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def amount(name: str, fixed: int) -> str:
    """One resource amount as people write it: "1.5", "2.0 GB"."""
    return size(fixed // UNIT) if name in BYTES else f"{fixed / UNIT:g}"


def resources(amounts: Mapping[str, int]) -> str:
    """A resource map in one line: "CPU 1, GPU 0.5"; node:<ip> resources are left out."""
    shown = [f"{name} {amount(name, amounts[name])}" for name in sorted(amounts) if ":" not in name]
    return ", ".join(shown) or "nothing"


def size(count: float) -> str:
    """Bytes in the unit that gives one to three digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(number: int, noun: str) -> str:
    """A number and its noun: "1 node", "2 nodes"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.12 s", "3 min", "2.5 h"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def ago(moment: float) -> str:
    """How long ago a moment (seconds since the epoch) was; "" for 0."""
    return duration(max(0.0, time.time() - moment)) if moment else ""


def _text(cell: object) -> str:
    if isinstance(cell, bytes):
        return cell.hex()[:16]
    return on_one_line(str(cell))


def _is_number(text: str) -> bool:
    return text == "" or text.replace(",", "").replace(".", "", 1).replace("/", "").isdigit()
