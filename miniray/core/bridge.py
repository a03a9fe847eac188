"""Requests and subscriptions of this node's clients at the GCS, carried over the raylet's link.

Each `ControlRequest` is forwarded with an id of the raylet's own and remembered until it is
answered; after the GCS has restarted all unanswered ones are sent again (they are idempotent by
sender and request id there). Subscriptions are kept once per (channel, key) at the GCS and fanned
out here; the last publication of each is kept for those who subscribe later.

Pure; runs inside `core.node.Node`. Requests of the raylet itself use `worker_id` b"" and an
`on_reply` callback of the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2
from miniray.core.contract import HEAD, Send
from miniray.core.node_effects import to_client

Topic = tuple[str, bytes]
Reply = Callable[[float, gcs_pb2.ControlReply], None]


@dataclass(slots=True)
class Pending:
    """One request that the GCS has not answered."""

    worker_id: bytes
    original_id: int
    request: gcs_pb2.ControlRequest
    on_reply: Reply | None = None


@dataclass(slots=True)
class Subscription:
    """One (channel, key) that this raylet receives, and who here wants it."""

    clients: dict[bytes, None] = field(default_factory=dict)
    mine: bool = False
    """The raylet itself wants it."""
    last: gcs_pb2.Publication | None = None
    cursor: int = 0


@dataclass(slots=True)
class Bridge:
    """See the module head."""

    out: list[Any]
    node_id: bytes
    pending: dict[int, Pending] = field(default_factory=dict)
    subscriptions: dict[Topic, Subscription] = field(default_factory=dict)
    next_id: int = 1

    # ---- requests ----

    def client_requested(self, worker_id: bytes, request: gcs_pb2.ControlRequest) -> None:
        """Forward a client's request, or serve its subscription."""
        request.sender.node_id = self.node_id
        request.sender.worker_id = worker_id
        if request.WhichOneof("body") == "subscribe":
            self._client_subscribed(worker_id, request)
        else:
            self._forward(Pending(worker_id, request.request_id, request))

    def ask(self, on_reply: Reply | None, sender: bytes = b"", **body: Any) -> None:
        """A request of the raylet's own, on behalf of the client `sender` if given."""
        request = gcs_pb2.ControlRequest(**body)
        request.sender.node_id = self.node_id
        request.sender.worker_id = sender
        self._forward(Pending(b"", 0, request, on_reply))

    def _forward(self, entry: Pending) -> None:
        entry.request.request_id = self.next_id
        self.pending[self.next_id] = entry
        self.next_id += 1
        self.out.append(Send(HEAD, gcs_pb2.NodeMessage(request=entry.request)))

    def reply_arrived(self, now: float, reply: gcs_pb2.ControlReply) -> None:
        """Pass an answer on to whoever asked; answers nobody waits for are dropped."""
        entry = self.pending.pop(reply.request_id, None)
        if entry is None:
            return
        if entry.on_reply is not None:
            entry.on_reply(now, reply)
        elif entry.worker_id:
            answer = gcs_pb2.ControlReply()
            answer.CopyFrom(reply)  # a GCS in this process may keep its own
            answer.request_id = entry.original_id
            self.out.append(to_client(entry.worker_id, control=answer))

    def gcs_restarted(self) -> None:
        """Ask again what was not answered, and subscribe again from the cursors reached."""
        for request_id, entry in list(self.pending.items()):
            if entry.request.WhichOneof("body") == "subscribe":
                del self.pending[request_id]
            else:
                self.out.append(Send(HEAD, gcs_pb2.NodeMessage(request=entry.request)))
        for (channel, key), subscription in self.subscriptions.items():
            self._subscribe(channel, key, subscription.cursor)

    def client_gone(self, worker_id: bytes) -> None:
        """Forget the client's subscriptions; its mutating requests still run their course.

        But a GCS that starts afresh hears of its end before it hears of them: it would make an actor
        or a placement group that nobody owns.
        """
        for request_id, entry in list(self.pending.items()):
            if entry.worker_id == worker_id:
                entry.worker_id = b""
                if _ends_with_its_sender(entry.request):
                    del self.pending[request_id]
        for topic, subscription in list(self.subscriptions.items()):
            if worker_id in subscription.clients:
                del subscription.clients[worker_id]
                self._end_if_unwanted(topic, subscription)

    # ---- subscriptions ----

    def subscribe(self, channel: str, key: bytes) -> None:
        """The raylet itself wants this topic."""
        subscription = self._open((channel, key))
        subscription.mine = True

    def _client_subscribed(self, worker_id: bytes, request: gcs_pb2.ControlRequest) -> None:
        topic = (request.subscribe.channel, request.subscribe.key)
        reply = gcs_pb2.ControlReply(request_id=request.request_id)
        if request.subscribe.unsubscribe:
            known = self.subscriptions.get(topic)
            if known is not None and worker_id in known.clients:
                del known.clients[worker_id]
                self._end_if_unwanted(topic, known)
            self.out.append(to_client(worker_id, control=reply))
            return
        subscription = self._open(topic)
        subscription.clients[worker_id] = None
        self.out.append(to_client(worker_id, control=reply))
        if subscription.last is not None:
            self.out.append(to_client(worker_id, publication=subscription.last))

    def _open(self, topic: Topic) -> Subscription:
        subscription = self.subscriptions.get(topic)
        if subscription is None:
            subscription = self.subscriptions[topic] = Subscription()
            self._subscribe(topic[0], topic[1], 0)
        return subscription

    def _subscribe(self, channel: str, key: bytes, cursor: int, unsubscribe: bool = False) -> None:
        self.ask(None, subscribe=gcs_pb2.Subscribe(
            channel=channel, key=key, cursor=cursor, unsubscribe=unsubscribe))

    def _end_if_unwanted(self, topic: Topic, subscription: Subscription) -> None:
        if not subscription.clients and not subscription.mine:
            del self.subscriptions[topic]
            self._subscribe(topic[0], topic[1], 0, unsubscribe=True)

    def published(self, publication: gcs_pb2.Publication) -> bool:
        """Fan a publication out. True when the raylet itself wants it too."""
        mine = False
        for key in dict.fromkeys((publication.key, b"")):
            subscription = self.subscriptions.get((publication.channel, key))
            if subscription is None:
                continue
            mine = mine or subscription.mine
            subscription.cursor = max(subscription.cursor, publication.cursor)
            if key and publication.WhichOneof("body") != "data":
                subscription.last = publication
            for worker_id in subscription.clients:
                self.out.append(to_client(worker_id, publication=publication))
        return mine


def _ends_with_its_sender(request: gcs_pb2.ControlRequest) -> bool:
    if request.WhichOneof("body") == "group_create":
        return not request.group_create.info.detached
    return request.WhichOneof("body") == "actor_register" and not request.actor_register.spec.detached


def refused(kind: common.ErrorKind, message: str, request_id: int) -> gcs_pb2.ControlReply:
    """A refusal in the form that clients expect."""
    return gcs_pb2.ControlReply(
        request_id=request_id, failure=common.Failure(kind=kind, message=message))
