"""Hollow nodes: real raylet machines whose processes and stores are played, on real links to a real head.

Both ends of each link pack, encode and decode their packets as the daemons do; only gRPC and the
sockets are missing. What the head's side does is metered, callback by callback.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import node_effects
from miniray.core.contract import HEAD, Persist, Send
from miniray.core.head import Head, HeadOptions
from miniray.core.link import STREAM, Deliver, Link, Transmit
from miniray.core.members import Timing
from miniray.core.node import Node
from miniray.runtime.storage import Storage

from .clock import Clock, Meter

WIRE_S = 0.0005
FORK_S = 0.004
TURN_S = 0.001
"""What arrives within one of these is one turn of the head."""

STORE_BYTES = 1 << 30

OWN, NEWS = "own", "news"
"""What the head's time goes to: what was asked of it, and telling every node what has changed."""


class HollowHead:
    """The real `Head` behind real links and a real storage; `meter` counts all that it does."""

    def __init__(self, clock: Clock, storage: Storage) -> None:
        self.clock = clock
        self.meter = Meter((OWN, NEWS))
        self.storage = storage
        # nodes beat when a probe says so: nobody is dead for being silent
        self.head = Head(Random(1), HeadOptions(epoch=storage.claim(), timing=Timing(silent_s=1e9)))
        self.head.restore(0.0, storage.load())
        self._count_as_news(self.head.members, "_tell")
        self._count_as_news(self.head.pubsub, "_send_gathered")
        self.nodes: dict[bytes, HollowNode] = {}
        self.packets_sent = self.bytes_sent = 0
        self._links: dict[bytes, Link] = {}
        self._awake: dict[bytes, str] = {}
        """Links with something to write, and whether it is more than news."""
        self._turn_due: float | None = None
        self._links_due: dict[bytes, float] = {}

    def _count_as_news(self, part: Any, method: str) -> None:
        call = getattr(part, method)
        setattr(part, method, lambda *arguments: self.meter.measured(NEWS, call, *arguments))

    def attach(self, node: HollowNode) -> None:
        """A node's stream has come."""
        self.nodes[node.id] = node
        link = self._links[node.id] = Link(len(self._links) + 1, gcs.Packet, STREAM, connected=False)
        link.connected(self.clock.now)
        self.meter.measured(OWN, self.head.node_connected, self.clock.now, node.id)
        self._woken(node.id, OWN)

    def arrived(self, node_id: bytes, data: bytes) -> None:
        """A packet of this node, encoded."""
        has_more = self.meter.measured(OWN, self._packet, node_id, data)
        self._woken(node_id, OWN if has_more else NEWS)

    def _packet(self, node_id: bytes, data: bytes) -> bool:
        """Whether it was more than an acknowledgement."""
        link = self._links[node_id]
        packet = gcs.Packet.FromString(data)
        if not packet.messages:
            # it acknowledges news: what is asked for is acknowledged by what follows
            self.meter.turns_out(NEWS)
        link.packet_received(self.clock.now, packet)
        effects, link.out = link.out, []
        for effect in effects:
            if type(effect) is Deliver:
                self.head.node_message(self.clock.now, node_id, effect.message)
        return bool(packet.messages)

    # ---- turns, as `runtime.gcs` takes them

    def _woken(self, node_id: bytes, kind: str) -> None:
        self._awake[node_id] = OWN if self._awake.get(node_id) == OWN else kind
        self._turn_at(self.clock.now + TURN_S)

    def _turn_at(self, due: float) -> None:
        if self._turn_due is None or due < self._turn_due:
            self._turn_due = due
            self.clock.at(due, self._turn, due)

    def _turn(self, due: float) -> None:
        if due != self._turn_due:
            return
        self._turn_due = None
        self.meter.measured(OWN, self._flush)
        awake, self._awake = self._awake, {}
        for node_id, kind in awake.items():
            data = self.meter.measured(kind, self._written, self._links[node_id])
            for packet in data:
                self.clock.at(self.clock.now + WIRE_S, self.nodes[node_id].arrived, packet)
            again = self._links[node_id].next_deadline()
            if again is not None and self._links_due.get(node_id) != again:
                self._links_due[node_id] = again
                self.clock.at(again, self._link_due, node_id, again)
        deadline = self.head.next_deadline()
        if deadline is not None:
            self._turn_at(max(deadline, self.clock.now + TURN_S))

    def _flush(self) -> None:
        now = self.clock.now
        deadline = self.head.next_deadline()
        if deadline is not None and deadline <= now:
            self.head.tick(now)
        effects, self.head.out = self.head.out, []
        rows = [(e.table, e.key, e.value) for e in effects if type(e) is Persist]
        if rows:
            self.storage.apply(rows)
        for kind, sends in self.meter.measured(NEWS, self._sorted, effects):
            self.meter.measured(kind, self._send, sends, kind)

    def _sorted(self, effects: list[Any]) -> list[tuple[str, list[Send]]]:
        """What is sent, in order, news apart from the rest."""
        sends = [effect for effect in effects if type(effect) is Send and effect.peer in self._links]
        runs = itertools.groupby(sends, lambda send: _is_news(send.message))
        return [(NEWS if is_news else OWN, list(some)) for is_news, some in runs]

    def _send(self, effects: list[Send], kind: str) -> None:
        for effect in effects:
            self._links[effect.peer].send(effect.message)
            if self._awake.get(effect.peer) != OWN:
                self._awake[effect.peer] = kind

    def _written(self, link: Link) -> list[bytes]:
        link.tick(self.clock.now)
        effects, link.out = link.out, []
        data = [effect.packet.SerializeToString() for effect in effects if type(effect) is Transmit]
        self.packets_sent += len(data)
        self.bytes_sent += sum(map(len, data))
        return data

    def _link_due(self, node_id: bytes, due: float) -> None:
        if self._links_due.get(node_id) == due:
            self._links_due.pop(node_id)
            self._woken(node_id, NEWS)


