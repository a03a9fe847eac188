"""Objects leave before their node does: what a draining node holds for others is taken over elsewhere.

::

    drained ─▶ survey ─▶ each primary copy whose owner lives elsewhere
                  ▲          │ TakeOver ─▶ the node with most room pulls it and keeps it as its own
                  │          ◀─ TakenOver ── done │ refused: the next node │ nobody left: it stays
                  └── when the last work has ended: it may have left results

The node leaves when all are away, or when its time is up; then a line in the log says what has stayed.
Objects owned by workers of this node end with them and stay. Copies that were fetched from others stay, too:
they have one elsewhere.

Pure; part of `core.node.Node`. Limits: `MOVES` at a time, and the node's own deadline.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2
from miniray.core import resources
from miniray.core.contract import Send
from miniray.core.memory import NOBODY, Held
from miniray.core.node_effects import Survey

if TYPE_CHECKING:
    from miniray.core.node import Node

MOVES = 4
NAMED = 5
"""Objects that stay, in the line about it."""
MIB = 1 << 20


class Evacuation:
    """See the module head."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.waiting: dict[bytes, Held] = {}
        self.moving: dict[bytes, bytes] = {}
        """Object -> the node that is to take it over."""
        self.moved: dict[bytes, bytes] = {}
        self.refused: dict[bytes, dict[bytes, str]] = {}
        """Object -> nodes that have not taken it, and why."""
        self._promised: dict[bytes, int] = {}
        """Node -> bytes that it was asked to take."""
        self._surveying = False
        self._has_seen_all = False

    # ---- stimuli ----

    def begun(self) -> None:
        """The node drains: what it has can go while work goes on."""
        self._surveying = any(self._is_due(held) for held in self.node.memory.held.values())
        if self._surveying:
            self.node.memory.survey()

    def surveyed(self, survey: Survey) -> None:
        """What is in the store; what is on disk is known."""
        if not self._surveying:
            return
        self._surveying = False
        memory = self.node.memory
        kept = [item.object_id for item in survey.objects
                if item.primary and item.sealed and not item.deleting]
        for object_id in [*kept, *memory.spilled]:
            held = memory.held.get(object_id)
            if held is not None and self._is_due(held):
                if not (object_id in self.moved or object_id in self.moving or object_id in self.refused):
                    self.waiting[object_id] = held
        self._advance()

    def _is_due(self, held: Held) -> bool:
        return held.owner != NOBODY and held.owner[0] != self.node.node_id

    def taken_over(self, now: float, node_id: bytes, message: raylet_pb2.TakenOver) -> None:
        """Another node keeps it now, or says why it does not."""
        object_id = message.object_id
        if self.moving.get(object_id) != node_id:
            return
        del self.moving[object_id]
        if message.failure.kind:
            self._try_another(object_id, node_id, message.failure.message)
        else:
            self.moved[object_id] = node_id
            self.node.stories.note(now, object_id, f"taken over by node {node_id.hex()[:12]}")
        self._advance()

    def peer_lost(self, node_id: bytes) -> None:
        """What it has taken over, or was about to, is here still."""
        for places in (self.moving, self.moved):
            for object_id in [key for key, place in places.items() if place == node_id]:
                del places[object_id]
                self._try_another(object_id, node_id, "it has died")
        self._advance()

    def freed(self, object_ids: list[bytes]) -> None:
        """Nobody refers to these any more."""
        for object_id in object_ids:
            for known in (self.waiting, self.moving, self.moved, self.refused):
                known.pop(object_id, None)
        self._advance()

    # ---- decisions ----

    def is_over(self) -> bool:
        """Nothing runs here any more: has everything gone that can?"""
        if not self._has_seen_all and not self._surveying:
            self._has_seen_all = True
            self.begun()
        return not (self._surveying or self.waiting or self.moving)

    def _try_another(self, object_id: bytes, node_id: bytes, why: str) -> None:
        self.refused.setdefault(object_id, {})[node_id] = why
        held = self.node.memory.held.get(object_id)
        if held is not None:
            self.waiting[object_id] = held

    def _advance(self) -> None:
        while self.waiting and len(self.moving) < MOVES:
            object_id, held = next(iter(self.waiting.items()))
            del self.waiting[object_id]
            tried = self.refused.get(object_id, {})
            target = self._roomiest(tried)
            if target is None:
                self.refused[object_id] = tried  # it stays
                continue
            self.moving[object_id] = target
            self._promised[target] = self._promised.get(target, 0) + held.size
            self.node.out.append(Send(target, raylet_pb2.PeerMessage(take_over=raylet_pb2.TakeOver(
                object_id=object_id, owner=held.address, size=held.size))))

    def _roomiest(self, tried: Container[bytes]) -> bytes | None:
        """The node with most room; one without enough writes to disk what it has."""
        nodes = [view.node_id for view in self.node.view.values()
                 if view.state == common.NODE_ALIVE and view.node_id in self.node.peers
                 and view.node_id not in tried]
        return max(nodes, key=self._room, default=None)

    def _room(self, node_id: bytes) -> int:
        free = self.node.view[node_id].available.get(resources.OBJECT_STORE_MEMORY, 0) // resources.UNIT
        return free - self._promised.get(node_id, 0)

    # ---- people and tests ----

    def left_behind(self) -> str:
        """What goes with the node though others refer to it, in words; "" when there is nothing."""
        held = self.node.memory.held
        known = dict.fromkeys((*self.moving, *self.waiting, *self.refused))
        staying = [key for key in known if key in held and key not in self.moved]
        if not staying:
            return ""
        total = sum(held[key].size for key in staying)
        named = [f"{key.hex()} ({held[key].size} bytes): {self._why(key)}" for key in staying[:NAMED]]
        if len(staying) > NAMED:
            named.append(f"and {len(staying) - NAMED} more")
        return (f"{len(staying)} objects ({total / MIB:.1f} MiB) that other nodes refer to are lost with "
                f"this node; what tasks returned is made again when it is needed: {'; '.join(named)}")

    def _why(self, object_id: bytes) -> str:
        if object_id in self.moving:
            return f"node {self.moving[object_id].hex()[:12]} has not got it in time"
        refusals = self.refused.get(object_id, {}).items()
        tried = "; ".join(f"node {node_id.hex()[:12]}: {why}" for node_id, why in refusals)
        if object_id in self.waiting:
            return "the time was up before its turn" + (f" ({tried})" if tried else "")
        return tried or "no other node takes work"

    def check(self) -> None:
        """An object is in one place."""
        assert not (self.waiting.keys() & self.moving.keys()), "an object moves and waits"
        assert not (self.moved.keys() & (self.waiting.keys() | self.moving.keys())), "an object moves twice"
        assert len(self.moving) <= MOVES and (not self.waiting or self.moving), "a move is stuck"
