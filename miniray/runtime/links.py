"""Links between daemons: a `core.link.Link` joined to whatever stream connects the two at present.

What a raylet uses (both are made in `runtime.rpc`, or by `GcsShell.join` for a GCS in the same
process, which needs no gRPC)::

    HeadLink   send(NodeMessage), close()               events: LinkEvents
    PeerLinks  send(node_id, PeerMessage), forget(), close()     events: PeerEvents

Messages sent are delivered exactly once and in order as long as both processes live, however
often the connection breaks; `on_reset` says that the other side has started afresh. Sending
never blocks and never fails: while the connection is down messages queue (see `backlog_bytes`).

Streams are duck-typed (`Stream`), so this file knows no gRPC and is tested over memory. All
calls and callbacks run on the event loop's thread; callbacks must not block.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from miniray.core.link import Deliver, Link, LinkOptions, PeerReset, Transmit

log = logging.getLogger(__name__)

RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 2.0
"""Pause before dialling again; doubles from the first to the last."""


SILENT_S = 10.0
"""A peer that acknowledges nothing for so long is not there, though its connection seems to be."""

PEER_STREAM = LinkOptions(ack_delay_s=0.5, ack_every=16, resend_s=3.0, resend_max_s=10.0)
"""Between raylets: relayed batches are big, so they are acknowledged, and let go, sooner."""


class StreamEnded(Exception):
    """The stream is over. `refused`: nobody listens there, so its process has gone."""

    def __init__(self, detail: str, *, refused: bool = False, final: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.refused = refused
        self.final = final
        """Dialling again is pointless: wrong token, wrong version."""


class Stream(Protocol):
    """An ordered connection that carries packets both ways until it breaks."""

    async def read(self) -> Any:
        """The next packet; raises StreamEnded."""

    async def write(self, packet: Any) -> None:
        """Send one packet, waiting while the peer is slow; raises StreamEnded."""

    def cancel(self) -> None:
        """Break it."""


def _ignore(*_: Any) -> None:
    """The default of callbacks that nobody needs."""


@dataclass(slots=True)
class LinkEvents:
    """Callbacks of one link, in the order things happen."""

    on_message: Callable[[Any], None]
    on_reset: Callable[[int, list[Any]], None] = _ignore
    """(incarnation, undelivered): the peer started afresh; see `core.link.PeerReset`."""
    on_up: Callable[[], None] = _ignore
    """The peer has answered on a new connection."""
    on_down: Callable[[StreamEnded, float], None] = _ignore
    """(why, seconds without connection so far): at each break and each failed attempt."""


class HeadLink(Protocol):
    """A raylet's link to the GCS, in this process or over gRPC."""

    def send(self, message: Any) -> None:
        """Queue one NodeMessage."""

    def close(self) -> None:
        """Break the connection; nothing is called back any more."""


