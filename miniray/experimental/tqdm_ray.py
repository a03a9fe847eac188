"""Progress bars of tasks and actors, drawn together by the driver.

`tqdm` has tqdm's interface and works anywhere: in a worker its state is a line of the worker's
output, which the driver takes out of the stream (`runtime.log_stream`) and draws; in the driver it is
drawn directly. The bars stand below everything else on stderr, and make room while output of workers
is shown; around prints of the driver's own use `safe_print`. Where stderr is no terminal, a bar is one
line, once it is closed.

A line of progress comes from a worker and is taken as hostile: what does not fit is ordinary output.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from miniray import api
from miniray.experimental.progress_bars import Bar, drawn, erased
from miniray.runtime import log_stream

MAGIC = log_stream.PROGRESS.decode()
"""Marks a line of output that is a state of a bar."""

BARS_OF_A_PROCESS = 100
LARGEST = 1e18
DESCRIPTION_LIMIT = 500
DRAW_EVERY_S = 0.05


class tqdm:  # noqa: N801 (tqdm's name)
    """A progress bar: `for item in tqdm(items)`, or `update(n)` and `close()`.

    At most one state each `flush_interval_s` seconds is told to the driver.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: int | None = None,
        unit: str | None = None,
        position: int | None = None,
        flush_interval_s: float | None = None,
    ) -> None:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]  # just asked
        self.n = 0
        self.total = total
        self._iterable = iterable
        self._desc = desc or ""
        self._unit = unit or "it"
        self._position = position or 0
        self._uuid = uuid.uuid4().hex
        self._closed = False
        self._flush_interval_s = 1.0 if flush_interval_s is None else flush_interval_s
        self._told_at = float("-inf")

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise ValueError("This bar was made without an iterable: tqdm(iterable) can be iterated over.")
        for item in self._iterable:
            self.update(1)
            yield item
        self._tell()  # the last ones may have been too soon after another

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self.n += n
        self.refresh()

    def set_description(self, desc: str) -> None:
        """The text before the bar."""
        self._desc = desc
        self.refresh()

    def refresh(self) -> None:
        """Tell the driver, unless it was told just now."""
        if time.monotonic() - self._told_at >= self._flush_interval_s:
            self._tell()

    def close(self) -> None:
        """The bar is done and leaves the screen's block."""
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        worker = api.current_worker()
        state = {
            "__magic_token__": MAGIC,
            "x": self.n,
            "pos": self._position,
            "desc": self._desc[:DESCRIPTION_LIMIT],
            "total": self.total,
            "unit": self._unit,
            "pid": os.getpid(),
            "uuid": self._uuid,
            "closed": self._closed,
        }
        if worker is None or worker.is_driver:
            instance().process_state_update(state)
        else:
            print(json.dumps(state))


class ManagedBar:
    """A bar and the last state that was told of it."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.bar = Bar()
        self.update(state)

    def update(self, state: dict[str, Any]) -> None:
        """Take a newer state over."""
        self.state = state
        self.bar.n, self.bar.total = state["x"], state["total"]
        self.bar.desc, self.bar.unit = state["desc"], state["unit"]


class BarGroup:
    """The bars of one process."""

    def __init__(self) -> None:
        self.bars_by_uuid: dict[str, ManagedBar] = {}


class BarManager:
    """All bars this process draws. Any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.bar_groups: dict[tuple[str, int], BarGroup] = {}
        self.in_hidden_state = False
        self.num_hides = 0
        self._drawn_lines = 0
        self._drawn_at = float("-inf")
        atexit.register(self._leave)

    def process_state_update(self, state: dict[str, Any], ip: str = "") -> None:
        """A bar began, moved on or was closed; `ip` is where, "" for this machine."""
        with self.lock:
            self._process(state, ip)

    def _process(self, state: dict[str, Any], ip: str) -> None:
        pid = state["pid"]
        if pid != os.getpid():
            state["desc"] = f"(pid={pid}{f', ip={ip}' if ip else ''}) {state['desc']}"
        bars = self.bar_groups.setdefault((ip, pid), BarGroup()).bars_by_uuid
        known = bars.get(state["uuid"])
        if known is not None:
            known.update(state)
        elif not state["closed"] and len(bars) < BARS_OF_A_PROCESS:
            known = bars[state["uuid"]] = ManagedBar(state)
        if known is None:
            return
        if not state["closed"]:
            self._redraw()
            return
        del bars[state["uuid"]]
        self._erase()
        _write(f"{known.bar.line()}\n")  # stays above the others
        self._drawn_at = float("-inf")
        self._redraw()

    def hide_bars(self) -> None:
        """Make room for other output, until `unhide_bars`."""
        with self.lock:
            if not self.in_hidden_state:
                self.in_hidden_state = True
                self.num_hides += 1
                self._erase()

    def unhide_bars(self) -> None:
        """The other output is done."""
        with self.lock:
            if self.in_hidden_state:
                self.in_hidden_state = False
                self._drawn_at = float("-inf")
                self._redraw()

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Bars are hidden meanwhile."""
        self.hide_bars()
        try:
            yield
        finally:
            self.unhide_bars()

    def _erase(self) -> None:
        if self._drawn_lines:
            _write(erased(self._drawn_lines))
            self._drawn_lines = 0

    def _leave(self) -> None:
        """The shell's prompt gets a line of its own."""
        if self._drawn_lines:
            _write("\n")

    def _redraw(self) -> None:
        now = time.monotonic()
        if self.in_hidden_state or now - self._drawn_at < DRAW_EVERY_S or not _is_terminal():
            return
        self._erase()
        groups = self.bar_groups.values()
        bars = [known for group in groups for known in sorted(group.bars_by_uuid.values(), key=_place)]
        text, self._drawn_lines = drawn([known.bar for known in bars])
        _write(text)
        self._drawn_at = now


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:
        return False  # it is closed


def _write(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _place(known: ManagedBar) -> int:
    position: int = known.state["pos"]
    return position


_manager: BarManager | None = None
_manager_lock = threading.Lock()


def instance() -> BarManager:
    """The manager of this process's bars."""
    global _manager
    with _manager_lock:
        if _manager is None:
            _manager = BarManager()
        return _manager


def safe_print(*values: Any, **options: Any) -> None:
    """`print` that does not run into the bars."""
    with instance().room():
        print(*values, **options)


_TYPES: dict[str, Any] = {
    "x": (int, float),
    "pos": int,
    "desc": str,
    "total": (int, float, type(None)),
    "unit": str,
    "uuid": str,
    "closed": bool,
}


def state_in(line: str, pid: int) -> dict[str, Any] | None:
    """The state of a bar that a line of output of process `pid` is; None when it is something else."""
    try:
        state = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(state, dict) or state.get("__magic_token__") != MAGIC:
        return None
    if not all(isinstance(state.get(name), kind) for name, kind in _TYPES.items()):
        return None
    if not all(-LARGEST <= state[name] <= LARGEST for name in ("x", "total") if state[name] is not None):
        return None
    state["pid"] = pid
    return state
