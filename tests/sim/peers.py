"""The other workers one process speaks to, as `runtime.peers` does: channels and frames.

On one node a channel is a pair of pipes that the raylet brokers, between nodes a real `Circuit`,
relayed by both raylets or over a wire. Frames are tuples (kind, fields…); a circuit's batch holds a
key into the cluster's blobs, since the daemons must not look inside. What ends a turn hands it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import worker_pb2 as wire
from miniray.core.circuit import HEADER, Circuit, Forgotten, goodbye
from miniray.core.directory import FAILED, INLINE, STORED, Address, ObjectEntry
from miniray.core.owner import Result
from miniray.core.submission import Remote
from miniray.core.tasks import TaskRecord

from .network import Pipe, WireEnd
from .values import Arguments, UserError

if TYPE_CHECKING:
    from .worker import SimWorker

Frame = tuple[Any, ...]

CONNECT_AGAIN_S = 1.0


class Ring:
    """A shared-memory channel: one pipe each way."""

    def __init__(self, worker: SimWorker) -> None:
        self.forth = Pipe(worker.world, 0.00003)
        self.back = Pipe(worker.world, 0.00003)

    def break_(self) -> None:
        """Nobody will ever read what the opener wrote."""
        self.forth.break_()


class Peer:
    """One other worker."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.out: Pipe | None = None
        self.circuit: Circuit | None = None
        self.wires: list[WireEnd] = []
        self.asked_at = float("-inf")
        self.batch: list[Frame] = []
        self.inbound: list[Pipe] = []
        self.remote: Remote | None = None


