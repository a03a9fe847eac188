"""The other workers this process speaks to: channels, function numbers, and incoming frames.

One `Peer` per address. The side that speaks first opens the channel: a ring when the other lives
on this node (its memfd goes through the raylet), a circuit otherwise. If both open at once, each
sends on its own, so order holds per direction. All methods run under the worker's lock.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from miniray._native import reply_in
from miniray._proto import common_pb2 as pb
from miniray._proto.worker_pb2 import ChannelOpen, RelayBatch, ToRaylet, WorkerGone
from miniray.core.circuit import Forgotten, goodbye
from miniray.core.directory import FAILED, STORED, Address
from miniray.core.submission import Remote
from miniray.core.tasks import TaskRecord
from miniray.runtime import cancellation, frames
from miniray.runtime.arguments import pack_push
from miniray.runtime.errors import failure_bytes
from miniray.runtime.transport import RING_BYTES, CircuitChannel, RingChannel

if TYPE_CHECKING:
    from miniray.runtime.connections import WorkerConnection
    from miniray.runtime.worker import CoreWorker

logger = logging.getLogger("miniray")

PUSH_SIZE = frames.PUSH_HEADER.size


class Peer:
    """One other worker."""

    __slots__ = (
        "address", "channel", "inbound", "remote", "numbers", "functions", "gone", "lease_id", "violated")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.channel: Any = None
        self.inbound: list[Any] = []  # rings the other side opened
        self.remote: Remote | None = None
        self.numbers: dict[Any, int] = {}  # templates the peer knows by number
        self.functions: dict[int, Any] = {}  # what the peer's numbers mean here
        self.gone = False
        self.lease_id = 0  # the lease whose terms the peer knows
        self.violated = False  # it has sent a frame that makes no sense


class Peers:
    """All peers of one worker."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._peers: dict[Address, Peer] = {}
        self.turn: list[CircuitChannel] = []  # channels to flush when the turn ends
        self._reminded = False
        self._handlers: dict[int, Any] = {
            frames.REPLY: self._replied,
            frames.PUSH: self._pushed,
            frames.FUNCTION: self._function,
            frames.CANCEL: self._cancel,
            frames.BOUNCE: self._bounced,
            frames.ASK: self._asked,
            frames.ANSWER: self._answered,
            frames.BORROW_ADD: self._borrow_added,
            frames.BORROW_ACK: self._borrow_acknowledged,
            frames.BORROW_DROP: self._borrow_dropped,
            frames.STREAM_ITEM: self._stream_item,
            frames.STREAM_ACK: self._stream_acknowledged,
            frames.LOST: self._lost,
            frames.LEASE: self._leased,
            frames.INTRODUCED: self._introduced,
            frames.CANCEL_OWNED: self._cancel_owned,
        }

    # ---- connections

    def of(self, address: Address) -> Peer:
        """The peer at `address`; made, without a channel, when it is new."""
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address)
        return peer

    def connected(self, address: Address) -> Peer:
        """The peer at `address` with a channel to send on."""
        peer = self.of(address)
        if peer.channel is None:
            self._open(peer)
        return peer

    def _open(self, peer: Peer) -> None:
        worker = self._worker
        if peer.address[0] == worker.address[0]:
            native = worker.mailbox.create_channel(peer, RING_BYTES)
            peer.channel = RingChannel(native)
            opening = ChannelOpen(target_worker_id=peer.address[1], capacity=RING_BYTES)
            worker.raylet.send(ToRaylet(channel_open=opening), native.fd)
        else:
            self._open_circuit(peer, -math.inf)

    def _open_circuit(self, peer: Peer, now: float) -> CircuitChannel:
        address = peer.address
        opening = ChannelOpen(target_node_id=address[0], target_worker_id=address[1])
        channel = peer.channel = CircuitChannel(
            lambda batch: self._relay(address, batch),
            lambda: self._worker.raylet.send(ToRaylet(channel_open=opening)),
            self.turn, now)  # fmt: skip
        return channel

    def _relay(self, address: Address, frames: bytes) -> None:
        batch = RelayBatch(frames=frames)
        batch.source.node_id, batch.source.worker_id = self._worker.address
        batch.destination.node_id, batch.destination.worker_id = address
        self._worker.raylet.send(ToRaylet(relay=batch))

    def connected_to(self, connection: WorkerConnection) -> None:
        """The raylets have made a connection to a worker of another node."""
        peer = self.of(connection.address)
        channel = peer.channel or self._open_circuit(peer, time.monotonic())
        channel.connected(connection)

    def disconnected(self, connection: WorkerConnection) -> None:
        """It has ended, and everything that came over it is handled."""
        peer = self._peers.get(connection.address)
        if peer is not None and peer.channel is not None:
            peer.channel.disconnected(connection)
            if not peer.channel.is_connected:
                self._worker.departures.disconnected(connection.address)

    def is_connected(self, address: Address) -> bool:
        """Frames of the worker at `address` may still come over a connection."""
        peer = self._peers.get(address)
        return self._worker.connections.expects(address) or (
            peer is not None and isinstance(peer.channel, CircuitChannel) and peer.channel.is_connected)

    def hold(self, address: Address, held: bool) -> None:
        """The raylets have (no longer) too much for that worker; on this node nothing goes through them."""
        peer = self._peers.get(address)
        if peer is not None and isinstance(peer.channel, CircuitChannel):
            peer.channel.hold(held)

    def hears_of(self, address: Address) -> bool:
        """The raylet knows of a channel to the worker at `address`, and will tell of its end."""
        peer = self._peers.get(address)
        return peer is not None and (peer.channel is not None or bool(peer.inbound))

    def cross_nodes(self) -> bool:
        """Some peer is on another node."""
        return any(address[0] != self._worker.address[0] for address in self._peers)

    def offered(self, address: Address, fd: int) -> None:
        """Another worker of this node opened a ring to us."""
        peer = self.of(address)
        ring = RingChannel(self._worker.mailbox.attach_channel(peer, fd))
        if peer.channel is None:
            peer.channel = ring
        else:
            peer.inbound.append(ring)

    def look(self, address: Address) -> None:
        """Read the rings of a dead peer once more, whether it rang or not."""
        peer = self._peers.get(address)
        for channel in (peer.channel, *peer.inbound) if peer is not None else ():
            if isinstance(channel, RingChannel):
                channel.native.look()

    def gone(self, address: Address) -> None:
        """The process at `address` has ended and its last frames are handled."""
        peer = self._peers.pop(address, None)
        if peer is None:
            return
        peer.gone = True
        for channel in (peer.channel, *peer.inbound):
            if channel is not None:
                channel.close()
        peer.channel = None

    def close(self) -> None:
        """End all channels."""
        for address in list(self._peers):
            self.gone(address)

    def send(self, address: Address, frame: bytes) -> None:
        """One frame to the worker at `address`; dropped if it is known to be gone."""
        if address == self._worker.address:
            self.handle([(self.of(address), frame)])
            return
        self.connected(address).channel.send(frame)

    def push(self, record: TaskRecord) -> None:
        """Send a task or call to the worker it was assigned to."""
        remote: Remote = record.remote
        peer = remote.channel
        if peer is None or peer.channel is None:
            peer = remote.channel = self.connected(remote.address)
            peer.remote = remote
        if remote.lease_id != peer.lease_id:
            peer.lease_id = remote.lease_id
            terms = self._worker.terms.get(remote.lease_id)
            if terms is not None:
                peer.channel.send(bytes((frames.LEASE,)) + terms)
        template = record.template
        number = peer.numbers.get(template)
        if number is None:
            number = peer.numbers[template] = len(peer.numbers) + 1
            peer.channel.send(frames.pack_function(number, self._worker.definition(template)))
        flags = frames.RETRY_EXCEPTIONS if template.retry_exceptions and record.retries_left else 0
        peer.channel.send(pack_push(record, number, flags, self._worker.address, failure_bytes))

    def end_turn(self, burst: bool = False) -> None:
        """Hand on what was gathered. `burst`: the caller may be about to make more calls."""
        turn = self.turn
        if not turn:
            return
        if burst and all(channel.gathers() for channel in turn):
            if not self._reminded:
                self._reminded = True
                self._worker.pump.wake()  # whoever drains, drains this too if the caller does not
            return
        self._reminded = False
        channels, turn[:] = list(turn), []
        for channel in channels:
            channel.flush()

    # ---- incoming frames

    def handle(self, batch: list[tuple[Peer, bytes | None]]) -> None:
        """Frames in the order they came; None means there is room again."""
        owner, executor = self._worker.owner, self._worker.executor
        now = time.monotonic()
        handlers = self._handlers
        arrived = iter(batch)
        while True:
            try:
                for peer, frame in arrived:
                    if frame is None:
                        if peer.channel is not None:
                            peer.channel.flush()
                        continue
                    kind = frame[0]
                    if kind == frames.REPLY_ONE:
                        remote = peer.remote
                        if remote is not None:
                            owner.replied_inline(now, remote, *reply_in(frame))
                    elif kind == frames.PUSH and executor is not None and len(frame) >= PUSH_SIZE:
                        executor.enqueue(peer, frame)
                    else:
                        handlers[kind](peer, frame, now)
                return
            except Exception as error:      # the rest of the batch counts all the same
                self._violated(peer, error)

    def _violated(self, peer: Peer, error: Exception) -> None:
        """A frame of that peer makes no sense: if it runs our tasks it is ended, and they fail by name."""
        if peer.violated:
            return
        peer.violated = True
        node, worker = (part.hex()[:12] for part in peer.address)
        name = f"worker {worker} on node {node}"
        logger.error("%s sent a frame that cannot be handled; it is dropped", name, exc_info=error)
        if peer.remote is not None and peer.address != self._worker.address:
            reason = f"it sent a frame that its caller could not handle ({type(error).__name__}: {error})"
            self._worker.actors.kill_worker(peer.address, reason)

    def carried(self, address: Address, batches: list[bytes]) -> None:
        """Batches of a circuit, relayed or over a connection."""
        peer = self.of(address)
        channel = peer.channel or self._open_circuit(peer, time.monotonic())
        received: list[bytes] = []
        try:
            for batch in batches:
                channel.unpack(batch, received)
        except Forgotten:
            self._disagree(address, batches)
            return
        if received:
            self.handle([(peer, frame) for frame in received])
        channel.acknowledge()

    def _disagree(self, address: Address, batches: list[bytes]) -> None:
        """One of us was told that the other is dead, and has gone on without it: so must the other."""
        if goodbye() not in batches:
            self.gone(address)
            self._relay(address, goodbye())
            return
        failure = pb.Failure(kind=pb.WORKER_DIED, message=(
            f"worker {address[1].hex()[:8]} on node {address[0].hex()[:8]} took this process for dead"))
        gone = WorkerGone(failure=failure)
        gone.address.node_id, gone.address.worker_id = address
        self._worker.departures.announced(gone)

    def _replied(self, peer: Peer, frame: bytes, now: float) -> None:
        call, spent, results, retained = frames.unpack_reply(frame)
        remote = peer.remote
        if remote is None:
            return
        record = remote.inflight.get(call)
        if record is None:
            return
        worker = self._worker
        again = bool(results) and results[-1].state == FAILED and worker.may_retry(record, results[-1].value)
        worker.owner.replied(now, remote, call, spent, results, retained, again)

    def _pushed(self, peer: Peer, frame: bytes, now: float) -> None:
        raise ValueError(f"a task of {len(frame)} bytes: no whole header, or this process runs no tasks")

    def _function(self, peer: Peer, frame: bytes, now: float) -> None:
        number = frames.FUNCTION_HEADER.unpack_from(frame)[3]
        peer.functions[number] = frame[frames.FUNCTION_HEADER.size :]

    def _leased(self, peer: Peer, frame: bytes, now: float) -> None:
        self._worker.executor.leased(frame[1:])

    def _cancel(self, peer: Peer, frame: bytes, now: float) -> None:
        _, force, recursive, call = frames.CALL.unpack_from(frame)
        self._worker.executor.cancel(peer, call, bool(force), bool(recursive))

    def _cancel_owned(self, peer: Peer, frame: bytes, now: float) -> None:
        oid, _, flags = frames.unpack_object(frame)
        entry = self._worker.owner.directory.find(oid)
        if entry is not None and entry.task is not None:
            force = bool(flags & frames.FORCE) and entry.task.client is None
            cancellation.give_up(self._worker, entry.task, force, bool(flags & frames.RECURSIVE))

    def _bounced(self, peer: Peer, frame: bytes, now: float) -> None:
        if peer.remote is not None:
            self._worker.owner.submission.bounced(now, peer.remote, *frames.unpack_bounce(frame))

    def _asked(self, peer: Peer, frame: bytes, now: float) -> None:
        self._worker.answer(peer.address, frames.unpack_object(frame)[0])

    def _answered(self, peer: Peer, frame: bytes, now: float) -> None:
        oid, state, size, nodes, payload = frames.unpack_answer(frame)
        owner = self._worker.owner
        entry = owner.directory.find(oid)
        if entry is None:
            return
        for node in nodes:
            entry.more().locations[node] = None
        owner.complete(now, entry, state, None if state == STORED else payload, size)

    def _borrow_added(self, peer: Peer, frame: bytes, now: float) -> None:
        oid, borrower, _ = frames.unpack_object(frame)
        assert borrower is not None
        known = self._worker.owner.ownership.borrow_added(oid, borrower)
        self.send(peer.address, frames.pack_object(frames.BORROW_ACK, oid, borrower, int(known)))
        if borrower != peer.address:
            self.send(borrower, frames.pack_object(frames.INTRODUCED, oid, peer.address))

    def _introduced(self, peer: Peer, frame: bytes, now: float) -> None:
        oid, introducer, _ = frames.unpack_object(frame)
        assert introducer is not None
        self._worker.owner.introduced(oid, peer.address, introducer)

    def _borrow_acknowledged(self, peer: Peer, frame: bytes, now: float) -> None:
        oid, borrower, _ = frames.unpack_object(frame)
        assert borrower is not None
        for then in self._worker.owner.ownership.borrow_acknowledged(oid, borrower):
            then.notify(None)

    def _borrow_dropped(self, peer: Peer, frame: bytes, now: float) -> None:
        oid, _, _ = frames.unpack_object(frame)
        self._worker.owner.ownership.borrow_dropped(oid, peer.address)

    def _stream_item(self, peer: Peer, frame: bytes, now: float) -> None:
        _, _, _, call, index = frames.STREAM_HEADER.unpack_from(frame)
        result, _ = frames.unpack_result(frame, frames.STREAM_HEADER.size)
        remote = peer.remote
        record = remote.inflight.get(call) if remote is not None else None
        if record is not None and record.stream is not None:
            record.stream.item(now, index, result, peer.address)

    def _stream_acknowledged(self, peer: Peer, frame: bytes, now: float) -> None:
        _, _, _, call, consumed = frames.STREAM_HEADER.unpack_from(frame)
        self._worker.executor.consumed(peer, call, consumed)

    def _lost(self, peer: Peer, frame: bytes, now: float) -> None:
        oid, address, flags = frames.unpack_object(frame)
        assert address is not None
        self._worker.copy_lost(oid, address[0], None if flags & frames.MORE_LOST else peer.address)
