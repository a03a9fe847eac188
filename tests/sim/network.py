"""Wires: lossy ones between hosts with the real reliable links on top, and local pipes.

Between hosts (nodes and the head) a packet may be lost, late, repeated or overtaken, and hosts
may be cut off from each other. `LinkEnd` is what `runtime.links` is in the product: it runs the
real `core.link.Link` over such wires. A `Pipe` is a unix socket or a shared-memory ring: in order
and reliable; what its writer wrote before it died can still be read. A `Wire` is a TCP connection
between two workers of different hosts: in order, until it breaks with whatever is on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miniray.core.link import Deliver, Link, LinkOptions, PeerReset, Transmit

from .world import Timer, Violation, World

PACKETS = LinkOptions(ack_delay_s=0.05, resend_s=0.3, resend_max_s=2.0)


@dataclass(frozen=True)
class Weather:
    """How bad the network is."""

    loss: float = 0.0
    duplicates: float = 0.0
    late: float = 0.0
    """Share of packets that take up to `late_s` longer."""
    late_s: float = 0.5
    delay_s: float = 0.001


class Network:
    """All hosts by id, and what is between them."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world = world
        self.weather = weather
        self._hosts: dict[bytes, Callable[[bytes, Any], None]] = {}
        self._cuts: dict[frozenset[bytes], int] = {}
        self.silent: dict[bytes, None] = {}
        """Hosts that are gone without a trace: their address does not even refuse connections."""
        self.ends: dict[tuple[bytes, int, bytes], LinkEnd] = {}
        """All ends of links that ever were, by host, incarnation and other host."""

    def attach(self, host: bytes, receive: Callable[[bytes, Any], None]) -> None:
        """`receive(source, packet)` gets what is sent to `host`; replaces an earlier life."""
        self._hosts[host] = receive

    def detach(self, host: bytes) -> None:
        """The host is gone: packets to it vanish."""
        self._hosts.pop(host, None)

    def is_up(self, host: bytes) -> bool:
        """Whether somebody receives there."""
        return host in self._hosts

    def cut(self, a: bytes, b: bytes) -> None:
        """No packet passes between the two until as many `mend`s."""
        pair = frozenset((a, b))
        self._cuts[pair] = self._cuts.get(pair, 0) + 1

    def mend(self, a: bytes, b: bytes) -> None:
        """Undo one `cut`."""
        pair = frozenset((a, b))
        self._cuts[pair] -= 1
        if not self._cuts[pair]:
            del self._cuts[pair]

    def reaches(self, a: bytes, b: bytes) -> bool:
        """Whether packets can pass from a to b now."""
        return b in self._hosts and a in self._hosts and frozenset((a, b)) not in self._cuts

    def send(self, source: bytes, target: bytes, packet: Any) -> None:
        """Put a packet on the wire."""
        weather, rng = self.weather, self.world.rng
        copies = 1
        if weather.loss and rng.random() < weather.loss:
            copies = 0
        elif weather.duplicates and rng.random() < weather.duplicates:
            copies = 2
        for _ in range(copies):
            delay = weather.delay_s * (0.5 + rng.random())
            if weather.late and rng.random() < weather.late:
                delay += rng.random() * weather.late_s
            self.world.after(delay, self._arrive, source, target, packet)

    def _arrive(self, source: bytes, target: bytes, packet: Any) -> None:
        receive = self._hosts.get(target)
        if receive is not None and frozenset((source, target)) not in self._cuts:
            receive(source, packet)


class LinkEnd:
    """One end of a reliable link over the network."""

    def __init__(
        self,
        network: Network,
        here: bytes,
        there: bytes,
        incarnation: int,
        packet_type: Any,
        on_message: Callable[[Any], None],
        on_reset: Callable[[list[Any]], None],
        world: World,
    ) -> None:
        """`world` as the machine at this end sees it."""
        self.link = Link(incarnation, packet_type, PACKETS)
        self._network = network
        self._here = here
        self._there = there
        self._on_message = on_message
        self._on_reset = on_reset
        self._world = world
        self._timer = Timer(world, self._tick)
        self.closed = False
        self._stopped = False
        self._sent: list[tuple[str, int]] = []
        """Kind and size of every message to this incarnation of the other end."""
        self._delivered = 0
        network.ends[here, incarnation, there] = self

    def stop(self) -> None:
        """The process at this end is stopped: it sends nothing, not even again."""
        self._stopped = True
        self._timer.set(None)

    def go_on(self) -> None:
        """It is not any more."""
        self._stopped = False
        self._arm()

    def send(self, message: Any) -> None:
        """Queue one message; what is sent within one instant shares packets."""
        self.link.send(message)
        self._sent.append(_shown(message))
        self._arm()

    def received(self, packet: Any) -> None:
        """A packet from the other end."""
        self.link.packet_received(self._world.now, packet)
        self._carry_out()

    def close(self) -> None:
        """This end is gone."""
        self.closed = True
        self._timer.set(None)

    def _tick(self) -> None:
        self.link.tick(self._world.now)
        self._carry_out()

    def _carry_out(self) -> None:
        out, self.link.out = self.link.out, []
        for effect in out:
            if self.closed:
                return
            if type(effect) is Transmit:
                self._network.send(self._here, self._there, effect.packet)
            elif type(effect) is Deliver:
                self._is_next(effect.message)
                self._on_message(effect.message)
            else:
                assert type(effect) is PeerReset
                self._sent.clear()
                self._delivered = 0
                self._on_reset(effect.undelivered)
        self._arm()

    def _is_next(self, message: Any) -> None:
        """Each message comes once, and in the order in which it was sent; looked at from outside."""
        other = self._network.ends.get((self._there, self.link.peer, self._here))
        if other is not None and other.link.peer == self.link.incarnation:
            if other._sent[self._delivered : self._delivered + 1] != [_shown(message)]:
                text = f"message {self._delivered + 1} of a link is not what was sent: {_shown(message)}"
                raise Violation(text)
        self._delivered += 1

    def _arm(self) -> None:
        if not self.closed and not self._stopped:
            self._timer.set(self.link.next_deadline())


