"""What the machines of the GCS share: one outbox, the clock's offset, stories, refusals.

`Head` owns the desk and hands it to members, jobs, actors, groups, keys and subscriptions. Rows
go through `persist` before anything that acknowledges them is sent: the shell keeps that order.

Tables (all values are protobuf unless said otherwise)::

    meta        "cluster_id" raw, "next_job" u64     node        NodeInfo by node id
    job         JobInfo by job id                    actor       ActorInfo without creation_task
    actor_task  creation_task (opaque) by actor id   group       PlacementGroupInfo by group id
    kv          namespace length, namespace, key     reply       ControlReply, see core/head.py
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.contract import Persist, Send, Stories


class Refusal(Exception):
    """A request that cannot be granted; becomes the reply's failure."""

    def __init__(self, kind: pb.ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(slots=True)
class Answer:
    """The reply to a request that came by itself (unary), named by the caller's ticket."""

    ticket: int
    reply: gcs.ControlReply


@dataclass(slots=True)
class WrongTables:
    """A node belongs to a cluster whose tables these are not: the head must end before it answers anybody."""

    node_id: bytes
    hostname: str


class Desk:
    """The outbox of the GCS and the small things every machine of it needs."""

    __slots__ = ("out", "rng", "stories", "wall_offset")

    def __init__(self, rng: Random, wall_offset: float) -> None:
        """`wall_offset`: seconds to add to `now` to get seconds since the epoch."""
        self.out: list[Any] = []
        self.rng = rng
        self.wall_offset = wall_offset
        self.stories = Stories()

    def wall(self, now: float) -> float:
        """`now` as seconds since the epoch."""
        return now + self.wall_offset

    def persist(self, table: str, key: bytes, value: bytes | None) -> None:
        """Write (or, with None, delete) one row before any later effect."""
        self.out.append(Persist(table, key, value))

    def send(self, node_id: bytes, message: gcs.NodeMessage) -> None:
        """One message to a raylet."""
        self.out.append(Send(node_id, message))

    def note(self, now: float, key: bytes, text: str) -> None:
        """One line in the story of `key`."""
        self.stories.note(now, key, text)


def failure(kind: pb.ErrorKind, message: str, **details: Any) -> pb.Failure:
    """A Failure row; `details` are its other fields."""
    return pb.Failure(kind=kind, message=message, **details)


def short(identifier: bytes) -> str:
    """The first digits of an id, as people see it."""
    return identifier.hex()[:12]
