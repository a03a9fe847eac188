"""Who reads which object from this node, and who is sent on to somebody who has it, or gets it, too.

::

    a reader asks ─▶ served: nobody else reads the object here, or it was sent on and has come back
                 └─▶ sent on, to the last one that we served or sent on: it passes on what it has so far

So a broadcast of a large object is a chain: each node gets one copy and sends one, at the same time, and
all have it when the first one has, and a few pieces later. A reader whose way is blocked comes back, so
the chain becomes a tree, of `SERVES_PER_OBJECT` branches at most. A small object is there before a
detour is made: it is sent to so many at once, and others are sent on to those who have it whole.

Pure; runs inside `core.node.Node`. Limits: `SPREADS_KEPT` objects, but for those that are read now, and
`NAMES_KEPT` names each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SERVES_PER_OBJECT = 3
CHAINED_FROM_BYTES = 4 << 20
NAMES_KEPT = 64
NAMES_TOLD = 8
SPREADS_KEPT = 256


@dataclass(slots=True)
class Spread:
    """How one object spreads from here."""

    readers: dict[bytes, int] = field(default_factory=dict)
    """Node -> streams that it reads now."""
    copies: dict[bytes, None] = field(default_factory=dict)
    """Who has read all of it here, oldest first."""
    chain: dict[bytes, None] = field(default_factory=dict)
    """Who gets it from us or from one of these, in the order in which they asked."""
    sent_on: dict[bytes, None] = field(default_factory=dict)
    """Who has been told to ask others."""

    def names_for(self, reader: bytes, size: int) -> list[bytes]:
        """Who may be asked in our place, the best first."""
        if size >= CHAINED_FROM_BYTES and self.readers:
            names = [node_id for node_id in reversed(self.chain) if node_id != reader]
            return names[:NAMES_TOLD]
        if len(self.copies) >= SERVES_PER_OBJECT and reader not in self.copies:
            return list(self.copies)[-NAMES_TOLD:]
        return []


@dataclass(slots=True)
class Serving:
    """See the module head."""

    spreads: dict[bytes, Spread] = field(default_factory=dict)

    def asked(self, object_id: bytes, reader: bytes, size: int, begun: bool = False,
              passes_on: bool = True) -> list[bytes] | None:
        """None: serve it, until `ended`. Else the nodes to ask instead; without any: ask again later.

        `begun`: it has some bytes already. `passes_on`: others can be sent to it.
        """
        spread = self.spreads.get(object_id)
        if spread is None:
            spread = self.spreads[object_id] = Spread()
        if not begun and reader not in spread.readers:
            names = self._instead(spread, reader, size, passes_on)
            if names is not None:
                return names
        spread.readers[reader] = spread.readers.get(reader, 0) + 1
        if passes_on:
            _note(spread.chain, reader)
        return None

    def _instead(self, spread: Spread, reader: bytes, size: int, passes_on: bool) -> list[bytes] | None:
        names = [] if reader in spread.sent_on else spread.names_for(reader, size)
        if names:
            _note(spread.sent_on, reader)
            if passes_on and spread.readers:
                _note(spread.chain, reader)
            return names
        if len(spread.readers) >= SERVES_PER_OBJECT:
            return []
        spread.sent_on.pop(reader, None)
        return None

    def readers(self, object_id: bytes) -> dict[bytes, int]:
        """Who reads it now, and in how many streams."""
        spread = self.spreads.get(object_id)
        return spread.readers if spread is not None else {}

    def ended(self, object_id: bytes, reader: bytes, complete: bool) -> None:
        """One stream is over; the reader has a copy when the last of its streams ended well."""
        spread = self.spreads[object_id]
        spread.readers[reader] -= 1
        if spread.readers[reader]:
            return
        del spread.readers[reader]
        if complete and reader:
            _note(spread.copies, reader)
        else:
            spread.chain.pop(reader, None)
        if not spread.readers:
            spread.chain.clear()
            self._keep_few(object_id)

    def _keep_few(self, object_id: bytes) -> None:
        """One who has it no more says so, and others are asked: so the oldest knowledge may go."""
        self.spreads[object_id] = self.spreads.pop(object_id)
        if len(self.spreads) > SPREADS_KEPT:
            del self.spreads[next(key for key, spread in self.spreads.items() if not spread.readers)]

    def check(self) -> None:
        """Who is read from is known as such."""
        for spread in self.spreads.values():
            assert all(count > 0 for count in spread.readers.values()), "a reader without a stream"
            assert spread.readers or not spread.chain, "a chain that hangs on nobody"
            assert max(map(len, (spread.copies, spread.chain, spread.sent_on))) <= NAMES_KEPT


def _note(names: dict[bytes, None], node_id: bytes) -> None:
    """It is the newest of them."""
    names.pop(node_id, None)
    names[node_id] = None
    if len(names) > NAMES_KEPT:
        del names[next(iter(names))]
