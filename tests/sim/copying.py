"""How large objects come from node to node in the simulator: piece by piece, passed on meanwhile.

What `runtime.objects` does with sockets and shared memory is done here with steps of the clock, by the
same rules. The source decides by the real `core.serving` whom it serves and whom it sends on; who has a part
serves what it has, to those who are behind it; what has come when a source is lost stays for the next one,
if that has the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as common
from miniray.core import node_effects
from miniray.core.memory import NOBODY
from miniray.core.serving import CHAINED_FROM_BYTES

if TYPE_CHECKING:
    from .node import SimNode, Stored

PIECES = 8
PIECE_S = 0.06
DIAL_S = 0.004
HELD_S = 1.0
"""Who asks for what has not come here yet is held for so long."""
STALL_S = 10.0
PASSED_ON_STALL_S = 30.0
"""A fetch that gets nothing for so long has failed; the second from who passes on what it gets itself."""
POLL_S = 0.02


class Landing:
    """What has come of an object that is on its way here: `done` of its `PIECES`."""

    def __init__(self, item: Stored) -> None:
        self.item = item
        self.done = 0
        self.is_over = False
        self.is_whole = False


class Copying:
    """The object manager of one simulated node, for objects that are large enough for a chain."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.landings: dict[bytes, Landing] = {}
        self.fetches: dict[bytes, Fetch] = {}
        node.node.transfer.arrived = self._arrived

    def is_for(self, oid: bytes) -> bool:
        """Whether this pull is of an object that is copied here."""
        pull = self.node.node.transfer.pulls.get(oid)
        return pull is not None and pull.size >= CHAINED_FROM_BYTES

    @property
    def bytes(self) -> int:
        """What has been taken of the store for what is still coming."""
        return sum(landing.item.size for landing in self.landings.values())

    def start(self, effect: node_effects.StartFetch) -> None:
        """Fetch an object, or the rest of it."""
        if effect.fresh:
            self.drop(effect.object_id)
        fetch = self.fetches[effect.object_id] = Fetch(self, effect.object_id, effect.node_id)
        fetch.later(DIAL_S, fetch.dial)

    def stop(self, effect: node_effects.StopFetch) -> None:
        """Nobody waits for it any more, or not from there."""
        fetch = self.fetches.pop(effect.object_id, None)
        if fetch is not None:
            fetch.over(False)
        if not effect.keep:
            self.drop(effect.object_id)

    def drop(self, oid: bytes) -> None:
        """What has come of it is given back."""
        landing = self.landings.pop(oid, None)
        if landing is not None:
            landing.is_over = True

    def end(self) -> None:
        """The node is gone."""
        for oid in list(self.landings):
            self.drop(oid)
        for fetch in self.fetches.values():
            fetch.over(False)
        self.fetches.clear()

    def _arrived(self, oid: bytes) -> int:
        landing = self.landings.get(oid)
        return landing.item.size * landing.done // PIECES if landing is not None else 0