def _is_news(message: gcs.NodeMessage) -> bool:
    """Whether it is one of those that every node gets."""
    kind = message.WhichOneof("body")
    if kind == "publication":
        return message.publication.channel == "worker"
    return kind == "publications" or (kind == "view" and not message.view.full)


class HollowNode:
    """The real `Node`; its workers register when they are started and say yes to every actor."""

    def __init__(self, clock: Clock, head: HollowHead, number: int, cpus: int, *, sees: bool) -> None:
        """`sees`: it reads the views of the cluster; the others' would fill this machine's memory."""
        self.clock = clock
        self.head = head
        self.sees = sees
        self.id = number.to_bytes(4, "big") * 7
        info = common.NodeInfo(
            node_id=self.id, node_name=f"node-{number}", host=f"10.0.{number >> 8}.{number & 255}", port=6380,
            hostname=f"machine-{number}", pid=1, session_dir=f"/tmp/miniray-1000-{number:08x}",
        )  # fmt: skip
        info.total.amounts.update({"CPU": cpus * 10_000, "memory": 64 << 40, f"node:10.0.0.{number}": 10_000})
        self.node = Node(info, Random(number), store_bytes=STORE_BYTES)
        self.workers: list[bytes] = []
        self.granted: dict[int, int] = {}
        """Leases by the number of the request."""
        self.replies: list[gcs.ControlReply] = []
        self.job_ids: list[bytes] = []
        self.actors = 0
        self._link = Link(1, gcs.Packet, STREAM, connected=False)
        self._requests = itertools.count(1)
        self._due: float | None = None
        head.attach(self)
        self._link.connected(clock.now)
        self.node.started(clock.now)
        self.settle()

    def has_cpu(self, units: int) -> bool:
        """Whether a task of so much would start here at once."""
        return self.node.resources.available["CPU"] >= units

    # ---- what its processes say

    def register_worker(self, worker_id: bytes, token: bytes) -> None:
        """A forked worker is up."""
        self.workers.append(worker_id)
        register = wire.Register(startup_token=token, pid=2)
        self.node.worker_registered(self.clock.now, worker_id, 2, 1, register)
        self.settle()

    def register_driver(self, worker_id: bytes) -> None:
        """A driver joins here."""
        job = gcs.JobStart(entrypoint="scale.py", namespace="scale")
        register = wire.Register(is_driver=True, pid=3, job=job)
        self.node.worker_registered(self.clock.now, worker_id, 3, 2, register)
        self.settle()

    def say(self, worker_id: bytes, **body: Any) -> None:
        """One message of one of its processes."""
        self.node.worker_message(self.clock.now, worker_id, wire.ToRaylet(**body))
        self.settle()

    def request(self, worker_id: bytes, **body: Any) -> None:
        """A request of one of its processes to the GCS."""
        sender = common.Address(node_id=self.id, worker_id=worker_id)
        number = next(self._requests)
        self.say(worker_id, control=gcs.ControlRequest(request_id=number, sender=sender, **body))

    def register(self) -> None:
        """The head is a new one: say who this is and what runs here."""
        self.node.head_restarted(self.clock.now)
        self.settle()

    def beat(self) -> None:
        """A heartbeat, now."""
        self.node.heartbeat_at = self.clock.now
        self._tick(self._due)

    def leave(self) -> None:
        """Drained, it takes its leave."""
        self.node.end_requested(self.clock.now, "it was drained", drained=True)
        self.settle()

    # ---- links and effects

    def arrived(self, data: bytes) -> None:
        """A packet of the head, encoded."""
        self._link.packet_received(self.clock.now, gcs.Packet.FromString(data))
        self.settle()

    def peer_message(self, node_id: bytes, message: Any) -> None:
        """A message of another raylet."""
        self.node.peer_message(self.clock.now, node_id, message)
        self.settle()

    def settle(self) -> None:
        """Carry out what the machine and its link want, and come again when they are due."""
        node, link, now = self.node, self._link, self.clock.now
        while True:
            for effect in self._taken(node):
                self._effect(effect)
            link.tick(now)
            effects, link.out = link.out, []
            for item in effects:
                if type(item) is Transmit:
                    data = item.packet.SerializeToString()
                    self.clock.at(now + WIRE_S, self.head.arrived, self.id, data)
                elif type(item) is Deliver and (self.sees or item.message.WhichOneof("body") != "view"):
                    node.head_message(now, item.message)
            if not node.out and not link.out:
                break
        dues = [due for due in (node.next_deadline(), link.next_deadline()) if due is not None]
        due = max(min(dues), now + 1e-6)
        if due != self._due:
            self._due = due
            self.clock.at(due, self._tick, due)

    @staticmethod
    def _taken(node: Node) -> list[Any]:
        effects = list(node.out)
        del node.out[: len(effects)]
        return effects

    def _tick(self, due: float | None) -> None:
        if due == self._due:
            self._due = None
            self.node.tick(self.clock.now)
            self.settle()

    def _effect(self, effect: Any) -> None:
        if type(effect) is Send and effect.peer == HEAD:
            self._link.send(effect.message)
        elif type(effect) is Send:
            other = self.head.nodes[effect.peer]
            self.clock.at(self.clock.now + WIRE_S, other.peer_message, self.id, effect.message)
        elif type(effect) is node_effects.StartWorker:
            worker_id = self.id[:20] + len(self.workers).to_bytes(4, "big") + effect.startup_token[:4]
            self.clock.at(self.clock.now + FORK_S, self.register_worker, worker_id, effect.startup_token)
        elif type(effect) is node_effects.StopWorker and effect.worker_id:
            self.clock.at(self.clock.now + FORK_S, self._ended, effect.worker_id)
        elif type(effect) is node_effects.ToClient:
            self._told(effect.worker_id, effect.message)

    def _ended(self, worker_id: bytes) -> None:
        if worker_id in self.workers:
            self.workers.remove(worker_id)
        failure = common.Failure(kind=common.WORKER_DIED, message="killed by SIGKILL")
        self.node.worker_exited(self.clock.now, worker_id, failure)
        self.settle()

    def _told(self, worker_id: bytes, message: wire.ToWorker) -> None:
        kind = message.WhichOneof("body")
        if kind == "start_actor":
            self.actors += 1
            start = message.start_actor
            ready = wire.ActorReady(actor_id=start.spec.actor_id, attempt=start.attempt)
            self.clock.at(self.clock.now, self._ready, worker_id, ready)
        elif kind == "lease_reply" and message.lease_reply.worker.worker_id:
            self.granted[message.lease_reply.request_id] = message.lease_reply.lease_id
        elif kind == "exit":
            self.clock.at(self.clock.now + FORK_S, self._ended, worker_id)
        elif kind == "control":
            self.replies.append(message.control)
        elif kind == "registered" and message.registered.job_id:
            self.job_ids.append(message.registered.job_id)

    def _ready(self, worker_id: bytes, ready: wire.ActorReady) -> None:
        self.say(worker_id, actor_ready=ready)
