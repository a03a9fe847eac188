"""The other nodes as one node knows them: who lives, where to dial them, who is dead.

::

                 ┌─▶ named ──────────── a view says DEAD ──▶ lost
    (unknown) ───┤     ▲ a view, or the GCS when asked
                 └─▶ stranger ── the GCS knows it as dead, or not at all ──▶ lost

Unknown is not dead: a node may speak to us, or be spoken to, before any view has named it, since
views are sent at a pace and an address may come another way. Such a *stranger* counts as a peer;
what is sent to it waits in its link until it can be dialled. One that no view has named after
`STRANGER_S` is asked about. A lost node that still speaks is cut off and does not know it: what
it says does not count. Pure; part of `core.node.Node`. Limit: of lost nodes the last `LOST_KEPT`
are remembered, an older one is a stranger again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2
from miniray.core import resources
from miniray.core.packing import unpack_view
from miniray.core.policy import NodeView
from miniray.core.relay import node_died

LOST_KEPT = 1024

STRANGER_S = 1.0
"""News of a node's joining arrive within this time if the GCS is there."""


@dataclass(slots=True)
class Neighbours:
    """See the module head. `view` is the node's: itself first, then what views have named."""

    node_id: bytes
    view: dict[bytes, NodeView]
    peers: dict[bytes, common.NodeInfo] = field(default_factory=dict)
    """Named nodes and strangers; of a stranger only the id is known."""
    lost: dict[bytes, None] = field(default_factory=dict)
    strangers: dict[bytes, float | None] = field(default_factory=dict)
    """When the GCS is asked about them; None: it has been."""

    def view_arrived(self, now: float, view: gcs_pb2.ClusterView) -> list[tuple[bytes, common.Failure]]:
        """News from the GCS. Returns the nodes that are dead by it, and why."""
        unpack_view(view)
        dead = []
        for info in view.nodes:
            if info.node_id == self.node_id:
                continue
            if info.state == common.NODE_DEAD:
                dead.append((info.node_id, info.death))
            else:
                self.view[info.node_id] = NodeView.of(info)
                self._name(info)
        for figures in view.figures:
            self._revise(figures)
        if view.full:  # a peer that no view has named yet may have registered after this one was made
            named = {info.node_id for info in view.nodes}
            for node_id in self.peers:
                if node_id in self.view and node_id not in named:
                    dead.append((node_id, node_died(node_id)))
                elif node_id not in named:
                    self.strangers.setdefault(node_id, now + STRANGER_S)
        return dead

    def _revise(self, figures: gcs_pb2.NodeFigures) -> None:
        """Other amounts of a node; the object is new, for who holds the old one has changed its amounts."""
        known = self.view.get(figures.node_id)
        if known is None or figures.node_id == self.node_id:
            return
        total = resources.from_map(figures.total) if figures.HasField("total") else known.total
        available = resources.from_map(figures.available)
        self.view[figures.node_id] = replace(known, available=available, total=total)

    def _name(self, info: common.NodeInfo) -> None:
        self.peers[info.node_id] = info
        self.lost.pop(info.node_id, None)
        self.strangers.pop(info.node_id, None)

    def reached(self, now: float, node_id: bytes) -> bool:
        """A node speaks to us, or is spoken to. False: it is dead, for all that we know."""
        if node_id in self.peers or node_id == self.node_id:
            return True
        if node_id in self.lost:
            return False
        self.peers[node_id] = common.NodeInfo(node_id=node_id)
        self.strangers[node_id] = now + STRANGER_S
        return True

    def doubtful(self, now: float) -> list[bytes]:
        """The strangers to ask the GCS about now; its answer is `named`."""
        due = [node_id for node_id, at in self.strangers.items() if at is not None and at <= now]
        for node_id in due:
            self.strangers[node_id] = None
        return due

    def named(
        self, asked: list[bytes], known: Iterable[common.NodeInfo]
    ) -> list[tuple[bytes, common.Failure]]:
        """The GCS's answer to a question about strangers. Returns the dead ones, and why."""
        answers = {info.node_id: info for info in known}
        dead = []
        for node_id in asked:
            if node_id not in self.strangers:
                continue  # a view was faster
            info = answers.get(node_id)
            if info is None:
                dead.append((node_id, node_died(node_id, "the head does not know it")))
            elif info.state == common.NODE_DEAD:
                dead.append((node_id, info.death))
            else:
                self._name(info)
        return dead

    def died(self, node_id: bytes) -> bool:
        """Forget a node. True if it was a peer."""
        self.lost[node_id] = None
        if len(self.lost) > LOST_KEPT:
            del self.lost[next(iter(self.lost))]
        self.view.pop(node_id, None)
        self.strangers.pop(node_id, None)
        return self.peers.pop(node_id, None) is not None

    def next_deadline(self) -> float | None:
        """When the GCS is to be asked about a stranger."""
        return min((at for at in self.strangers.values() if at is not None), default=None)
