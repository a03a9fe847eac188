"""Publications of the GCS: channels, a cursor per channel, and slow subscribers.

A subscriber is a node: its raylet fans out to its workers and counts who wants what. It may
subscribe to one key of a channel or to all of it (key b""), and gets each publication once.
Cursors grow within a channel, also across restarts of the GCS (the epoch is their upper part).

Channels come in two kinds:
- *state* ("actor", "node", "job", "group", "worker"): a row by key; the latest replaces earlier
  ones, so for a subscriber that is slow or away one row per key is kept;
- *data* ("log", "error", anything else): every publication counts, `PENDING_DATA` are kept.
What exceeds the limits is dropped and the subscriber gets `resync`: it must ask for the state.

News that every node gets and that may come by the hundred (the ends of workers) is *gathered*: the
first goes out with the `tick` of its own turn, what follows within `GATHER_S` as one message for all
readers, encoded once. With many readers that time grows: they are told at a rate in bytes, as of views.
A subscription on the channel sends what has gathered first, so who joins later gets only what is
published later.

A subscriber is *held* while its link is down or has too much queued; the shell says so through
`Head.node_congested`. Pure; part of `Head`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from miniray._proto import gcs_pb2 as gcs
from miniray.core.desk import Desk
from miniray.core.packing import packed_publications
from miniray.core.views import MESSAGE_BYTES, URGENT_BYTES_PER_S

STATE_CHANNELS = {"actor": None, "node": None, "job": None, "group": None, "worker": None}

PENDING_STATES = 10_000
"""Keys kept for one held subscriber, per channel."""

PENDING_DATA = 1_000
"""Data publications kept for one held subscriber, per channel."""

GATHER_S = 0.05
"""Messages of one gathering channel are at least so far apart, and farther where many read it."""

GATHER_LIMIT = 500
"""Publications in one message; more go out before their time."""

_EPOCH_SHIFT = 32

Topic = tuple[str, bytes]


@dataclass(slots=True)
class _Held:
    """What one held subscriber will get from one channel."""

    states: dict[bytes, gcs.Publication] = field(default_factory=dict)
    data: deque[gcs.Publication] = field(default_factory=deque)
    overflowed: bool = False


@dataclass(slots=True)
class _Gathered:
    """What a gathering channel will tell next, and when."""

    due_at: float = 0.0
    waiting: list[gcs.Publication] = field(default_factory=list)


class PubSub:
    """Who subscribes to what, and what slow ones still have to get."""

    def __init__(self, desk: Desk, epoch: int) -> None:
        self._desk = desk
        self._first_cursor = epoch << _EPOCH_SHIFT
        self._cursors: dict[str, int] = {}
        self._subscribers: dict[Topic, dict[bytes, None]] = {}
        self._topics: dict[bytes, dict[Topic, None]] = {}
        self._held: dict[bytes, dict[str, _Held]] = {}
        self._gathered: dict[str, _Gathered] = {}

    def subscribed(self, node_id: bytes, channel: str, key: bytes, cursor: int) -> None:
        """The node wants the topic; `cursor` is the last it has seen, 0 if none.

        On a data channel, publications missed meanwhile are gone: it is told to resync.
        """
        self._send_gathered(channel)
        topic = (channel, key)
        self._subscribers.setdefault(topic, {})[node_id] = None
        self._topics.setdefault(node_id, {})[topic] = None
        if channel not in STATE_CHANNELS and 0 < cursor < self._cursors.get(channel, self._first_cursor):
            self._send(node_id, self._resync(channel, key))

    def unsubscribed(self, node_id: bytes, channel: str, key: bytes) -> None:
        """The node does not want the topic any more."""
        self._send_gathered(channel)
        self._drop(node_id, (channel, key))

    def _drop(self, node_id: bytes, topic: Topic) -> None:
        self._topics.get(node_id, {}).pop(topic, None)
        subscribers = self._subscribers.get(topic)
        if subscribers is not None:
            subscribers.pop(node_id, None)
            if not subscribers:
                del self._subscribers[topic]

    def node_gone(self, node_id: bytes) -> None:
        """Forget a subscriber that never returns."""
        for topic in list(self._topics.get(node_id, ())):
            self._drop(node_id, topic)
        self._topics.pop(node_id, None)
        self._held.pop(node_id, None)

    def published(self, channel: str, key: bytes, **body: Any) -> None:
        """Tell everybody who wants `key` of `channel`; `body` is one field of Publication."""
        wide, narrow = self._readers(channel, key)
        publication = self._next(channel, key, wide or narrow, body)
        if publication is not None:
            for node_id in (*wide, *narrow):
                self._send(node_id, publication)

    def _next(
        self, channel: str, key: bytes, readers: Collection[bytes], body: dict[str, Any]
    ) -> gcs.Publication | None:
        """The publication with the channel's next cursor, if anybody reads it."""
        cursor = self._cursors[channel] = self._cursors.get(channel, self._first_cursor) + 1
        return gcs.Publication(channel=channel, key=key, cursor=cursor, **body) if readers else None

    def _readers(self, channel: str, key: bytes) -> tuple[Collection[bytes], Collection[bytes]]:
        """Who wants all of the channel, and who besides them wants the key."""
        wide = self._subscribers.get((channel, b""), {})
        narrow = self._subscribers.get((channel, key), {}) if key else {}
        return wide, [node_id for node_id in narrow if node_id not in wide]

    def current(self, node_id: bytes, channel: str, key: bytes, **body: Any) -> None:
        """Tell one new subscriber the present state of one key."""
        cursor = self._cursors.get(channel, self._first_cursor)
        self._send(node_id, gcs.Publication(channel=channel, key=key, cursor=cursor, **body))

    # ---- news for everybody

    def gathered(self, now: float, channel: str, key: bytes, **body: Any) -> None:
        """Like `published`, with the next `tick`, and together with what comes shortly after another."""
        wide, narrow = self._readers(channel, key)
        publication = self._next(channel, key, wide or narrow, body)
        if publication is None:
            return
        gathered = self._gathered.setdefault(channel, _Gathered())
        if not gathered.waiting:
            gathered.due_at = max(now, gathered.due_at)
        gathered.waiting.append(publication)
        if len(gathered.waiting) >= GATHER_LIMIT:
            self._send_gathered(channel)

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        return min((g.due_at for g in self._gathered.values() if g.waiting), default=None)

    def tick(self, now: float) -> None:
        """Time has reached `now`: what has gathered long enough goes out."""
        for channel, gathered in self._gathered.items():
            if gathered.waiting and now >= gathered.due_at:
                sent = self._send_gathered(channel)
                gathered.due_at = now + max(GATHER_S, sent / URGENT_BYTES_PER_S)

    def _send_gathered(self, channel: str) -> int:
        """Everything to those who want all of the channel, single ones to those who want one key.

        Returns what telling the former cost in bytes."""
        gathered = self._gathered.get(channel)
        if gathered is None or not gathered.waiting:
            return 0
        waiting, gathered.waiting = gathered.waiting, []
        for publication in waiting:
            for node_id in self._readers(channel, publication.key)[1]:
                self._send(node_id, publication)
        message = packed_publications(waiting)
        wide = self._subscribers.get((channel, b""), {})
        for node_id in wide:
            if node_id not in self._held:
                self._desk.send(node_id, message)
                continue
            for publication in waiting:
                self._send(node_id, publication)
        return (message.ByteSize() + MESSAGE_BYTES) * len(wide)

    # ---- slow subscribers

    def held(self, node_id: bytes) -> None:
        """Keep publications for this node back from now on."""
        self._held.setdefault(node_id, {})

    def released(self, node_id: bytes) -> None:
        """The node can take publications again: those kept go out, state channels first."""
        for channel, kept in self._held.pop(node_id, {}).items():
            if kept.overflowed:
                self._send(node_id, self._resync(channel, b""))
            for publication in (*kept.states.values(), *kept.data):
                self._send(node_id, publication)

    def _send(self, node_id: bytes, publication: gcs.Publication) -> None:
        held = self._held.get(node_id)
        if held is None:
            self._desk.send(node_id, gcs.NodeMessage(publication=publication))
            return
        kept = held.get(publication.channel)
        if kept is None:
            kept = held[publication.channel] = _Held()
        if publication.channel in STATE_CHANNELS and not publication.resync:
            kept.states.pop(publication.key, None)
            kept.states[publication.key] = publication
            if len(kept.states) > PENDING_STATES:
                kept.states.clear()
                kept.overflowed = True
        else:
            kept.data.append(publication)
            if len(kept.data) > PENDING_DATA:
                kept.data.popleft()
                kept.overflowed = True

    def _resync(self, channel: str, key: bytes) -> gcs.Publication:
        cursor = self._cursors.get(channel, self._first_cursor)
        return gcs.Publication(channel=channel, key=key, cursor=cursor, resync=True)

    def check(self) -> None:
        """Assert that both indices of subscriptions agree and the limits hold."""
        pairs = {(topic, node) for topic, nodes in self._subscribers.items() for node in nodes}
        assert pairs == {(topic, node) for node, topics in self._topics.items() for topic in topics}
        for held in self._held.values():
            for kept in held.values():
                assert len(kept.states) <= PENDING_STATES and len(kept.data) <= PENDING_DATA
        assert all(len(gathered.waiting) < GATHER_LIMIT for gathered in self._gathered.values())

    def dump(self) -> dict[str, Any]:
        """Counts by channel."""
        counts: dict[str, int] = {}
        for (channel, _), nodes in self._subscribers.items():
            counts[channel] = counts.get(channel, 0) + len(nodes)
        return {"subscriptions": counts, "held": [node.hex()[:12] for node in self._held]}