class LinkEnd:
    """One `Link` with the streams it has now: usually none or one, briefly two.

    Two happen when both raylets of a pair dial at the same moment: all are read, the newest is
    written to.
    """

    def __init__(self, link: Link, events: LinkEvents) -> None:
        self.link = link
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._streams: list[Stream] = []
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._asleep_until = math.inf
        """When the writer wakes up by itself; it is woken for what is due earlier."""
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self._watch: asyncio.TimerHandle | None = None
        self._broken = ""
        """Why this end broke its streams."""
        self._attached_at = 0.0
        self.heard_at = -1.0
        """When the peer's last packet came (the loop's clock); -1: never."""

    def send(self, message: Any, size: int | None = None) -> None:
        """Queue one message; it leaves with this turn's packet."""
        self.link.send(message, size)
        self._wake.set()

    @property
    def is_up(self) -> bool:
        """Whether a stream is attached."""
        return bool(self._streams)

    async def serve(self, stream: Stream) -> None:
        """Read `stream` until it ends; always raises StreamEnded (or CancelledError)."""
        self._attach(stream)
        fresh = True
        try:
            while True:
                packet = await stream.read()
                if self._closed:
                    raise StreamEnded("the link was closed", final=True)
                self.heard_at = self._loop.time()
                if fresh:
                    fresh = False
                    self._call(self._events.on_up)
                self.link.packet_received(self.heard_at, packet)
                self._deliver()
                due = self.link.next_deadline()
                if due is not None and due < self._asleep_until:
                    self._wake.set()
        except StreamEnded as ended:
            raise StreamEnded(self._broken, refused=ended.refused) if self._broken else ended from None
        finally:
            self._detach(stream)

    def close(self) -> None:
        """Break every stream; no callback follows."""
        self._closed = True
        self._stop_writing()
        if self._watch is not None:
            self._watch.cancel()
        for stream in self._streams:
            stream.cancel()

    # ---- inside

    def _attach(self, stream: Stream) -> None:
        self._streams.append(stream)
        self._attached_at = self._loop.time()
        self._broken = ""
        self.link.connected(self._attached_at)
        self._write_to(stream)
        if self._watch is None:
            self._watch = self._loop.call_later(SILENT_S / 4, self._look)

    def _detach(self, stream: Stream) -> None:
        self._streams.remove(stream)
        if self._streams:
            self.link.connected(self._loop.time())  # what the broken one swallowed goes out again
            self._write_to(self._streams[-1])
        else:
            self._stop_writing()
            self.link.disconnected(self._loop.time())

    def _write_to(self, stream: Stream) -> None:
        """Have a writer of its own for this stream: the former one may be stuck in a dead one."""
        self._stop_writing()
        self._writer = self._loop.create_task(self._write(stream))

    def _stop_writing(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._asleep_until = math.inf

    def _look(self) -> None:
        """Break the streams of a peer that owes an acknowledgement and says nothing."""
        self._watch = None
        if not self._streams or self._closed:
            return
        silent = self._loop.time() - max(self.heard_at, self._attached_at)
        if self.link.backlog and silent >= SILENT_S:
            self._broken = f"the peer was silent for {silent:.0f} s"
            for stream in list(self._streams):
                stream.cancel()
        self._watch = self._loop.call_later(SILENT_S / 4, self._look)

    def _deliver(self) -> list[Any]:
        """Hand effects upwards in order; returns the packets among them."""
        effects, self.link.out = self.link.out, []
        packets = []
        for effect in effects:
            if type(effect) is Deliver:
                self._call(self._events.on_message, effect.message)
            elif type(effect) is Transmit:
                packets.append(effect.packet)
            elif type(effect) is PeerReset:
                self._call(self._events.on_reset, effect.incarnation, effect.undelivered)
        return packets

    def _call(self, callback: Callable[..., None], *args: Any) -> None:
        """A callback's bug must not end the link of everybody else; it is logged with its trace."""
        if self._closed:
            return
        try:
            callback(*args)
        except Exception:
            log.exception("a message from the peer could not be handled")

    async def _write(self, stream: Stream) -> None:
        """Write packets as they fall due, until cancelled or the stream breaks."""
        try:
            while True:
                await self._due()
                self.link.tick(self._loop.time())
                for packet in self._deliver():
                    await stream.write(packet)
        except StreamEnded:
            stream.cancel()  # its reader detaches it; then what was lost is resent
        except Exception:
            log.exception("writing to the peer failed")
            stream.cancel()

    async def _due(self) -> None:
        """Sleep until the link's deadline or a wake-up."""
        deadline = self.link.next_deadline()
        if deadline is not None and deadline <= self._loop.time():
            self._wake.clear()
            await asyncio.sleep(0)  # let the rest of this turn's messages join the packet
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._wake.set)
            self._asleep_until = deadline
        await self._wake.wait()
        self._wake.clear()
        self._asleep_until = math.inf


class Dialler:
    """Keeps one link end connected: dials, serves, backs off 0.1 → 2 s, dials again."""

    def __init__(self, end: LinkEnd, dial: Callable[[], Awaitable[Stream]], events: LinkEvents) -> None:
        self._end = end
        self._dial = dial
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    def send(self, message: Any) -> None:
        """Queue one message (the `HeadLink` port)."""
        self._end.send(message)

    def close(self) -> None:
        """Stop dialling and break the connection."""
        self._task.cancel()
        self._end.close()

    @property
    def backlog_bytes(self) -> int:
        """Bytes queued or not yet acknowledged."""
        return self._end.link.backlog_bytes

    async def _run(self) -> None:
        pause = RECONNECT_FIRST_S
        down_since = self._loop.time()
        while True:
            started = self._loop.time()
            try:
                await self._end.serve(await self._dial())
            except StreamEnded as ended:
                now = self._loop.time()
                if self._end.heard_at > started:  # it did work for a while
                    pause, down_since = RECONNECT_FIRST_S, now
                self._events.on_down(ended, now - down_since)
                if ended.final:
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECONNECT_MAX_S)


