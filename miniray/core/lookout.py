"""News of further copies, for pulls that do not get on.

::

    fetching for `WATCH_AFTER_S`, or its source silent, or busy again and again
        └─▶ WatchCopies ─▶ the object's owner ─▶ CopiesNews: sources come and go
              ends with the pull: by the news of our own copy, or by WatchCopies(ends)

Most pulls are over before, and cost their owner nothing but the news of the copy. A fetch from which nothing
has come for `STALLED_S` goes on from another node, if the owner says of both that they have the whole object.
(Who passes on what it does not have yet may stand still because of those before it: that is waited for.)
Two that wait for one another's rest wait in vain, though: a pull that has no other sources is given up when
nothing has come for `STRANDED_S`, so that the owner hears of the loss.

Pure; part of `core.transfer.Transfer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from miniray._proto import worker_pb2
from miniray.core.pulls import FETCHING, Pull
from miniray.core.relay import Relay

WATCH_AFTER_S = 1.0
LOOK_EVERY_S = 1.0
STALLED_S = 5.0
STRANDED_S = 10.0


@dataclass(slots=True)
class Lookout:
    """See the module head. `peers` are the nodes that live."""

    node_id: bytes
    relay: Relay
    peers: dict[bytes, Any] = field(default_factory=dict)

    def watch(self, pull: Pull) -> None:
        """Have the owner tell us about copies, unless it does already or cannot be reached any more."""
        owner = pull.owner
        if pull.is_watching or not owner.worker_id:
            return
        if not self._is_dead(owner.node_id):
            pull.is_watching, pull.has_heard = True, False
            self._tell(pull)

    def leave(self, pull: Pull) -> None:
        """The pull has ended, and the owner does not hear of it otherwise."""
        if pull.is_watching:
            pull.is_watching = False
            self._tell(pull, ends=True)

    def _tell(self, pull: Pull, ends: bool = False) -> None:
        self.relay.copies_watched(worker_pb2.WatchCopies(
            object_id=pull.object_id, owner=pull.owner, node_id=self.node_id, ends=ends))

    def heard(self, pull: Pull, news: worker_pb2.CopiesNews) -> None:
        """Change the pull's sources; the one that it reads from now is left to itself."""
        gone = list(news.removed)
        if news.is_nowhere:
            gone = list(pull.sources)
            pull.places.clear()
        for node_id in gone:
            pull.places.pop(node_id, None)
            is_read = pull.state == FETCHING and pull.source == node_id
            if node_id in pull.sources and not is_read:
                pull.drop(node_id, "its copy is gone, says the owner")
        is_new = pull.has_heard     # the first answer may tell of copies that we have tried in vain
        pull.has_heard = True
        for node_id in news.added:
            if is_new:
                pull.failed.pop(node_id, None)
            if node_id not in pull.failed:
                pull.places[node_id] = None
        pull.name(pull.places)

    def is_stranded(self, now: float, pull: Pull, come: int) -> bool:
        """All sources wait for the rest as well, by all that the owner says, and for long; `come` bytes are
        here."""
        is_told = pull.has_heard or self._is_dead(pull.owner.node_id)
        if not is_told or any(node_id in pull.places for node_id in pull.sources):
            pull.stranded = None
        elif pull.stranded is None or pull.stranded[1] != come:
            pull.stranded = (now, come)
        return pull.stranded is not None and now >= pull.stranded[0] + STRANDED_S

    def _is_dead(self, node_id: bytes) -> bool:
        return node_id != self.node_id and node_id not in self.peers

    # ---- fetches that take long ----

    def fetch_began(self, now: float, pull: Pull, come: int) -> None:
        """It begins, or goes on elsewhere, with so many bytes."""
        pull.come, pull.come_at, pull.look_at = come, now, now + WATCH_AFTER_S

    def look(self, now: float, pull: Pull, come: int) -> None:
        """So many bytes of a fetch are there now."""
        if come != pull.come:
            pull.come, pull.come_at = come, now
        pull.look_at = now + LOOK_EVERY_S
        self.watch(pull)

    def has_stalled(self, now: float, pull: Pull) -> bool:
        """Nothing comes from a source that should have all, and there is another one to go on from."""
        if now < pull.come_at + STALLED_S or pull.source not in pull.places:
            return False
        return any(node_id in pull.places for node_id in pull.ready(now) if node_id != pull.source)
