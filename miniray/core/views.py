"""What each raylet is told of the others: at once what matters at once, figures at a pace that costs little.

::

    joined, died, drained ─────▶ whole row ────┐
    totals changed (bundles) ──▶ figures ──────┴─▶ `URGENT_BYTES_PER_S` ──┐
    available changed ─────────▶ figures ────────▶ `FIGURES_BYTES_PER_S` ┴─▶ one message for all, encoded once

Everybody is told of everybody, so with n nodes a second of changes is n² figures. What goes out is
therefore bounded in bytes, not in time: after a broadcast the next one of its kind waits until the
bytes of the first fit the rate. Between two of them changes of a node gather into one. A few nodes
hear of each other after `PAUSE_S`; of two thousand that all change, each hears of all figures every
ten seconds or so, and of who has come and gone within a second. A message counts as `MESSAGE_BYTES` more.

Who joins gets all rows as the `Roster` keeps them: as they were told to the others last, for what has
changed since is about to be told to everybody. Pure; part of `core.members`.
"""

from __future__ import annotations

from collections.abc import Mapping

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.desk import Desk
from miniray.core.packing import packed_view
from miniray.core.roster import Roster

PAUSE_S = 0.05
"""Broadcasts of one kind are at least so far apart."""

URGENT_BYTES_PER_S = 64 << 20
FIGURES_BYTES_PER_S = 16 << 20
"""What the head writes at most, to all nodes together. Writing 100 MB takes some 0.1 s of a core."""

MESSAGE_BYTES = 16 << 10
"""What packing and writing one message costs, in bytes that could be written instead."""

_FIGURES, _TOTALS, _ROW = 0, 1, 2


class Views:
    """See the module head."""

    def __init__(self, desk: Desk, roster: Roster) -> None:
        self._desk = desk
        self._roster = roster
        self._changed: dict[bytes, int] = {}
        self._urgent: dict[bytes, int] = {}
        self._urgent_at = 0.0
        self._figures_at = 0.0

    # ---- what has changed

    def row_changed(self, now: float, node_id: bytes) -> None:
        """A node has come, changed its state or gone."""
        self._note(now, node_id, _ROW)

    def totals_changed(self, now: float, node_id: bytes) -> None:
        """A node offers something else: whoever waits for it must hear soon."""
        self._note(now, node_id, _TOTALS)

    def figures_changed(self, now: float, node_id: bytes) -> None:
        """A node has more or less to give."""
        self._note(now, node_id, _FIGURES)

    def _note(self, now: float, node_id: bytes, what: int) -> None:
        if what == _FIGURES and node_id not in self._urgent:
            if not self._changed:
                self._figures_at = max(now, self._figures_at)
            self._changed[node_id] = what
            return
        if what == _ROW:
            self._roster.stale(node_id)
        self._changed.pop(node_id, None)
        if not self._urgent:
            self._urgent_at = max(now, self._urgent_at)
        self._urgent[node_id] = max(what, self._urgent.get(node_id, what))

    # ---- telling

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        dues = [self._urgent_at] if self._urgent else []
        if self._changed:
            dues.append(self._figures_at)
        return min(dues, default=None)

    def tick(self, now: float, gone: Mapping[bytes, pb.NodeInfo], readers: list[bytes]) -> None:
        """Tell `readers` what is due of the living nodes, and of those that are `gone`."""
        if self._urgent and now >= self._urgent_at:
            changed, self._urgent = self._urgent, {}
            sent = self._broadcast(changed, gone, readers)
            self._urgent_at = now + max(PAUSE_S, sent / URGENT_BYTES_PER_S)
        if self._changed and now >= self._figures_at:
            changed, self._changed = self._changed, {}
            sent = self._broadcast(changed, gone, readers)
            self._figures_at = now + max(PAUSE_S, sent / FIGURES_BYTES_PER_S)

    def _broadcast(
        self, changed: dict[bytes, int], gone: Mapping[bytes, pb.NodeInfo], readers: list[bytes]
    ) -> int:  # fmt: skip
        """One message for everybody; a node is not told about itself alone. Returns its cost in bytes."""
        view = gcs.ClusterView()
        for node_id, what in changed.items():
            info = self._roster.rows.get(node_id) or gone.get(node_id)
            if info is None:
                continue
            self._roster.stale(node_id)
            if what == _ROW:
                view.nodes.append(info)
            else:
                figures = view.figures.add(node_id=node_id, available=info.available)
                if what == _TOTALS:
                    figures.total.CopyFrom(info.total)
        if not view.nodes and not view.figures:
            return 0
        message = gcs.NodeMessage(view=packed_view(view))
        told = [node_id for node_id in readers if not (len(changed) == 1 and node_id in changed)]
        for node_id in told:
            self._desk.send(node_id, message)
        return (message.ByteSize() + MESSAGE_BYTES) * len(told)