@dataclass(slots=True)
class PeerEvents:
    """Callbacks of a raylet's links to the others; the first argument is the peer's node id."""

    on_message: Callable[[bytes, Any], None]
    on_reset: Callable[[bytes, int, list[Any]], None] = _ignore
    on_up: Callable[[bytes], None] = _ignore
    on_down: Callable[[bytes, StreamEnded, float], None] = _ignore


class PeerLinks:
    """A raylet's links to other raylets, dialled at first use or served for those who dial.

    `address_of(node_id)` gives "host:port", or None while the peer cannot be dialled (unknown,
    or behind NAT): messages then wait until it dials us. `dial(address, node_id)` opens a stream.
    """

    def __init__(
        self,
        incarnation: int,
        packet_type: Any,
        address_of: Callable[[bytes], str | None],
        dial: Callable[[str, bytes], Awaitable[Stream]],
        events: PeerEvents,
    ) -> None:
        """`incarnation` must grow with every start of a raylet under one node id."""
        self._incarnation = incarnation
        self._packet_type = packet_type
        self._address_of = address_of
        self._dial = dial
        self._events = events
        self._ends: dict[bytes, LinkEnd] = {}
        self._diallers: dict[bytes, asyncio.Task[None]] = {}

    def send(self, node_id: bytes, message: Any, size: int | None = None) -> None:
        """Queue one PeerMessage; dials the peer if nothing connects us."""
        end = self._end(node_id)
        end.send(message, size)
        self._dial_if_needed(node_id, end)

    async def serve(self, node_id: bytes, stream: Stream) -> None:
        """A peer dialled us: read its stream until it ends; raises StreamEnded."""
        end = self._end(node_id)
        started = asyncio.get_running_loop().time()
        try:
            await end.serve(stream)
        except StreamEnded as ended:
            if self._ends.get(node_id) is end and not end.is_up:
                self._events.on_down(node_id, ended, asyncio.get_running_loop().time() - started)
                self._dial_if_needed(node_id, end)
            raise

    def _dial_if_needed(self, node_id: bytes, end: LinkEnd) -> None:
        if end.link.backlog and not end.is_up and node_id not in self._diallers:
            task = asyncio.get_running_loop().create_task(self._keep_dialling(node_id, end))
            self._diallers[node_id] = task

    def backlog_bytes(self, node_id: bytes) -> int:
        """Bytes queued for the peer or not yet acknowledged by it."""
        end = self._ends.get(node_id)
        return end.link.backlog_bytes if end is not None else 0

    def forget(self, node_id: bytes) -> None:
        """The peer is dead: drop its link and what was queued."""
        end = self._ends.pop(node_id, None)
        dialler = self._diallers.pop(node_id, None)
        if dialler is not None:
            dialler.cancel()
        if end is not None:
            end.close()

    def close(self) -> None:
        """Forget every peer."""
        for node_id in list(self._ends):
            self.forget(node_id)

    def _end(self, node_id: bytes) -> LinkEnd:
        end = self._ends.get(node_id)
        if end is None:
            self._incarnation += 1  # a peer that met an earlier link of ours must see a new pair
            events = LinkEvents(
                lambda message: self._events.on_message(node_id, message),
                lambda incarnation, rest: self._events.on_reset(node_id, incarnation, rest),
                lambda: self._events.on_up(node_id),
            )
            link = Link(self._incarnation, self._packet_type, PEER_STREAM, connected=False)
            end = self._ends[node_id] = LinkEnd(link, events)
        return end

    async def _keep_dialling(self, node_id: bytes, end: LinkEnd) -> None:
        """Dial until connected; again after a break while something is to be delivered."""
        loop = asyncio.get_running_loop()
        pause = RECONNECT_FIRST_S
        down_since = loop.time()
        try:
            while end.link.backlog and not end.is_up:
                address = self._address_of(node_id)
                if address is not None:
                    started = loop.time()
                    try:
                        await end.serve(await self._dial(address, node_id))
                    except StreamEnded as ended:
                        now = loop.time()
                        if end.heard_at > started:
                            pause, down_since = RECONNECT_FIRST_S, now
                        if not end.is_up:
                            self._events.on_down(node_id, ended, now - down_since)
                await asyncio.sleep(pause)
                pause = min(pause * 2, RECONNECT_MAX_S)
        finally:
            if self._diallers.get(node_id) is asyncio.current_task():
                del self._diallers[node_id]
