"""What a node's machines ask their shell to do.

`Send(HEAD, NodeMessage)` and `Send(node_id, PeerMessage)` come from `contract`; the effects here
concern the node itself: its clients (workers and drivers on the unix socket), its worker
processes, its store and its spill files. The shell carries them out in the order given; those
that take time answer with a stimulus of `core.node.Node`, named at each effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from miniray._proto import worker_pb2 as wire
from miniray.core import resources

STORE_FD = -1
"""In `ToClient.fd`: a duplicate of the store's descriptor."""


@dataclass(slots=True)
class ToClient:
    """Send a `ToWorker` to one client; `fd` travels along and is closed by the shell after."""

    worker_id: bytes
    message: wire.ToWorker
    fd: int | None = None


@dataclass(slots=True)
class CloseFd:
    """Close a descriptor that could not be passed on."""

    fd: int


@dataclass(slots=True)
class ConnectWorkers:
    """Dial the data port of a node for a worker there, and offer the connection to our client.

    No answer: where it does not succeed the relay goes on.
    """

    worker_id: bytes
    node_id: bytes
    target_worker_id: bytes


@dataclass(slots=True)
class DropClient:
    """Close a client's socket once what was sent before is written."""

    worker_id: bytes


@dataclass(slots=True)
class StartWorker:
    """Start a worker process; answered by `worker_registered` or `worker_start_failed`."""

    startup_token: bytes
    job_id: bytes
    runtime_env: str


@dataclass(slots=True)
class StopWorker:
    """End a worker process and all that it started: SIGTERM, or SIGKILL when `force`.

    Either `worker_id` or, before registration, `startup_token` names it.
    """

    worker_id: bytes = b""
    startup_token: bytes = b""
    force: bool = True


@dataclass(slots=True)
class SurveyStore:
    """Take stock of the store; answered by `store_surveyed`."""


@dataclass(slots=True)
class DeleteObjects:
    """Delete objects from the store (memory returns at the last unpin). No answer."""

    object_ids: list[bytes]


@dataclass(slots=True)
class SpillObjects:
    """Write sealed objects to one file and delete them from the store; `objects_spilled`."""

    batch: int
    object_ids: list[bytes]


@dataclass(slots=True)
class RestoreObject:
    """Read a spilled object back into the store; answered by `object_restored`."""

    object_id: bytes
    size: int


@dataclass(slots=True)
class DropSpilled:
    """Forget spilled copies; a file goes when its last object goes. No answer."""

    object_ids: list[bytes]


@dataclass(slots=True)
class StartFetch:
    """Copy an object from another node's store; answered by `fetch_ended`.

    Goes on where the last fetch of the object stopped; `fresh`: its bytes are of another copy, forget them.
    """

    object_id: bytes
    node_id: bytes
    fresh: bool = False


@dataclass(slots=True)
class StopFetch:
    """Abort a fetch, and drop what has come; `keep` it for the next fetch of the object. No answer."""

    object_id: bytes
    keep: bool = False


@dataclass(slots=True)
class ForgetPeer:
    """Another node is dead: drop the link to it and what was queued there. No answer."""

    node_id: bytes


@dataclass(slots=True)
class LookAtProcess:
    """See how a client is that does not answer; `process_seen`. `stack`: what it executes, too."""

    ticket: bytes
    worker_id: bytes
    pid: int
    stack: bool


@dataclass(slots=True)
class Notice:
    """A line for the node's log, at a level that people look at. No answer."""

    text: str


@dataclass(slots=True)
class StopNode:
    """The node has drained, or the GCS refused it: end the process."""

    reason: str
    failed: bool = False


@dataclass(slots=True)
class StoredObject:
    """One line of a store survey, oldest use first."""

    object_id: bytes
    size: int
    sealed: bool
    deleting: bool
    primary: bool
    pinned: bool
    creator: bytes = b""
    """Worker id of the client that made it, b"" when that is gone or the raylet itself."""
    readers: tuple[bytes, ...] = ()
    """Worker ids of the clients that pin it."""


@dataclass(slots=True)
class Survey:
    """The answer to `SurveyStore`."""

    capacity: int
    used: int
    largest_free: int
    objects: list[StoredObject] = field(default_factory=list)


def to_client(worker_id: bytes, fd: int | None = None, **body: Any) -> ToClient:
    """`ToClient` from one field of `ToWorker`, given by name."""
    return ToClient(worker_id, wire.ToWorker(**body), fd)


def slots_of(allocation: resources.Allocation) -> list[wire.ResourceSlot]:
    """The accelerators of an allocation, under their plain names, as workers are told."""
    return [wire.ResourceSlot(resource=resources.base_name(name), index=index, amount=amount)
            for name, index, amount in allocation.slots]
