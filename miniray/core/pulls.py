"""One pull: an object that clients of this node wait for, and where it may come from.

Pure; `core.transfer` has all of them and decides, `core.lookout` hears of further places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2

QUEUED = "queued"
FETCHING = "fetching"
RESTORING = "restoring"
MAKING_ROOM = "making room"
BACKING_OFF = "backing off"

Waiter = tuple[bytes, int]
TAKE_OVER = -1
"""In place of a request id: the waiter is a node that leaves."""


@dataclass(slots=True)
class Pull:
    """One object that clients of this node wait for."""

    object_id: bytes
    order: int
    owner: common.Address
    size: int
    waiters: dict[Waiter, int] = field(default_factory=dict)
    """(client, request id), or (node, TAKE_OVER) -> priority."""
    sources: dict[bytes, None] = field(default_factory=dict)
    failed: dict[bytes, str] = field(default_factory=dict)
    unreached: dict[bytes, float] = field(default_factory=dict)
    """Living nodes that did not answer, and since when."""
    not_before: dict[bytes, float] = field(default_factory=dict)
    """Sources that are given some time."""
    refusals: int = 0
    """How often a source was busy."""
    kin: dict[bytes, int] = field(default_factory=dict)
    """Nodes with the same number have copies of the same bytes."""
    kept: int | None = None
    """Some bytes have come, from nodes with this number."""
    kins: int = 0
    """Numbers given out."""
    state: str = QUEUED
    source: bytes = b""
    is_watching: bool = False
    """Its owner was asked for news of copies."""
    has_heard: bool = False
    """And has answered."""
    places: dict[bytes, None] = field(default_factory=dict)
    """Nodes that have the whole of it, by the owner's news."""
    come: int = 0
    """Bytes that had come when a fetch was last looked at."""
    come_at: float = 0.0
    """When there were more than before."""
    stranded: tuple[float, int] | None = None
    """Since when no source has had all of it, with how many bytes that had come by then."""
    look_at: float = 0.0
    """When the fetch is looked at again."""

    @property
    def priority(self) -> int:
        return min(self.waiters.values(), default=worker_pb2.PullRequest.ARGUMENT)

    @property
    def retry_at(self) -> float:
        """When a source may be asked again, if all are given time."""
        return min(self.not_before[node_id] for node_id in self.sources)

    def name(self, node_ids: Iterable[bytes]) -> None:
        """Nodes that somebody who knows has named together."""
        named = list(node_ids)
        number = next((self.kin[n] for n in named if n in self.kin), -1)
        if number < 0:
            number, self.kins = self.kins, self.kins + 1
        for node_id in named:
            self.kin[node_id] = number
            self.sources.setdefault(node_id)

    def ready(self, now: float) -> list[bytes]:
        """Sources that may be asked now."""
        return [node_id for node_id in self.sources if self.not_before.get(node_id, now) <= now]

    def drop(self, node_id: bytes, why: str) -> None:
        """It is no source any more."""
        self.sources.pop(node_id, None)
        self.not_before.pop(node_id, None)
        self.kin.pop(node_id, None)
        self.places.pop(node_id, None)
        self.failed[node_id] = why
