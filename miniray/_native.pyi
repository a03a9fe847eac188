"""Contracts of the native module: shared-memory store, channels, references, ids.

Object ids are `bytes` of 28; any other length raises ValueError. Every call on a Store, Mailbox or
Channel in a forked child of the process that opened it raises RuntimeError (attach anew there), and
objects inherited by a child release nothing when they die in it.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypedDict, TypeVar, final

from typing_extensions import Buffer as _Buffer
from typing_extensions import Self

_R = TypeVar("_R", bound="ObjectRefBase")

class StoreFull(Exception):
    """No free block is large enough, or the object table is full."""

    needed: int
    """Bytes of the object; above `capacity` it can never fit."""
    capacity: int

class ObjectExists(Exception):
    """A live object (sealed or not) has this id."""

class StoreBusy(TimeoutError):
    """The store's mutex was not to be had within the lock timeout: its holder is stopped."""

    holder: int
    """Client slot of the holder, -1 if it let go meanwhile."""
    pid: int

class _Reaped(TypedDict):
    pins: int
    aborted: list[bytes]

class _Stats(TypedDict):
    capacity: int
    used: int  # bytes of allocated blocks, their 64-byte headers included
    free: int
    objects: int  # deleted ones that are still pinned included
    largest_free: int
    cold: int  # free bytes without memory behind them (an estimate)
    pinned_bytes: int
    rebuilds: int  # how often a client died inside the mutex
    clients: int

@final
class Buffer(_Buffer):
    """A read-only view on one object. The pin ends when the last memoryview or array on it dies."""

    nbytes: int
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Store:
    """A node's object store, seen by one client. Methods may be called from any thread.

    Calls that change the heap take a mutex in shared memory; none waits for it with the GIL held.
    A client that dies inside it harms nobody: the next one rebuilds the heap.
    """

    fd: int
    """The segment's memfd, to be passed to clients. Closed with the store."""
    capacity: int
    client_slot: int

    @staticmethod
    def create(capacity: int, *, slots: int = 0, max_clients: int = 1024) -> Store:
        """A new segment; this process becomes client 0. `slots` bounds the objects (0: by capacity,
        at least 65,536). No memory is used until it is written."""

    @staticmethod
    def attach(fd: int, client_slot: int) -> Store:
        """Joins as the client that `open_client` reserved; the caller keeps `fd`. OSError EBUSY: the
        slot is not reserved; EINVAL or EPERM: no segment of this version."""

    def open_client(self) -> int:
        """Raylet: reserves a client record. RuntimeError when all are taken."""

    def reap_client(self, slot: int) -> _Reaped:
        """Raylet, once the process is dead: gives its pins and unsealed objects back, and its record.
        Idempotent; takes the mutex in steps and runs without the GIL."""

    def put(self, oid: bytes, parts: Sequence[_Buffer], *, primary: bool = True) -> int:
        """Stores the parts one behind the other and seals; returns the size in bytes. The GIL is
        released from 1 MiB, several threads copy from 16 MiB. Raises StoreFull, ObjectExists."""

    def create_object(self, oid: bytes, size: int, *, primary: bool = True) -> memoryview:
        """A writable view on a new unsealed object, to be sealed or aborted by this client. The
        object is pinned while the view lives; nobody revokes the view at seal()."""

    def seal(self, oid: bytes) -> None:
        """Makes an object of create_object visible. KeyError: absent; ValueError: not this client's."""

    def abort(self, oid: bytes) -> None:
        """Drops an unsealed object; its memory returns when the view of create_object dies."""

    def get(self, oid: bytes) -> Buffer | None:
        """Pins a sealed object; None if there is none. Data is 64-byte aligned."""

    def contains(self, oid: bytes) -> bool:
        """Whether a sealed object has this id."""

    def wait(self, oids: Sequence[bytes], num: int, timeout_s: float | None) -> list[bytes]:
        """Sleeps, without the GIL, until `num` of the ids are sealed or the time is over; returns all
        that are sealed, in the order given. Signal handlers run."""

    def delete(self, oid: bytes) -> bool:
        """Makes a sealed object invisible at once; its memory returns at the last unpin. False: none."""

    def mark_secondary(self, oid: bytes) -> None: ...
    def is_primary(self, oid: bytes) -> bool: ...
    def size_of(self, oid: bytes) -> int | None: ...
    def pins(self, oid: bytes) -> list[int]:
        """Client slots that pin the object."""

    def list(self) -> list[tuple[bytes, int, str, int, bool]]:
        """(id, size, "unsealed" | "sealed" | "deleting", creator's slot, primary), least recently
        put or got first. An id may appear twice while an older object of it is being deleted."""

    def stats(self) -> _Stats: ...
    def set_lock_timeout(self, seconds: float | None) -> None:
        """From now on calls of this client raise StoreBusy rather than wait longer for the mutex."""

    def prefault(self, bytes: int) -> int:
        """Puts memory behind up to `bytes` of the free top of the heap, without the GIL; returns how
        many were warmed."""

    def punch(self, keep: int = 0) -> int:
        """Gives memory behind free blocks back to the system, all but `keep` bytes; returns how many."""

    def check(self) -> None:
        """Verifies heap and table; AssertionError names what is wrong."""

    def close(self) -> None:
        """Ends this client's calls. The mapping stays as long as a view lives."""

