"""Who talks to whom: channels and relays of this node's clients, and the news of a worker's end.

A worker on this node is reached by a `ChannelOffer` (a shared-memory channel, brokered here), one
on another node by `RelayBatch`es that both raylets pass on unread, until the two have a connection
of their own: the raylets make it, data port to data port, and hand its ends to their workers.
Whoever has opened a channel to a worker, sent it a relay, or asked to watch it, hears of its end
with one `WorkerGone`.

::

    A ─ChannelOpen+fd─▶ raylet ─ChannelOffer+fd─▶ B             same node
    A ─RelayBatch─▶ raylet ─PeerMessage─▶ raylet ─RelayBatch─▶ B   across nodes, at first
    A ◀─ChannelOffer+fd─ raylet ═══ dial ═══▶ raylet ─ChannelOffer+fd─▶ B

Pure; runs inside `core.node.Node`. Limit: of workers that have ended, the last `DEAD_KEPT`
failures are remembered; older ones are answered with a plain "has ended".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2, worker_pb2
from miniray.core.contract import Send
from miniray.core.node_effects import CloseFd, ConnectWorkers, ToClient, to_client

DEAD_KEPT = 1024


@dataclass(slots=True)
class Relay:
    """See the module head. `clients` is the pool's worker table (live clients of this node)."""

    out: list[Any]
    node_id: bytes
    clients: dict[bytes, Any]
    listeners: dict[bytes, dict[bytes, None]] = field(default_factory=dict)
    """Local worker -> local clients that must hear of its end."""
    remote_listeners: dict[bytes, dict[bytes, None]] = field(default_factory=dict)
    """Local worker -> nodes that must hear of its end."""
    contacts: dict[bytes, dict[bytes, dict[bytes, None]]] = field(default_factory=dict)
    """Other node -> its worker -> local clients in contact with it."""
    dead: dict[bytes, worker_pb2.WorkerGone] = field(default_factory=dict)

    # ---- from clients of this node ----

    def channel_opened(self, worker_id: bytes, message: worker_pb2.ChannelOpen, fd: int | None) -> None:
        """`worker_id` wants a channel to another client of this node; `fd` is its memfd."""
        target = message.target_worker_id
        if fd is None:
            self._refuse(worker_id, target, common.Failure(
                kind=common.INVALID_ARGUMENT, message="a ChannelOpen must carry one descriptor"))
        elif target not in self.clients:
            self.out.append(CloseFd(fd))
            self._refuse(worker_id, target, self._gone(target).failure)
        else:
            self.listen(target, worker_id)
            self.listen(worker_id, target)
            source = common.Address(node_id=self.node_id, worker_id=worker_id)
            offer = worker_pb2.ChannelOffer(source=source, capacity=message.capacity)
            self.out.append(to_client(target, fd, channel_offer=offer))

    def _refuse(self, worker_id: bytes, target: bytes, failure: common.Failure) -> None:
        address = common.Address(node_id=self.node_id, worker_id=target)
        refusal = worker_pb2.ChannelRefused(target=address, failure=failure)
        self.out.append(to_client(worker_id, channel_refused=refusal))

    def relay_sent(self, worker_id: bytes, batch: worker_pb2.RelayBatch, node_alive: bool) -> None:
        """A client sends frames to a worker, usually one of another node."""
        node_id, target = batch.destination.node_id, batch.destination.worker_id
        if node_id == self.node_id:
            if target in self.clients:
                self.listen(target, worker_id)
                self.out.append(ToClient(target, worker_pb2.ToWorker(relay=batch)))
            else:
                self.out.append(to_client(worker_id, worker_gone=self._gone(target)))
            return
        if not node_alive:
            gone = worker_pb2.WorkerGone(address=batch.destination, failure=node_died(node_id))
            self.out.append(to_client(worker_id, worker_gone=gone))
            return
        self.contact(worker_id, node_id, target)
        self.out.append(Send(node_id, raylet_pb2.PeerMessage(relay=batch)))

    def connection_wanted(self, worker_id: bytes, message: worker_pb2.ChannelOpen) -> None:
        """A client would like a connection of its own to a worker of another node, which lives."""
        node_id, target = message.target_node_id, message.target_worker_id
        self.contact(worker_id, node_id, target)
        self.out.append(ConnectWorkers(worker_id, node_id, target))

    def connection_came(self, hello: raylet_pb2.ChannelHello, fd: int, encrypted: bool = False) -> None:
        """A worker of another node, which lives, has a connection for one of ours."""
        source, target = hello.source, hello.target_worker_id
        if target not in self.clients:
            self.out.append(CloseFd(fd))
            return
        self.listen_from(target, source.node_id)
        self.contact(target, source.node_id, source.worker_id)
        offer = worker_pb2.ChannelOffer(source=source, connection=True, encrypted=encrypted)
        self.out.append(to_client(target, fd, channel_offer=offer))

    def watch_requested(self, worker_id: bytes, watch: worker_pb2.WatchWorker, node_alive: bool) -> None:
        """A client must hear of the end of a worker that it has no channel to."""
        node_id, target = watch.address.node_id, watch.address.worker_id
        if node_id == self.node_id:
            if target in self.clients:
                self.listen(target, worker_id)
            else:
                self.out.append(to_client(worker_id, worker_gone=self._gone(target)))
        elif node_alive:
            self.contact(worker_id, node_id, target)
            self.out.append(Send(node_id, raylet_pb2.PeerMessage(watch=watch)))
        else:
            gone = worker_pb2.WorkerGone(address=watch.address, failure=node_died(node_id))
            self.out.append(to_client(worker_id, worker_gone=gone))

    # ---- from other raylets ----

    def peer_watches(self, node_id: bytes, watch: worker_pb2.WatchWorker) -> None:
        """Clients of another node must hear of the end of one of ours."""
        target = watch.address.worker_id
        if target in self.clients:
            self.listen_from(target, node_id)
        else:
            self.out.append(Send(node_id, raylet_pb2.PeerMessage(worker_gone=self._gone(target))))

    def relay_arrived(self, node_id: bytes, batch: worker_pb2.RelayBatch) -> None:
        """Frames from a worker of another node for one of ours."""
        target = batch.destination.worker_id
        if target not in self.clients:
            self.out.append(Send(node_id, raylet_pb2.PeerMessage(worker_gone=self._gone(target))))
            return
        self.listen_from(target, node_id)
        self.contact(target, node_id, batch.source.worker_id)  # it will answer: the sender's end matters too
        self.out.append(ToClient(target, worker_pb2.ToWorker(relay=batch)))

    def peer_worker_gone(self, gone: worker_pb2.WorkerGone) -> None:
        """A worker of another node has ended: tell those here who were in contact with it."""
        by_worker = self.contacts.get(gone.address.node_id, {})
        for client in by_worker.pop(gone.address.worker_id, {}):
            if client in self.clients:
                self.out.append(to_client(client, worker_gone=gone))

    def peer_lost(self, node_id: bytes, failure: common.Failure) -> None:
        """A whole node has ended."""
        for nodes in self.remote_listeners.values():
            nodes.pop(node_id, None)
        for worker_id, clients in self.contacts.pop(node_id, {}).items():
            address = common.Address(node_id=node_id, worker_id=worker_id)
            gone = worker_pb2.WorkerGone(address=address, failure=failure)
            for client in clients:
                if client in self.clients:
                    self.out.append(to_client(client, worker_gone=gone))

    def location_changed(self, update: worker_pb2.LocationUpdate) -> None:
        """Tell an object's owner, on whichever node it lives, that a copy came or went."""
        if update.owner.node_id != self.node_id:
            self.out.append(Send(update.owner.node_id, raylet_pb2.PeerMessage(location=update)))
        elif update.owner.worker_id in self.clients:
            self.out.append(to_client(update.owner.worker_id, location=update))

    def copies_watched(self, watch: worker_pb2.WatchCopies) -> None:
        """We want news of an object's copies, or none any more: its owner is told, wherever it lives."""
        if watch.owner.node_id != self.node_id:
            self.out.append(Send(watch.owner.node_id, raylet_pb2.PeerMessage(watch_copies=watch)))
        elif watch.owner.worker_id in self.clients:
            self.out.append(to_client(watch.owner.worker_id, watch_copies=watch))

    def peer_watches_copies(self, node_id: bytes, watch: worker_pb2.WatchCopies) -> None:
        """The raylet of another node wants news from one of our clients, which must hear of its end, then."""
        watch.node_id = node_id
        owner = watch.owner.worker_id
        if owner in self.clients:
            self.contact(owner, node_id, b"")
            self.out.append(to_client(owner, watch_copies=watch))
        elif not watch.ends:
            over = worker_pb2.CopiesNews(object_id=watch.object_id, over="its owner has ended")
            self.out.append(Send(node_id, raylet_pb2.PeerMessage(copies_news=over)))

    # ---- back-pressure ----

    def client_congested(self, worker_id: bytes, congested: bool) -> None:
        """A client of this node lets frames pile up here (or no more): those who send to it hold back."""
        address = common.Address(node_id=self.node_id, worker_id=worker_id)
        hold = worker_pb2.RelayHold(destination=address, hold=congested)
        for client in self.listeners.get(worker_id, {}):
            self.out.append(to_client(client, relay_hold=hold))
        for node_id in self.remote_listeners.get(worker_id, {}):
            self.out.append(Send(node_id, raylet_pb2.PeerMessage(relay_hold=hold)))

    def peer_worker_congested(self, hold: worker_pb2.RelayHold) -> None:
        """The same from another raylet, about one of its clients."""
        by_worker = self.contacts.get(hold.destination.node_id, {})
        for client in by_worker.get(hold.destination.worker_id, {}):
            if client in self.clients:
                self.out.append(to_client(client, relay_hold=hold))

    # ---- interest ----

    def listen(self, target: bytes, client: bytes) -> None:
        """`client` (of this node) must hear of the end of `target` (of this node)."""
        if target in self.clients:
            self.listeners.setdefault(target, {})[client] = None

    def listen_from(self, target: bytes, node_id: bytes) -> None:
        """Another raylet must hear of the end of `target` (of this node; a peer may name others)."""
        if target in self.clients:
            self.remote_listeners.setdefault(target, {})[node_id] = None

    def contact(self, client: bytes, node_id: bytes, target: bytes) -> None:
        """`client` (of this node) must hear of the end of `target` on another node."""
        self.contacts.setdefault(node_id, {}).setdefault(target, {})[client] = None

    def client_gone(self, worker_id: bytes, failure: common.Failure, intended: bool) -> None:
        """A client of this node has ended (it is out of `clients` already): tell all listeners."""
        address = common.Address(node_id=self.node_id, worker_id=worker_id)
        gone = worker_pb2.WorkerGone(address=address, failure=failure, intended=intended)
        if len(self.dead) >= DEAD_KEPT:
            del self.dead[next(iter(self.dead))]
        self.dead[worker_id] = gone
        for client in self.listeners.pop(worker_id, {}):
            if client in self.clients:
                self.out.append(to_client(client, worker_gone=gone))
        for node_id in self.remote_listeners.pop(worker_id, {}):
            self.out.append(Send(node_id, raylet_pb2.PeerMessage(worker_gone=gone)))
        for clients in self.listeners.values():
            clients.pop(worker_id, None)
        for by_worker in self.contacts.values():
            for clients in by_worker.values():
                clients.pop(worker_id, None)

    def _gone(self, worker_id: bytes) -> worker_pb2.WorkerGone:
        known = self.dead.get(worker_id)
        if known is not None:
            return known
        address = common.Address(node_id=self.node_id, worker_id=worker_id)
        failure = common.Failure(
            kind=common.WORKER_DIED, node_id=self.node_id, worker_id=worker_id,
            message=f"worker {worker_id.hex()[:8]} is not on node {self.node_id.hex()[:8]} (any more)")
        return worker_pb2.WorkerGone(address=address, failure=failure)

    def check(self) -> None:
        """Only live clients are listened to."""
        for target in self.listeners:
            assert target in self.clients, "a listener waits for a client that has ended"
        for target in self.remote_listeners:
            assert target in self.clients, "a node waits for a client that has ended"


def node_died(node_id: bytes, cause: str = "") -> common.Failure:
    """The failure of everything that was on a dead node."""
    text = f"node {node_id.hex()[:8]} has died" + (f": {cause}" if cause else "")
    return common.Failure(kind=common.NODE_DIED, node_id=node_id, message=text)