class Fetch:
    """One stream of an object to `here`, until it is over."""

    def __init__(self, here: Copying, oid: bytes, source: bytes) -> None:
        self.here = here
        self.oid = oid
        self.there = here.node.nodes[source]
        self.is_over = False
        self.is_served = False
        """The source counts us among its readers."""
        self.coming: Landing | None = None
        """At the source, which does not have all of it either."""
        self.got_at = here.node.world.now

    # ---- the clock

    def later(self, delay_s: float, step: Any) -> None:
        """Take this step then, unless it is over; a raylet that is stopped takes it when it goes on."""
        self.here.node.world.after(delay_s, self._step, step)

    def _step(self, step: Any) -> None:
        node = self.here.node
        if self.is_over or not node.is_up or node.holds_up(self._step, step):
            return
        if step == self._lost or node.network.reaches(node.id, self.there.id):
            step()
        else:
            self.later(node.unreachable_s(), self._lost)

    def _lost(self) -> None:
        self._fails(common.NODE_DIED, "its source does not answer")

    # ---- what the source says

    def dial(self) -> None:
        """Ask the source, which may be the node itself by a mistake of others."""
        node, there = self.here.node, self.there
        if self.oid in node.store:
            self._ends(0, None)
        elif there is node:
            self._fails(common.NOT_FOUND, "it is not in the store")
        elif there.is_stopped:
            self._wait(self.dial, STALL_S)
        else:
            self._ask()

    def _ask(self) -> None:
        there = self.there
        item = there.store.get(self.oid) or there.disk.get(self.oid)
        pull = there.node.transfer.pulls.get(self.oid)
        if item is None and pull is None:
            self._fails(common.NOT_FOUND, "the copy is gone")
            return
        kept = self.here.landings.get(self.oid)
        size = item.size if item is not None else pull.size if pull is not None else 0
        begun = kept is not None and kept.done > 0
        names = there.node.serving.asked(self.oid, self.here.node.id, size, begun=begun)
        if names is not None:
            self._fails(common.UNAVAILABLE, "its source is busy", names)
            return
        self.is_served = True
        if item is not None:
            self._begin(item)
        else:
            self.got_at = self.here.node.world.now
            self._await_first()

    def _await_first(self) -> None:
        """The source gets it itself: it serves who is behind it."""
        landing = self.there.copying.landings.get(self.oid)
        kept = self.here.landings.get(self.oid)
        if landing is not None and landing.done > (kept.done if kept is not None else 0):
            self.coming = landing
            name = self.here.node.world.name
            self.here.node.world.note(self.there.name, f"passes {name(self.oid)} on to {self.here.node.name}")
            self._begin(landing.item)
        elif self.here.node.world.now > self.got_at + HELD_S:
            self._fails(common.UNAVAILABLE, "it has not come here yet")
        else:
            self.later(POLL_S, self._await_first)

    def _begin(self, item: Stored) -> None:
        node = self.here.node
        landing = self.here.landings.get(self.oid)
        if landing is None and node.used + item.size > node.store_bytes:
            self._fails(common.STORE_FULL, "the store is full", size=item.size)
            return
        if landing is None:
            landing = self.here.landings[self.oid] = Landing(item)
        if landing.item.making != item.making:
            self.here.drop(self.oid)
            self._fails(common.NODE_DIED, "its copy has other bytes than the one that was begun")
            return
        self.got_at = node.world.now
        self.later(PIECE_S, self._piece)

    # ---- pieces

    def _piece(self) -> None:
        landing = self.here.landings[self.oid]
        coming = self.coming
        if coming is not None and coming.is_over and not coming.is_whole:
            self._fails(common.NODE_DIED, "it does not come to its source any more")
            return
        if self.there.is_stopped or (coming is not None and coming.done <= landing.done):
            self._wait(self._piece, PASSED_ON_STALL_S if coming is not None else STALL_S)
            return
        landing.done += 1
        self.got_at = self.here.node.world.now
        if landing.done < PIECES:
            self.later(PIECE_S, self._piece)
        else:
            self._whole(landing)

    def _wait(self, step: Any, stall_s: float) -> None:
        if self.here.node.world.now > self.got_at + stall_s:
            self._lost()
        else:
            self.later(POLL_S, step)

    def _whole(self, landing: Landing) -> None:
        landing.is_over = landing.is_whole = True
        del self.here.landings[self.oid]
        self.here.node.seal_copy(self.oid, landing.item)
        self._ends(landing.item.size, None)

    # ---- the end

    def _fails(self, kind: common.ErrorKind.ValueType, why: str, names: list[bytes] | None = None,
               size: int = 0) -> None:
        self._ends(size, common.Failure(kind=kind, message=why), names or [])

    def _ends(self, size: int, failure: common.Failure | None, names: list[bytes] | None = None) -> None:
        node = self.here.node
        del self.here.fetches[self.oid]
        self.over(failure is None)
        what = failure.message if failure is not None else "whole"
        node.world.note(node.name, f"{node.world.name(self.oid)} from {self.there.name}: {what}")
        held = self.there.node.memory.held.get(self.oid)
        pull = node.node.transfer.pulls.get(self.oid)
        owner = held.owner if held is not None else NOBODY
        if owner == NOBODY and pull is not None:
            owner = (pull.owner.node_id, pull.owner.worker_id)
        node.fetch_ended(self.oid, size, owner, failure, names or [])

    def over(self, is_whole: bool) -> None:
        """The source hears that the stream has ended."""
        self.is_over = True
        if self.is_served and self.there.is_up:
            self.there.node.serving.ended(self.oid, self.here.node.id, is_whole)
        self.is_served = False