_OwnerT = TypeVar("_OwnerT")

@final
class Channel(Generic[_OwnerT]):
    """One side of a frame connection to another process of the node.

    Closing is seen by the peer after what was sent before. A frame arrives whole or not at all.
    """

    fd: int
    """The creator's memfd, to be passed to the peer; -1 once the peer has attached, and for the peer."""
    attached: bool
    """The peer has attached. Frames sent before wait for it."""
    peer_closed: bool
    closed: bool
    """Closed here, or by a peer whose frames made no sense."""
    max_frame: int
    """Bytes of the longest frame; a longer message is sent as fragments with `more=True`."""
    owner: _OwnerT

    def send(self, frame: _Buffer, more: bool = False, quiet: bool = False) -> bool:
        """Publishes a frame and wakes the peer if it sleeps. False: no room, nothing was written, and
        a later poll gives (owner, None). With `more` the next frame continues this one; `quiet` leaves
        it to ring() to tell the peer. BrokenPipeError: either side has closed; ValueError: longer
        than `max_frame`."""

    def ring(self) -> None:
        """Tells the peer of quiet sends. Does nothing on a closed channel."""

    def look(self) -> None:
        """Makes the next poll look at this channel: its peer may have died between sending and
        ringing. Does nothing on a closed channel."""

    def send_many(self, frames: Sequence[_Buffer]) -> int:
        """As send for each, with one wake-up; returns how many were written."""

    def close(self) -> None: ...

@final
class Mailbox:
    """A process's doorbell and its channels, in the client record of `store`.

    A client has one mailbox at a time: a second raises RuntimeError. One thread at a time may poll or wait.
    """

    def __init__(self, store: Store) -> None: ...
    def create_channel(self, owner: _OwnerT, capacity: int = 32768) -> Channel[_OwnerT]:
        """A channel with `capacity` bytes each way (rounded up to a power of two)."""

    def attach_channel(self, owner: _OwnerT, fd: int) -> Channel[_OwnerT]:
        """The other side of a channel, once; the caller keeps and closes `fd`. ValueError: no
        channel, or attached already."""

    def poll(self, limit: int = 512, spin_us: int = 0) -> list[tuple[Any, bytes | None]]:
        """(owner, message) of up to `limit` messages that have arrived, in order per channel, and
        (owner, None) where a refused send may be tried again. Never sleeps; spins for `spin_us`, without
        the GIL, while there is nothing and nobody calls wake() (which wait() will hear of, too)."""

    def wait(self, timeout_s: float | None, spin_us: int) -> bool:
        """Spins for `spin_us`, then sleeps, without the GIL, until a poll may return something or
        wake() was called. False: the time is over. May return True with nothing to poll."""

    def wake(self) -> None:
        """Makes wait() return, now or at its next call. From any thread of this process."""

    def close(self) -> None:
        """Closes all channels."""

class EntryBase:
    """The storage of `core.directory.ObjectEntry`: EntryBase(id, owner=None, state=0).

    Not tracked by the collector.
    """

    id: bytes
    state: int
    value: Any
    size: int
    owner: Any
    local: int
    pins: int
    waiters: Any
    task: Any
    rare: Any

    def __new__(cls, id: bytes, owner: Any = None, state: int = 0, /) -> Self: ...

class RecordBase:
    """The storage of `core.tasks.TaskRecord`. Not tracked by the collector before track()."""

    id: bytes
    template: Any
    arguments: Any
    dependencies: list[Any] | None
    held: list[Any] | None
    returns: list[Any]
    unresolved: int
    state: int
    done: bool
    attempt: int
    retries_left: int
    lane: Any
    remote: Any
    call: int
    client: Any
    parent: bytes
    name: str
    submitted_at: float
    pushed_at: float
    ended_at: float
    error: Any
    cancel_requested: bool
    stream: Any

    def __new__(
        cls, id: bytes, template: Any, arguments: Any, dependencies: list[Any] | None, held: list[Any] | None,
        returns: list[Any], retries: int, lane: Any, client: Any, parent: bytes, now: float, /,
    ) -> Self: ...
    def track(self) -> None:
        """Part of a cycle that only the collector can find: tell it of this record."""

