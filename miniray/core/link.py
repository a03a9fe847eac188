"""A reliable link: exactly-once, in-order messages over packets that may be lost or repeated.

One `Link` is one end; the other end is a `Link` in another process. Each end has an
*incarnation*, a number that grows whenever that end starts afresh; messages are numbered from 1
within a **pair** of incarnations and belong to that pair only::

    A (7) ── inc 7, peer 0, ack 0 ─────────────────▶ B (3)    hello: A does not know B yet
          ◀───────────────── inc 3, peer 7, ack 0 ──          B answers at once
          ── inc 7, peer 3, ack 0, 1..2 [m1 m2] ───▶          delivered once
          ◀───────────────── inc 3, peer 7, ack 2 ──          within ack_delay_s

- Messages travel only to a known peer incarnation, so a late packet never enters a new pair; a
  packet of an older incarnation is ignored, one meant for an older self is answered with an
  empty packet, from which its sender learns the new incarnation.
- A newer peer incarnation resets both directions: `PeerReset` comes before any message of the
  new pair and hands back what the old peer had not acknowledged; the machine above decides.
- What is not acknowledged is resent after `resend_s`, doubling, and all at once on `connected`.

The shell calls `packet_received`, `connected`, `disconnected` and, when `next_deadline` is due,
`tick`; it drains `out` in order. Limits: a window of messages in flight and of early ones; the
queue before it is bounded by whoever looks at `backlog`. Pure; on the thread of its shell.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

AT_ONCE = 0.0
"""`next_deadline` when a tick is due already."""


@dataclass(slots=True)
class Transmit:
    """Put `packet` on the wire; losing it is allowed."""

    packet: Any


@dataclass(slots=True)
class Deliver:
    """The peer's next message."""

    message: Any


@dataclass(slots=True)
class PeerReset:
    """The peer has started afresh as `incarnation`.

    `undelivered` are our messages to its former incarnation that it never acknowledged, oldest
    first: received or not, nobody knows.
    """

    incarnation: int
    undelivered: list[Any]


@dataclass(slots=True, frozen=True)
class LinkOptions:
    """Times and limits. The defaults suit a lossy transport, `STREAM` an ordered stream."""

    ack_delay_s: float = 0.02
    ack_every: int = 64
    """An ack is due at once when this many messages wait for it."""
    resend_s: float = 0.2
    resend_max_s: float = 4.0
    window: int = 1024
    """Messages in flight, and messages kept that came too early."""
    packet_messages: int = 256
    packet_bytes: int = 1 << 20
    """A packet is closed when it has reached either; one larger message travels alone."""


STREAM = LinkOptions(ack_delay_s=2.0, resend_s=8.0, resend_max_s=16.0)
"""For TCP streams: they lose nothing before they break, and then `connected` resends at once. One
ack for several heartbeats: writing a packet costs the head more than reading one."""