def _shown(message: Any) -> tuple[str, int]:
    return message.WhichOneof("body") or "", message.ByteSize()


class Pipe:
    """One direction of a local connection: in order, reliable, not instant."""

    def __init__(self, world: World, delay_s: float = 0.0001) -> None:
        self._world = world
        self._delay_s = delay_s
        self._items: deque[Any] = deque()
        self._reader: Callable[[Any], None] | None = None
        self._clear_at = 0.0
        self._broken = False

    def attach(self, reader: Callable[[Any], None]) -> None:
        """From now on what was and is written is read."""
        self._reader = reader
        for _ in self._items:
            self._schedule()

    def write(self, item: Any) -> None:
        """Write; nobody reads it if the reader is gone."""
        if self._broken:
            return
        self._items.append(item)
        if self._reader is not None:
            self._schedule()

    def read_all(self) -> None:
        """Read what is there now."""
        while self._items and self._reader is not None:
            self._reader(self._items.popleft())

    def lose_all(self) -> None:
        """What is on the way never comes."""
        self._items.clear()

    def break_(self) -> None:
        """The reader is gone, and what it has not read."""
        self._broken = True
        self._items.clear()
        self._reader = None

    def _schedule(self) -> None:
        delay = self._delay_s * (0.2 + self._world.rng.expovariate(1.0))
        self._clear_at = max(self._clear_at, self._world.now + delay)
        self._world.at(self._clear_at, self._deliver)

    def _deliver(self) -> None:
        if self._items and self._reader is not None:
            self._reader(self._items.popleft())


class WireEnd:
    """One end of a connection of two workers; `Wire.between` makes both."""

    def __init__(self, wire: Wire, here: bytes, there: bytes) -> None:
        self._wire = wire
        self._here = here
        self._there = there
        self.other: WireEnd = self
        self.incoming = Pipe(wire.network.world, 0.0005)
        self.ended = False

    def attach(self, reader: Callable[[Any], None]) -> None:
        """`reader(batch)` for each that comes, and `reader(None)` at the end."""
        self.incoming.attach(reader)

    def write(self, batch: bytes) -> None:
        """Send a batch; perhaps it is the one on which the connection breaks."""
        wire = self._wire
        if wire.is_broken:
            return
        if not wire.network.reaches(self._here, self._there):
            wire.break_(wire.network.world.rng.uniform(0.1, 3.0))  # noticed when nothing is acknowledged
        elif wire.network.world.chance(wire.network.weather.loss * 0.1 + 0.002):
            wire.break_(0.0)
        else:
            self.other.incoming.write(batch)

    def break_(self) -> None:
        """This end's process is gone, or does not want it: the other one reads what came, then the end."""
        self.ended = True
        self.incoming.break_()
        if not self._wire.is_broken and self._wire.network.reaches(self._here, self._there):
            self.other.incoming.write(None)


class Wire:
    """What the two ends share."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.is_broken = False
        self.ends: list[WireEnd] = []

    @classmethod
    def between(cls, network: Network, here: bytes, there: bytes) -> tuple[WireEnd, WireEnd]:
        """A new connection."""
        wire = cls(network)
        near, far = WireEnd(wire, here, there), WireEnd(wire, there, here)
        near.other, far.other = far, near
        wire.ends = [near, far]
        return near, far

    def break_(self, noticed_s: float) -> None:
        """What is under way is lost; each end notices in its own time."""
        self.is_broken = True
        for end in self.ends:
            end.incoming.lose_all()
            self.network.world.after(noticed_s * self.network.world.rng.random(), end.incoming.write, None)
