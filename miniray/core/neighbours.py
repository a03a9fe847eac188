"""The other nodes as one node knows them: who lives, where to dial them, who is dead.

::

    (unknown) ── speaks to us, or a view names it ──▶ peer ── a view says DEAD ──▶ lost

A node may speak to us before any view has named it: it learned of us when it registered, and our
own news are still on their way. A lost node that still speaks is cut off and does not know it:
what it says does not count. Pure; part of `core.node.Node`. Limit: of lost nodes the last
`LOST_KEPT` are remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2
from miniray.core.policy import NodeView
from miniray.core.relay import node_died

LOST_KEPT = 1024


@dataclass(slots=True)
class Neighbours:
    """See the module head. `view` is the node's: itself first, then what views have named."""

    node_id: bytes
    view: dict[bytes, NodeView]
    peers: dict[bytes, common.NodeInfo] = field(default_factory=dict)
    lost: dict[bytes, None] = field(default_factory=dict)

    def view_arrived(self, view: gcs_pb2.ClusterView) -> list[tuple[bytes, common.Failure]]:
        """News from the GCS. Returns the nodes that are dead by it, and why."""
        dead = []
        for info in view.nodes:
            if info.node_id == self.node_id:
                continue
            if info.state == common.NODE_DEAD:
                dead.append((info.node_id, info.death))
            else:
                self.view[info.node_id] = NodeView.of(info)
                self.peers[info.node_id] = info
                self.lost.pop(info.node_id, None)
        if view.full:  # a peer that no view has named yet has registered after this one was made
            named = {info.node_id for info in view.nodes}
            dead.extend((n, node_died(n)) for n in self.peers if n in self.view and n not in named)
        return dead

    def met(self, node_id: bytes) -> bool:
        """A node speaks to us. False: it is dead, for all that we know."""
        if node_id in self.lost:
            return False
        if node_id not in self.peers:
            self.peers[node_id] = common.NodeInfo(node_id=node_id)
        return True

    def died(self, node_id: bytes) -> bool:
        """Forget a node. True if it was a peer."""
        self.lost[node_id] = None
        if len(self.lost) > LOST_KEPT:
            del self.lost[next(iter(self.lost))]
        self.view.pop(node_id, None)
        return self.peers.pop(node_id, None) is not None