class Link:
    """One end of a reliable link; see the head of this module."""

    __slots__ = (
        "_ack_at", "_connected", "_early", "_flight", "_flight_bytes", "_greeted_at", "_next_sequence",
        "_options", "_packet_type", "_peer", "_queue", "_queue_bytes", "_received", "_resend_all",
        "_resend_at", "_resend_delay", "_unacked", "incarnation", "out",
    )  # fmt: skip

    def __init__(
        self,
        incarnation: int,
        packet_type: Any,
        options: LinkOptions = LinkOptions(),
        *,
        connected: bool = True,
    ) -> None:
        """`packet_type` is the protobuf class of packets (`Packet` or `PeerPacket`).

        `incarnation` must be above every earlier one that this peer has met from this end.
        """
        assert incarnation > 0
        self.out: list[Transmit | Deliver | PeerReset] = []
        self.incarnation = incarnation
        self._packet_type = packet_type
        self._options = options
        self._connected = connected
        self._peer = 0
        self._queue: deque[tuple[Any, int]] = deque()
        self._queue_bytes = 0
        self._resend_delay = options.resend_s
        self._ack_at: float | None = None
        self._greeted_at: float | None = None
        self._start_pair()

    def _start_pair(self) -> None:
        """Numbers of a new pair of incarnations."""
        self._flight: deque[tuple[int, Any, int]] = deque()
        self._flight_bytes = 0
        self._next_sequence = 1
        self._received = 0
        self._early: dict[int, Any] = {}
        self._unacked = 0
        self._resend_at: float | None = None
        self._resend_all = False
        self._resend_delay = self._options.resend_s

    # ---- stimuli

    def send(self, message: Any, size: int | None = None) -> None:
        """Queue one message; the next `tick` packs it. `size` in bytes saves measuring it."""
        if size is None:
            size = message.ByteSize()
        self._queue.append((message, size))
        self._queue_bytes += size

    def connected(self, now: float) -> None:
        """The transport works (again): greet, and resend what is not acknowledged."""
        self._connected = True
        self._ack_at = now
        self._greeted_at = None
        self._resend_delay = self._options.resend_s
        self._resend_all = bool(self._flight)

    def disconnected(self, now: float) -> None:
        """The transport broke: everything waits for `connected`."""
        self._connected = False

    def packet_received(self, now: float, packet: Any) -> None:
        """A packet from the peer, late, repeated or out of order as it may be."""
        incarnation = packet.incarnation
        if incarnation < self._peer or incarnation == 0:
            return
        if incarnation > self._peer:
            self._meet(incarnation)
        if packet.peer_incarnation != self.incarnation:
            self._ack_at = now  # it does not know this self: the answer says so
            return
        self._ack_received(now, packet.ack)
        if packet.first_sequence:
            self._messages_received(now, packet.first_sequence, packet.messages)

    def _meet(self, incarnation: int) -> None:
        """The peer's first, or next, incarnation."""
        known = self._peer
        self._peer = incarnation
        if known:
            undelivered = [message for _, message, _ in self._flight]
            undelivered.extend(message for message, _ in self._queue)
            self._queue.clear()
            self._queue_bytes = 0
            self._start_pair()
            self.out.append(PeerReset(incarnation, undelivered))

    def _ack_received(self, now: float, ack: int) -> None:
        flight = self._flight
        if not flight or ack < flight[0][0] or ack >= self._next_sequence:
            return  # nothing new, or a figure that this end never sent
        while flight and flight[0][0] <= ack:
            self._flight_bytes -= flight.popleft()[2]
        self._resend_delay = self._options.resend_s
        self._resend_at = now + self._resend_delay if flight else None

    def _messages_received(self, now: float, first: int, messages: Any) -> None:
        """Deliver what is next in order, keep what is early, forget what is known."""
        options = self._options
        early = self._early
        received = self._received
        in_order = True
        for sequence, message in enumerate(messages, first):
            if sequence == received + 1:
                received = sequence
                self.out.append(Deliver(message))
            elif sequence > received and len(early) < options.window:
                early[sequence] = message
                in_order = False
            else:
                in_order = False
        while early and received + 1 in early:
            received += 1
            self.out.append(Deliver(early.pop(received)))
        self._unacked += received - self._received
        self._received = received
        if early:
            for sequence in [s for s in early if s <= received]:
                del early[sequence]
        due = now + options.ack_delay_s if in_order and self._unacked < options.ack_every else now
        if self._ack_at is None or due < self._ack_at:
            self._ack_at = due

    # ---- time

    def next_deadline(self) -> float | None:
        """When `tick` is due; `AT_ONCE` when something can go out now."""
        if not self._connected:
            return None
        if not self._peer:
            if self._greeted_at is not None:
                return self._greeted_at + self._resend_delay
            return AT_ONCE if self._queue or self._ack_at is not None else None
        if self._resend_all or (self._queue and len(self._flight) < self._options.window):
            return AT_ONCE
        if self._ack_at is None or (self._resend_at is not None and self._resend_at < self._ack_at):
            return self._resend_at
        return self._ack_at

    def tick(self, now: float) -> None:
        """Pack what is due: resends, new messages, an ack of its own if nothing carried it."""
        if not self._connected:
            return
        if not self._peer:
            self._greet(now)
            return
        if self._resend_all:
            self._resend_all = False
            self._resend(now, len(self._flight))
        elif self._resend_at is not None and self._resend_at <= now:
            self._resend_delay = min(self._resend_delay * 2, self._options.resend_max_s)
            self._resend(now, self._options.packet_messages)
        self._send_new(now)
        if self._ack_at is not None and self._ack_at <= now:
            self._transmit(0, [])

    def _greet(self, now: float) -> None:
        """The peer is unknown: say who is here, again and again while there is reason to."""
        if self._greeted_at is None:
            if not self._queue and self._ack_at is None:
                return
        elif now < self._greeted_at + self._resend_delay:
            return
        else:
            self._resend_delay = min(self._resend_delay * 2, self._options.resend_max_s)
        self._greeted_at = now
        self._transmit(0, [])

    def _resend(self, now: float, count: int) -> None:
        """The oldest `count` messages in flight once more, if there are any left."""
        if not self._flight:
            return
        packet: list[Any] = []
        packet_bytes = 0
        first = self._flight[0][0]
        for index, (sequence, message, size) in enumerate(self._flight):
            if index == count:
                break
            if packet and self._is_full(packet, packet_bytes + size):
                self._transmit(first, packet)
                packet, packet_bytes, first = [], 0, sequence
            packet.append(message)
            packet_bytes += size
        self._transmit(first, packet)
        self._resend_at = now + self._resend_delay

    def _send_new(self, now: float) -> None:
        """Number and pack what is queued, as far as the window reaches."""
        queue, flight = self._queue, self._flight
        room = self._options.window - len(flight)
        if not queue or room <= 0:
            return
        packet: list[Any] = []
        packet_bytes = 0
        first = sequence = self._next_sequence
        while queue and room:
            message, size = queue.popleft()
            if packet and self._is_full(packet, packet_bytes + size):
                self._transmit(first, packet)
                packet, packet_bytes, first = [], 0, sequence
            packet.append(message)
            packet_bytes += size
            flight.append((sequence, message, size))
            self._queue_bytes -= size
            self._flight_bytes += size
            sequence += 1
            room -= 1
        self._next_sequence = sequence
        self._transmit(first, packet)
        if self._resend_at is None:
            self._resend_at = now + self._resend_delay

    def _is_full(self, packet: list[Any], packet_bytes: int) -> bool:
        return len(packet) >= self._options.packet_messages or packet_bytes > self._options.packet_bytes

    def _transmit(self, first: int, messages: list[Any]) -> None:
        """One packet; every packet carries the ack."""
        self._ack_at = None
        self._unacked = 0
        self.out.append(
            Transmit(
                self._packet_type(
                    incarnation=self.incarnation,
                    peer_incarnation=self._peer,
                    ack=self._received,
                    first_sequence=first,
                    messages=messages,
                )
            )
        )

    # ---- looking in

    @property
    def peer(self) -> int:
        """The peer's incarnation, 0 while it is unknown."""
        return self._peer

    @property
    def is_connected(self) -> bool:
        """Whether the transport works, as far as the shell has said."""
        return self._connected

    @property
    def backlog(self) -> int:
        """Messages not yet acknowledged, sent or not."""
        return len(self._queue) + len(self._flight)

    @property
    def backlog_bytes(self) -> int:
        """Their bytes."""
        return self._queue_bytes + self._flight_bytes

    def check(self) -> None:
        """Assert every invariant."""
        sequences = [sequence for sequence, _, _ in self._flight]
        expected = list(range(self._next_sequence - len(sequences), self._next_sequence))
        assert sequences == expected, f"in flight {sequences}, next {self._next_sequence}"
        assert len(self._flight) <= self._options.window and len(self._early) <= self._options.window
        assert all(sequence > self._received + 1 for sequence in self._early), "deliverable but kept"
        assert not self._flight or self._resend_at is not None, "in flight and never resent"
        assert self._peer or not self._flight, "in flight to nobody"
        assert self.backlog_bytes == sum(s for _, _, s in self._flight) + sum(s for _, s in self._queue)

    def dump(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "incarnation": self.incarnation,
            "peer": self._peer,
            "connected": self._connected,
            "queued": len(self._queue),
            "in_flight": len(self._flight),
            "received": self._received,
            "early": len(self._early),
            "resend_delay_s": self._resend_delay,
        }
