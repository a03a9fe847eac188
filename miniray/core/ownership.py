"""Distributed reference counting: an object lives while any process can reach it.

The owner frees an object when its local references, its pins (tasks in flight that take it,
values that contain it) and its borrowers are all gone. A process that was handed somebody
else's reference is a *borrower*; three rules keep the owner's books right without a global
count (after Ray's ownership paper, NSDI'21, simplified by FIFO channels):

1. The sender of a reference holds its own until the receiver is in the owner's books.
   For task arguments: until the task's reply.
2. A reply names the argument references that the worker still holds (*retained*). The caller
   enters the worker as borrower if it owns the object. If a third process owns it, the worker
   has told that owner itself and waited for the answer before it replied.
3. Who returns a value that contains references enters the caller as borrower with their owner
   before the reply leaves.

The books count: a process may be entered several times (each value it is sent counts once). It
gives all but one back at once (`entered`), and the last when it lets go. A dead borrower is
struck out; so that the owner hears of its death, each is watched (whoever was *introduced* has no
channel to its owner). Whoever enters somebody may die before its value gets there; so the owner
tells the one that was entered, who gives back what never came (`introduced`). Pure. Effects:
`Free`, `BorrowAdd`, `BorrowDrop`, `Watch`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .directory import ENDED, FREED, PENDING, Address, Directory, ObjectEntry
from .lineage import Lineage


@dataclass(slots=True)
class Free:
    """Nothing can reach this owned object: delete its copies on `nodes`."""

    object_id: bytes
    nodes: list[bytes]


@dataclass(slots=True)
class BorrowAdd:
    """Tell `owner` that `borrower` holds the object; it answers with `borrow_acknowledged`."""

    owner: Address
    object_id: bytes
    borrower: Address


@dataclass(slots=True)
class BorrowDrop:
    """Tell `owner` that this process lets go of the object."""

    owner: Address
    object_id: bytes


@dataclass(slots=True)
class Watch:
    """This process must hear of the end of `borrower`: `worker_gone`, at once if it has ended."""

    borrower: Address


class Ownership:
    """The reference counts of one process; shares its directory and its outbox."""

    def __init__(self, me: Address, directory: Directory, lineage: Lineage, out: list[Any]) -> None:
        self.me = me
        self.directory = directory
        self.lineage = lineage
        lineage.consider = self.consider
        self.out = out
        self.awaiting: dict[tuple[bytes, Address], list[Any]] = {}
        """(object, this process) -> what waits until the owner has entered us."""
        self._told: dict[tuple[bytes, Address], deque[tuple[Address, list[Any]]]] = {}
        """(object, borrower) -> (owner, what waits for its answer), in the order of our messages."""
        self.by_borrower: dict[Address, dict[bytes, None]] = {}
        self._introduced: dict[tuple[Address, bytes], tuple[Address, int]] = {}
        """(introducer, object) -> its owner, and how many entries more that owner has made for us
        by word of the introducer than values with the object have come from there."""
        self._dropping: list[list[ObjectEntry]] = []
        self.token_freed: Any = None
        """Called with `rare.stands_for` when an object that stands for something else is freed."""
        self.stored_freed: Callable[[bytes], None] = lambda oid: None
        """Called when an object is freed that may have been in a store."""

    # ---- this process's references

    def released(self, entries: Iterable[ObjectEntry]) -> None:
        """The last ObjectRef of this process to each is gone (unless one has come since)."""
        for entry in entries:
            if entry.local <= 0 and entry.pins <= 0 and entry.state != ENDED:
                self.consider(entry)

    def unpinned(self, entry: ObjectEntry) -> None:
        """A task that took the object has ended, or a value that contained it is gone."""
        entry.pins -= 1
        if entry.local <= 0 and entry.pins <= 0:
            self.consider(entry)

    def consider(self, entry: ObjectEntry) -> None:
        """Free or give back the object if nothing holds it any more."""
        if entry.local > 0 or entry.pins > 0 or entry.state == FREED:
            return
        rare = entry.rare
        if rare is None and entry.owner is None and entry.state != PENDING:   # nearly all
            self._forget(entry)
            return
        if rare is not None and rare.lineage and not self.lineage.can_make(entry):
            return
        if entry.owner is not None:
            if (entry.id, self.me) in self.awaiting:
                return
            if rare is not None and rare.registered:
                self.out.append(BorrowDrop(entry.owner, entry.id))
            self._forget(entry)
            return
        if rare is not None and rare.borrowers:
            return
        if entry.state == PENDING and entry.task is not None and not entry.task.done:
            return      # its task still runs: its end considers it again
        if rare is not None and (rare.locations or rare.tried):
            self.out.append(Free(entry.id, list(rare.locations | rare.tried)))
        self._forget(entry)

    def _forget(self, entry: ObjectEntry) -> None:
        rare = entry.rare
        self.directory.forget(entry)
        entry.value = None
        if rare is None and (entry.task is None or len(entry.task.returns) == 1):
            entry.task = None       # it was never in a store: its task is not remembered
            return
        self.lineage.freed(entry)
        if rare is None:
            return
        if entry.owner is None:
            self.stored_freed(entry.id)
        if rare.stands_for is not None:
            self.token_freed(rare.stands_for)
        if rare.contents:
            self._dropping.append(rare.contents)
            rare.contents = []
            if len(self._dropping) == 1:    # references may be nested to any depth: no recursion
                self._drop_contents()

    def _drop_contents(self) -> None:
        for contents in self._dropping:     # grows meanwhile
            for inner in contents:
                self.unpinned(inner)
        self._dropping.clear()

    def contains(self, entry: ObjectEntry, inner: Iterable[ObjectEntry]) -> None:
        """The value of `entry` holds references to `inner`: they live as long as it does."""
        contents = entry.more().contents
        for one in inner:
            one.pins += 1
            contents.append(one)

    # ---- borrowing

    def borrow(self, entry: ObjectEntry, hold: ObjectEntry | None = None) -> None:
        """Enter this process in the owner's books; `hold` is pinned until the owner answers."""
        rare = entry.more()
        if rare.registered:
            return
        rare.registered = True
        waiting = self.awaiting[(entry.id, self.me)] = self._tell(entry, self.me)
        if hold is not None:
            hold.pins += 1
            waiting.append(hold)

    def outlived(self, restored: list[ObjectEntry], caller: Address, then: Any) -> int:
        """A task of `caller` ends, its arguments are unpinned: which owners must know what we still hold?

        `restored` are the references it met. Returns how many answers of owners other than the
        caller `then` has to wait for before the reply may leave; after that comes `retained`.
        """
        answers = 0
        for entry in restored:
            if entry.owner is None or entry.owner == caller or entry.state == FREED:
                continue
            if entry.local > 0 or entry.pins > 0:
                self.borrow(entry)
            waiting = self.awaiting.get((entry.id, self.me))
            if waiting is not None:
                waiting.append(then)
                answers += 1
        return answers

    def retained(self, restored: list[ObjectEntry], caller: Address) -> list[bytes]:
        """The caller's own objects among `restored` that we still hold, for the reply (rule 2).

        The reply must leave in the same turn: from now on they may be dropped.
        """
        kept = []
        for entry in restored:
            if entry.owner != caller or entry.state == FREED or (entry.local <= 0 and entry.pins <= 0):
                continue
            if not entry.more().registered:
                entry.more().registered = True
                kept.append(entry.id)
        return kept

    def entered(self, entry: ObjectEntry, introducer: Address) -> None:
        """`introducer` sent us a value with this reference inside: it has entered us with its owner."""
        assert entry.owner is not None
        rare = entry.more()
        if rare.registered:     # now we are in the books twice, but will let go only once
            self.out.append(BorrowDrop(entry.owner, entry.id))
        rare.registered = True
        if entry.owner != introducer:
            self._count_introduction(introducer, entry.id, entry.owner, -1)

    def introduced(self, oid: bytes, owner: Address, introducer: Address, alive: bool) -> None:
        """`owner` has entered us by word of `introducer`, whose value may have come already.

        If the introducer has died (`alive` False) and its value has not come, it never will.
        """
        self._count_introduction(introducer, oid, owner, 1)
        if not alive:
            self._give_back(introducer)

    def _count_introduction(self, introducer: Address, oid: bytes, owner: Address, step: int) -> None:
        key = (introducer, oid)
        count = self._introduced.get(key, (owner, 0))[1] + step
        if count:
            self._introduced[key] = (owner, count)
        else:
            del self._introduced[key]

    def _give_back(self, introducer: Address) -> None:
        for key, (owner, count) in list(self._introduced.items()):
            if key[0] == introducer and count > 0:
                del self._introduced[key]
                self.out.extend(BorrowDrop(owner, key[1]) for _ in range(count))

    def introduce(self, entry: ObjectEntry, borrower: Address, then: Any) -> bool:
        """Enter `borrower` with the object's owner; True if that is done already.

        Otherwise `then` is handed back by `borrow_acknowledged`. Each introduction counts: the
        borrower will answer each with `entered`.
        """
        if entry.owner is None:
            if borrower != self.me:
                self.borrow_added(entry.id, borrower)
            return True
        if entry.owner == borrower:
            return True
        self._tell(entry, borrower).append(then)
        return False

    def _tell(self, entry: ObjectEntry, borrower: Address) -> list[Any]:
        assert entry.owner is not None
        waiting: list[Any] = []
        self._told.setdefault((entry.id, borrower), deque()).append((entry.owner, waiting))
        self.out.append(BorrowAdd(entry.owner, entry.id, borrower))
        return waiting

    def borrow_added(self, oid: bytes, borrower: Address) -> bool:
        """At the owner: `borrower` holds the object. False if it is gone already."""
        entry = self.directory.find(oid)
        if entry is None or entry.owner is not None:
            return False
        borrowers = entry.more().borrowers
        borrowers[borrower] = borrowers.get(borrower, 0) + 1
        held = self.by_borrower.get(borrower)
        if held is None:
            held = self.by_borrower[borrower] = {}
            self.out.append(Watch(borrower))
        held[oid] = None
        return True

    def borrow_acknowledged(self, oid: bytes, borrower: Address) -> list[Any]:
        """The owner knows `borrower`. Returns what waited for that."""
        key = (oid, borrower)
        told = self._told.get(key)
        if told is None:
            return []
        _, waiting = told.popleft()
        if not told:
            del self._told[key]
        return self._answered(key, waiting)

    def _answered(self, key: tuple[bytes, Address], waiting: list[Any]) -> list[Any]:
        if self.awaiting.get(key) is waiting:
            del self.awaiting[key]
        others = []
        for one in waiting:
            if isinstance(one, ObjectEntry):
                self.unpinned(one)
            else:
                others.append(one)
        if key[1] == self.me:
            entry = self.directory.find(key[0])
            if entry is not None:
                self.consider(entry)
        return others

    def borrow_dropped(self, oid: bytes, borrower: Address) -> None:
        """At the owner: one hold of `borrower` is gone."""
        entry = self.directory.find(oid)
        if entry is None or entry.rare is None:
            return
        count = entry.rare.borrowers.get(borrower, 0) - 1
        if count > 0:
            entry.rare.borrowers[borrower] = count
        else:
            entry.rare.borrowers.pop(borrower, None)
            held = self.by_borrower.get(borrower)
            if held is not None:
                held.pop(oid, None)
                if not held:
                    del self.by_borrower[borrower]
        self.consider(entry)

    def worker_gone(self, address: Address) -> list[Any]:
        """A process died: strike out what it borrowed. Returns what waited for its answers."""
        for oid in self.by_borrower.pop(address, {}):
            entry = self.directory.find(oid)
            if entry is not None and entry.rare is not None:
                entry.rare.borrowers.pop(address, None)
                self.consider(entry)
        self._give_back(address)
        self._introduced = {key: one for key, one in self._introduced.items() if one[0] != address}
        released: list[Any] = []
        for key, told in list(self._told.items()):
            if told[0][0] == address:       # an object has one owner
                del self._told[key]
                for _, waiting in told:
                    released.extend(self._answered(key, waiting))
        return released

    def check(self) -> None:
        """The two views of who borrows what agree, and nothing unreachable is kept."""
        for borrower, held in self.by_borrower.items():
            for oid in held:
                entry = self.directory.find(oid)
                assert entry is not None and entry.rare is not None, oid.hex()
                assert borrower in entry.rare.borrowers, oid.hex()
        for oid, entry in self.directory.objects.items():
            rare = entry.rare
            if rare is not None:
                for borrower, count in rare.borrowers.items():
                    assert count > 0 and oid in self.by_borrower.get(borrower, ()), oid.hex()
        for introduction, (_, count) in self._introduced.items():
            assert count, introduction
        for key, waiting in self.awaiting.items():
            assert any(ticket is waiting for _, ticket in self._told.get(key, ())), key[0].hex()
