"""Who hears where copies of this process's objects come and go: raylets whose pulls do not get on.

::

    WatchCopies ─▶ what is known now ─▶ each change ─▶ over: the pull has ended, or its node, or the object

Nearly every pull ends before anybody asks for this: a raylet subscribes when a source does not answer, or
when a fetch takes long (`core.lookout`). A subscriber is told of `TOLD_MOST` places at a time; one that goes
is replaced by another. So an object that spreads to hundreds of nodes costs each of them a few messages.

Pure; part of `core.owner.Owner`. Limit: `SUBSCRIPTIONS_KEPT`; whoever comes first goes first then, and its
pull goes on without news.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .directory import FAILED, PENDING, STORED, Directory, ObjectEntry

TOLD_MOST = 8
SUBSCRIPTIONS_KEPT = 10_000

FREED = "its owner has freed it"


@dataclass(slots=True)
class News:
    """Tell the raylets of these nodes about copies of an object; `over` is the last they hear, and why."""

    object_id: bytes
    subscribers: list[bytes]
    added: Sequence[bytes] = ()
    removed: Sequence[bytes] = ()
    is_nowhere: bool = False
    over: str = ""


class Subscribers:
    """See the module head."""

    def __init__(self, directory: Directory, out: list[Any]) -> None:
        self.directory = directory
        self.out = out
        self.of: dict[bytes, dict[bytes, dict[bytes, None]]] = {}
        """Object -> node that has subscribed -> the places that it knows."""
        self.count = 0

    # ---- who

    def subscribed(self, oid: bytes, node: bytes) -> None:
        """The raylet of `node` pulls the object, and wants to hear of its copies. It may ask again."""
        entry = self.directory.find(oid)
        over = _no_copies(entry)
        if entry is None or over:
            self.out.append(News(oid, [node], over=over))
            return
        self.ended(oid, node)
        self._make_room()
        entry.more()    # when it is freed we hear of it
        places = entry.locations[-TOLD_MOST:]
        self.of.setdefault(oid, {})[node] = dict.fromkeys(places)
        self.count += 1
        self.out.append(News(oid, [node], added=places, is_nowhere=entry.state == PENDING))

    def ended(self, oid: bytes, node: bytes) -> None:
        """Its pull is over."""
        nodes = self.of.get(oid)
        if nodes is not None and node in nodes:
            del nodes[node]
            self.count -= 1
            if not nodes:
                del self.of[oid]

    def node_gone(self, node: bytes) -> None:
        """The whole node has ended, or has forgotten us."""
        for oid in list(self.of):
            self.ended(oid, node)

    def _make_room(self) -> None:
        while self.count >= SUBSCRIPTIONS_KEPT:
            oid, nodes = next(iter(self.of.items()))
            self.ended(oid, next(iter(nodes)))

    # ---- what

    def added(self, oid: bytes, node: bytes) -> None:
        """There is a copy on `node`."""
        told = []
        for subscriber, places in self.of.get(oid, {}).items():
            if node not in places and len(places) < TOLD_MOST:
                places[node] = None
                told.append(subscriber)
        if told:
            self.out.append(News(oid, told, added=[node]))

    def removed(self, entry: ObjectEntry, node: bytes) -> None:
        """There is no copy on `node` any more."""
        for subscriber, places in self.of.get(entry.id, {}).items():
            if node in places:
                del places[node]
                instead = [other for other in entry.locations if other not in places][-1:]
                places.update(dict.fromkeys(instead))
                self.out.append(News(entry.id, [subscriber], added=instead, removed=[node]))

    def is_nowhere(self, oid: bytes) -> None:
        """All copies are lost; what comes now is made anew."""
        nodes = self.of.get(oid, {})
        for places in nodes.values():
            places.clear()
        if nodes:
            self.out.append(News(oid, list(nodes), is_nowhere=True))

    def over(self, oid: bytes, why: str = "") -> None:
        """There will be no copy any more: it was freed, has failed, or is where no raylet has to fetch it."""
        nodes = self.of.pop(oid, None)
        if nodes is not None:
            self.count -= len(nodes)
            self.out.append(News(oid, list(nodes), over=why or _no_copies(self.directory.find(oid))))

    def check(self) -> None:
        """Every subscription is to an object that may have copies."""
        assert self.count == sum(map(len, self.of.values())) <= SUBSCRIPTIONS_KEPT, "subscriptions miscounted"
        for oid, nodes in self.of.items():
            entry = self.directory.find(oid)
            assert nodes and entry is not None and entry.state != FAILED, f"{oid.hex()} has no copies"
            for places in nodes.values():
                assert len(places) <= TOLD_MOST, oid.hex()
                assert all(place in entry.locations for place in places), oid.hex()


def _no_copies(entry: ObjectEntry | None) -> str:
    """Why nothing is to be told; "" when the object has copies, or may get some."""
    if entry is None or entry.owner is not None:
        return FREED
    if entry.state in (PENDING, STORED):
        return ""
    return "it has failed" if entry.state == FAILED else "its owner has the value itself"