@final
class RecordMaker:
    """Makes what a call needs in one step."""

    def __init__(
        self, objects: dict[bytes, Any], entry: type[EntryBase], record: type[RecordBase],
        ref: type[ObjectRefBase], /,
    ) -> None: ...
    def task(
        self, id: bytes, template: Any, arguments: Any, dependencies: list[Any] | None,
        held: list[Any] | None, retries: int, lane: Any, client: Any, parent: bytes, now: float, /,
    ) -> tuple[Any, Any]:
        """The record of a task with one return, whose entry is in `objects` now, and its reference."""
    def known(self, id: bytes, /) -> Any:
        """A new reference to an object whose entry is in `objects`; None when there is none."""
    def known_all(self, table: bytes, stride: int, /) -> tuple[list[Any], list[int]]:
        """The same for ids that stand `stride` bytes apart: (references, where there is none)."""

class ObjectRefBase:
    """A reference to an object: id, owner and the process's record of it.

    Not tracked by the collector; a subclass stays so with `__slots__ = ()`. An `entry` that is an
    EntryBase has its living references counted in `local`. When the last one dies, or any one with
    another kind of entry, the entry moves to the list that drain_released() empties (unless it is
    None, or the process was forked since). Equal and hashed by id; weak references work.
    """

    def __new__(cls, id: bytes, owner: object = None, entry: object = None) -> Self: ...
    @classmethod
    def _make(cls, id: bytes, owner: object, entry: object, /) -> Self:
        """The same as calling the class, a third faster."""

    @property
    def entry(self) -> Any: ...
    @property
    def owner_address(self) -> Any: ...
    def binary(self) -> bytes: ...
    def hex(self) -> str: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...

class BoundBase:
    """A method of one actor: BoundBase(actor, info)."""

    _actor: Any
    _info: Any

    def __new__(cls, actor: Any, info: Any, /) -> Self: ...

@final
class Binder:
    """A descriptor: found on an instance it is `cls(instance, info)`, made without Python code."""

    def __new__(cls, bound: type[BoundBase], info: Any, /) -> Self: ...

def push_frame(
    flags: int, attempt: int, call: int, number: int, returns: int, task_id: bytes, payload: bytes, /
) -> bytes:
    """The PUSH frame of a call whose arguments are plain bytes. ValueError for what does not fit a field."""

def reply_frame(call: int, spent_us: int, payload: bytes, /) -> bytes:
    """The REPLY_ONE frame: one small value without references."""

def reply_in(frame: bytes, /) -> tuple[int, int, bytes]:
    """(call, spent_us, payload) of a REPLY_ONE frame."""

def drain_released(limit: int = 4096) -> list[Any]:
    """Entries whose last reference died since the last call, oldest first, at most `limit`."""

def released_pending() -> bool:
    """Whether drain_released would return something."""

def first_pending(refs: Sequence[ObjectRefBase], start: int = 0, /) -> int:
    """Where the first reference from `start` on stands whose object is not ready; -1: all are."""

def first_failed(refs: Sequence[ObjectRefBase], /) -> int:
    """Where the first reference stands whose object is an error; -1: there is none."""

def unknown(refs: Sequence[ObjectRefBase], /) -> list[Any]:
    """The entries whose owner nobody has asked yet, or of a session that has ended."""

def count_ready(refs: Sequence[ObjectRefBase], enough: int, /) -> int:
    """How many of the objects are ready; stops counting at `enough`."""

def split_ready(refs: Sequence[_R], limit: int, /) -> tuple[list[_R], list[_R]]:
    """(the first `limit` references that are ready, all others), each in order."""

def check_refs(items: list[Any], cls: type, /) -> bool | None:
    """Whether all items refer to different objects; None when one is no `cls` with an entry."""

@final
class IdGenerator:
    """TaskIDs: 5-byte prefix + 3-byte counter + 16-byte suffix (actor, or "no actor" and job)."""

    def __init__(self, prefix5: bytes, suffix16: bytes) -> None: ...
    def next(self, suffix16: bytes | None = None, /) -> bytes:
        """The next id (24 bytes), with another suffix if one is given.

        OverflowError after 16,777,216 of them: take a new prefix.
        """

def fork_generation() -> int:
    """Grows by one in a forked child."""

def memfd_create(name: str, size: int) -> int:
    """A close-on-exec memfd of `size` zeros, sealed against shrinking and growing."""

def set_pdeathsig(sig: int) -> None:
    """`sig` is sent to this process when the parent *thread* that forked it ends (0: none)."""

def set_subreaper(on: bool = True) -> None:
    """Orphaned descendants become children of this process."""

def set_process_title(title: str) -> None:
    """The command line that others see of this process, cut to the room its arguments had."""

def set_process_name(name: str) -> None:
    """The name shown by ps and top (15 bytes)."""
