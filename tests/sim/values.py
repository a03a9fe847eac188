"""What programs hold and send: values, references, actor handles, errors.

A value is not bytes but a name (`tag`, the id of the object it was made for), a size and the
references inside it. So every reader can tell whether it got the value that was meant for it.
Counting is explicit: a `Ref` is alive until `drop`, as an ObjectRef is until its last name dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from miniray.core.directory import Address, ObjectEntry

if TYPE_CHECKING:
    from .worker import SimWorker

INLINE_LIMIT = 100 * 1024


@dataclass(frozen=True)
class Inside:
    """A reference, or with `actor` a handle, inside a value or an argument, as it travels."""

    oid: bytes
    owner: Address
    actor: bytes = b""


@dataclass(frozen=True)
class Value:
    """A serialized value."""

    tag: bytes
    size: int = 100
    inside: tuple[Inside, ...] = ()
    note: Any = None
    """What else the reader compares: an actor's counter, …"""

    def __len__(self) -> int:
        """As of bytes."""
        return self.size


@dataclass(frozen=True)
class UserError:
    """What user code raised, as it travels."""

    tag: bytes
    text: str


class Raised(Exception):
    """User code raises."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True)
class Failed:
    """What `get` gives for a failed object: a `UserError` or a `Failure`."""

    error: Any

    @property
    def text(self) -> str:
        """For people."""
        error = self.error
        return error.text if isinstance(error, UserError) else f"{error.kind}: {error.message}"


class Ref:
    """One live ObjectRef of one process."""

    __slots__ = ("actor", "alive", "entry", "worker")

    def __init__(self, worker: SimWorker, entry: ObjectEntry, actor: bytes = b"",
                 source: Address | None = None) -> None:
        entry.local += 1
        self.worker = worker
        self.entry = entry
        self.actor = actor
        """A handle of this actor: the reference is the one that handles carry."""
        self.alive = True
        worker.cluster.oracle.ref_added(worker, entry.id, source)

    @property
    def id(self) -> bytes:
        """The object's id."""
        return self.entry.id

    def inside(self) -> Inside:
        """How it travels."""
        return Inside(self.entry.id, self.entry.owner or self.worker.address, self.actor)

    def drop(self) -> None:
        """The reference dies."""
        if self.alive:
            self.alive = False
            self.worker.cluster.oracle.ref_dropped(self.worker, self.entry.id)
            self.worker.released(self.entry)


@dataclass(frozen=True)
class Named:
    """A handle of an actor that was found by its name: it holds nothing."""

    actor: bytes


class Loaded:
    """A value as a reader has it: the references inside are alive in its process."""

    __slots__ = ("refs", "value")

    def __init__(self, value: Value, refs: list[Ref]) -> None:
        self.value = value
        self.refs = refs


class Arguments:
    """Encoded arguments of a call: `slots` are resolved to values, `nested` stay references."""

    __slots__ = ("body", "held", "nested", "slots")

    def __init__(self, body: Any, slots: list[ObjectEntry], nested: list[Ref]) -> None:
        self.body = body
        self.slots = slots
        self.nested = tuple(ref.inside() for ref in nested)
        self.held = slots + [ref.entry for ref in nested]