class Peers:
    """All peers of one worker."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._peers: dict[Address, Peer] = {}
        self._turn: list[Peer] = []

    def of(self, address: Address) -> Peer:
        """The peer at `address`, perhaps without a channel."""
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address)
        return peer

    # ---- channels

    def send(self, address: Address, frame: Frame) -> None:
        """One frame to another worker, or to ourselves."""
        worker = self._worker
        if address == worker.address:
            self.received(address, frame)
            return
        peer = self.of(address)
        if peer.out is None and peer.circuit is None:
            self._open(peer)
        if peer.out is not None:
            peer.out.write(frame)
            return
        if not peer.batch:
            self._turn.append(peer)
        peer.batch.append(frame)

    def _open(self, peer: Peer) -> None:
        worker = self._worker
        if peer.address[0] != worker.address[0]:
            peer.circuit = Circuit(worker.cluster.next_number())
            return
        ring = Ring(worker)
        peer.out = ring.forth
        self._read(peer, ring.back)
        opening = wire.ChannelOpen(target_worker_id=peer.address[1], capacity=1)
        worker.tell_raylet(wire.ToRaylet(channel_open=opening), ring)

    def _read(self, peer: Peer, pipe: Pipe) -> None:
        peer.inbound.append(pipe)
        pipe.attach(lambda frame: self.received(peer.address, frame))

    def offered(self, address: Address, ring: Ring) -> None:
        """Another worker of this node has opened a channel to us."""
        peer = self.of(address)
        self._read(peer, ring.forth)
        if peer.out is None:
            peer.out = ring.back

    def end_turn(self) -> None:
        """Hand relayed frames to the raylet."""
        while self._turn:
            peer = self._turn.pop(0)
            frames, peer.batch = peer.batch, []
            assert peer.circuit is not None
            self._carry(peer, peer.circuit.pack([self._worker.cluster.keep(frames)]))
            now = self._worker.world.now
            if not peer.wires and now - peer.asked_at >= CONNECT_AGAIN_S:
                peer.asked_at = now
                opening = wire.ChannelOpen(target_node_id=peer.address[0], target_worker_id=peer.address[1])
                self._worker.tell_raylet(wire.ToRaylet(channel_open=opening))

    def _carry(self, peer: Peer, data: bytes) -> None:
        if peer.wires:
            peer.wires[-1].write(data)
            return
        batch = wire.RelayBatch(frames=data)
        batch.source.node_id, batch.source.worker_id = self._worker.address
        batch.destination.node_id, batch.destination.worker_id = peer.address
        self._worker.tell_raylet(wire.ToRaylet(relay=batch))

    def _circuit(self, peer: Peer) -> Circuit:
        if peer.circuit is None:
            peer.circuit = Circuit(self._worker.cluster.next_number())
            peer.asked_at = self._worker.world.now  # the other one has asked
        return peer.circuit

    def carried(self, address: Address, data: bytes) -> None:
        """A circuit's batch, relayed or over a wire."""
        peer = self.of(address)
        circuit = self._circuit(peer)
        try:
            new = circuit.unpack(data)
        except Forgotten:
            self._disagree(peer, data)
            return
        for frame in self._worker.cluster.kept(data[HEADER.size :]) if new else ():
            self.received(address, frame)
        if circuit.owes_ack:
            self._carry(peer, circuit.ack())

    def _disagree(self, peer: Peer, data: bytes) -> None:
        if data != goodbye():
            self.gone(peer.address)
            self._carry(Peer(peer.address), goodbye())
        else:
            self._worker.gone(peer.address, pb.Failure(kind=pb.WORKER_DIED, message="it took us for dead"))

    # ---- wires

    def connected_to(self, address: Address, end: WireEnd) -> None:
        """The raylets have made a connection to a worker of another node."""
        peer = self.of(address)
        circuit = self._circuit(peer)
        peer.wires.append(end)
        end.attach(lambda batch: self._wired(peer, end, batch))
        for batch in circuit.unacknowledged():
            end.write(batch)

    def _wired(self, peer: Peer, end: WireEnd, batch: bytes | None) -> None:
        if end not in peer.wires or not self._worker.alive:
            return
        if batch is not None:
            self.carried(peer.address, batch)
            self._worker.end_turn()
            return
        was_used = end is peer.wires[-1]
        peer.wires.remove(end)
        end.break_()
        if was_used and peer.circuit is not None:
            for one in peer.circuit.unacknowledged():
                self._carry(peer, one)
        if not peer.wires:
            self._worker.departed(peer.address)

    def is_connected(self, address: Address) -> bool:
        """Frames may still come over a wire."""
        peer = self._peers.get(address)
        return peer is not None and bool(peer.wires)

    def look(self, address: Address) -> None:
        """Read what a dead peer has left in its rings."""
        for pipe in self.of(address).inbound:
            pipe.read_all()

    def gone(self, address: Address) -> None:
        """The process has ended and its last frames are read."""
        peer = self._peers.pop(address, None)
        if peer is not None:
            self._break(peer)

    def _break(self, peer: Peer) -> None:
        for pipe in peer.inbound:
            pipe.break_()
        for end in peer.wires:
            end.break_()
        peer.wires.clear()

    def close(self) -> None:
        """This process dies: nobody reads what was sent to it."""
        for peer in self._peers.values():
            self._break(peer)
        self._peers.clear()

    # ---- frames

    def push(self, record: TaskRecord) -> None:
        """Send a task or call to the worker it was assigned to."""
        arguments: Arguments = record.arguments
        slots = tuple(slot_of(entry, self._worker.address) for entry in arguments.slots)
        self.of(record.remote.address).remote = record.remote
        self.send(record.remote.address, (
            "push", record.call, record.id, record.attempt, record.template.name,
            1 if record.stream is not None else len(record.returns), slots, arguments.nested, arguments.body,
        ))  # fmt: skip

    def received(self, address: Address, frame: Frame) -> None:
        """One frame, in the order it was sent."""
        worker = self._worker
        if not worker.alive:
            return
        _HANDLERS[frame[0]](self, self.of(address), *frame[1:])
        worker.end_turn()

    def _pushed(self, peer: Peer, *push: Any) -> None:
        assert self._worker.executor is not None, "a driver was sent a task"
        self._worker.executor.pushed(peer.address, push)

    def _replied(
        self, peer: Peer, call: int, spent_us: float, results: tuple[Result, ...], retained: tuple[bytes, ...]
    ) -> None:
        remote = peer.remote
        record = remote.inflight.get(call) if remote is not None else None
        if remote is None or record is None:
            return
        again = bool(results) and results[0].state == FAILED and self._may_retry(record, results[0].value)
        now = self._worker.world.now
        only = results[0] if len(results) == 1 and not (retained or again) else None
        if only is not None and only.state == INLINE and not only.contents:
            self._worker.owner.replied_inline(now, remote, call, spent_us, only.value)
            return
        self._worker.owner.replied(now, remote, call, spent_us, list(results), list(retained), again)

    def _item(self, peer: Peer, call: int, index: int, result: Result) -> None:
        record = peer.remote.inflight.get(call) if peer.remote is not None else None
        if record is not None:
            record.stream.item(self._worker.world.now, index, result, peer.address)

    def _may_retry(self, record: TaskRecord, error: Any) -> bool:
        wanted = record.template.retry_exceptions and isinstance(error, UserError)
        return bool(wanted) and record.retries_left != 0 and not record.cancel_requested

    def _cancel(self, peer: Peer, call: int) -> None:
        if self._worker.executor is not None:
            self._worker.executor.cancelled(peer.address, call)

    def _bounced(self, peer: Peer, calls: tuple[int, ...]) -> None:
        if peer.remote is not None:
            self._worker.owner.submission.bounced(self._worker.world.now, peer.remote, list(calls))

    def _asked(self, peer: Peer, oid: bytes) -> None:
        self._worker.answer(peer.address, oid)

    def _answered(
        self, peer: Peer, oid: bytes, state: int, value: Any, size: int, nodes: tuple[bytes, ...]
    ) -> None:
        owner = self._worker.owner
        entry = owner.directory.find(oid)
        if entry is None:
            return
        for node in nodes:
            entry.more().locations[node] = None
        owner.complete(self._worker.world.now, entry, state, value, size)

    def _borrow_added(self, peer: Peer, oid: bytes, borrower: Address) -> None:
        name = self._worker.world.name
        self._worker.world.note(self._worker.name, f"books {name(borrower[1])} for {name(oid)}")
        known = self._worker.owner.ownership.borrow_added(oid, borrower)
        if not known:
            self._worker.cluster.oracle.borrow_refused(self._worker, oid, borrower)
        self.send(peer.address, ("ack", oid, borrower))
        if borrower != peer.address:
            self.send(borrower, ("introduced", oid, peer.address))

    def _introduced(self, peer: Peer, oid: bytes, introducer: Address) -> None:
        self._worker.owner.introduced(oid, peer.address, introducer)

    def _borrow_acknowledged(self, peer: Peer, oid: bytes, borrower: Address) -> None:
        for then in self._worker.owner.ownership.borrow_acknowledged(oid, borrower):
            then.notify(None)

    def _borrow_dropped(self, peer: Peer, oid: bytes) -> None:
        name = self._worker.world.name
        self._worker.world.note(self._worker.name, f"strikes {name(peer.address[1])} out for {name(oid)}")
        self._worker.owner.ownership.borrow_dropped(oid, peer.address)

    def _lost(self, peer: Peer, oid: bytes, node: bytes, waits: bool) -> None:
        self._worker.copy_lost(oid, node, peer.address if waits else None)


def slot_of(entry: ObjectEntry, me: Address) -> tuple[Any, ...]:
    """A resolved argument as it travels: state, id, owner, value, size, locations."""
    assert entry.state in (INLINE, STORED, FAILED), f"{entry} was pushed unresolved"
    return (entry.state, entry.id, entry.owner or me, entry.value, entry.size, tuple(entry.locations))


_HANDLERS: dict[str, Any] = {
    "push": Peers._pushed, "reply": Peers._replied, "cancel": Peers._cancel, "bounce": Peers._bounced,
    "ask": Peers._asked, "answer": Peers._answered, "add": Peers._borrow_added,
    "introduced": Peers._introduced, "ack": Peers._borrow_acknowledged, "drop": Peers._borrow_dropped,
    "lost": Peers._lost, "item": Peers._item,
}  # fmt: skip
