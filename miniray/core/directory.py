"""Objects as one process sees them: the records behind its ObjectRefs.

Every object that a process owns, borrows or waits for has one `ObjectEntry` in its directory.
For an owned object the entry is the truth of the whole cluster: its value or its locations, who
holds it, which task makes it. For a borrowed object it is a cache of what the owner said.

::

    PENDING ──▶ INLINE   value: packed bytes, in this process
       │  └───▶ STORED   value: None; size and locations (node ids) of copies in stores
       │  └───▶ FAILED   value: an error in the form the shell gave (opaque here)
       └─ UNKNOWN: borrowed and the owner has not been asked yet
    any ──▶ FREED when nothing can reach it any more
    any ──▶ ENDED when this process has left the cluster: never ready, and nobody can be asked

Pure and unlocked: the worker's one lock guards it. Entries are the hottest records of the
system, so rare fields (locations, borrowers, contents) live in a dict made on demand.
"""

from __future__ import annotations

from typing import Any

from miniray._native import EntryBase

PENDING, INLINE, STORED, FAILED, FREED, UNKNOWN, ENDED = range(7)

STATE_NAMES = ("PENDING", "INLINE", "STORED", "FAILED", "FREED", "UNKNOWN", "ENDED")

Address = tuple[bytes, bytes]
"""(node id, worker id)."""


class ObjectEntry(EntryBase):
    """One object: `ObjectEntry(id, owner=None, state=PENDING)`.

    `owner` is None for an object this process owns, else the owner's address.
    `local` counts live ObjectRefs of this process (they do it themselves); `pins` counts tasks in
    flight that take the object and values that contain it; `task` is the record that makes it, kept
    for lineage.
    `waiters` are what `complete` hands back: tasks, getters, remote askers (opaque here).
    """

    __slots__ = ()
    owner: Address | None
    waiters: list[Any] | None
    rare: Rare | None

    def __repr__(self) -> str:
        return f"<object {self.id.hex()} {STATE_NAMES[self.state]} local={self.local} pins={self.pins}>"

    @property
    def ready(self) -> bool:
        """True once a value, a location or an error is known."""
        return INLINE <= self.state <= FREED

    @property
    def locations(self) -> list[bytes]:
        """Node ids whose stores hold a copy, oldest first."""
        return list(self.rare.locations) if self.rare else []

    def more(self) -> Rare:
        """The rare fields, made at first use."""
        if self.rare is None:
            self.rare = Rare()
        return self.rare


class Rare:
    """Fields that few objects need."""

    __slots__ = ("locations", "tried", "borrowers", "contents", "registered", "lineage", "stands_for")

    def __init__(self) -> None:
        self.locations: dict[bytes, None] = {}
        self.tried: dict[bytes, None] = {}
        """Nodes where an attempt that ended badly may have left a copy: freed there as well."""
        self.borrowers: dict[Address, int] = {}
        """At the owner: how often each process was entered as a holder."""
        self.contents: list[ObjectEntry] = []
        """The references inside the value; they live as long as it does."""
        self.registered = False
        """Borrowed: this process is in the owner's books."""
        self.lineage = 0
        """Finished tasks that took the object and may run again (`core.lineage`)."""
        self.stands_for: Any = None
        """The actor whose handles carry this object."""


def freed(oid: bytes) -> ObjectEntry:
    """An entry for an object that nothing can reach any more."""
    entry = ObjectEntry(oid)
    entry.state = FREED
    return entry


def attempt_ended(returns: list[ObjectEntry], node: bytes) -> None:
    """A task ended badly on `node`: it may have left copies of its results in the store there."""
    for entry in returns:
        if entry.state != FREED:
            entry.more().tried[node] = None


class Directory:
    """All entries of one process, by object id."""

    def __init__(self) -> None:
        self.objects: dict[bytes, ObjectEntry] = {}

    def __len__(self) -> int:
        return len(self.objects)

    def find(self, oid: bytes) -> ObjectEntry | None:
        """The entry of `oid`, or None."""
        return self.objects.get(oid)

    def own(self, oid: bytes) -> ObjectEntry:
        """A new entry for an object that this process owns."""
        entry = self.objects[oid] = ObjectEntry(oid)
        return entry

    def know(self, oid: bytes, owner: Address | None) -> ObjectEntry:
        """The entry of an object met in a message; made as borrowed when it is new."""
        entry = self.objects.get(oid)
        if entry is None:
            state = PENDING if owner is None else UNKNOWN
            entry = self.objects[oid] = ObjectEntry(oid, owner, state)
        return entry

    def forget(self, entry: ObjectEntry) -> None:
        """The object is unreachable from here."""
        entry.state = FREED
        self.objects.pop(entry.id, None)

    def complete(self, entry: ObjectEntry, state: int, value: Any, size: int = 0) -> list[Any]:
        """The object got its value, location or error. Returns those who waited for it.

        A second completion is ignored: a finished reference gives one value for ever. (A lost
        STORED object is `reopen`ed before its task runs anew.)
        """
        if INLINE <= entry.state <= FREED:
            return []
        entry.state = state
        entry.value = value
        entry.size = size
        waiters = entry.waiters
        entry.waiters = None
        return waiters or []

    def end(self) -> None:
        """This process leaves the cluster: references that outlive that mean nothing to its next session."""
        for entry in self.objects.values():
            entry.state = ENDED

    def reopen(self, entry: ObjectEntry) -> None:
        """All copies are lost: the object is pending again until its task has run once more."""
        assert entry.state == STORED, entry
        entry.state = PENDING
        entry.value = None
        if entry.rare:
            entry.rare.locations.clear()

    def await_(self, entry: ObjectEntry, waiter: Any) -> None:
        """`waiter` is handed back by the `complete` of this entry."""
        assert not entry.ready, entry
        if entry.waiters is None:
            entry.waiters = [waiter]
        else:
            entry.waiters.append(waiter)

    def check(self) -> None:
        """Invariants of every entry; AssertionError names the object."""
        for oid, entry in self.objects.items():
            assert entry.id == oid and entry.state != FREED, entry
            assert entry.local >= 0 and entry.pins >= 0, entry
            assert not (entry.ready and entry.waiters), entry
            if entry.state == STORED and entry.owner is None:
                assert entry.locations, f"{entry} is nowhere"
