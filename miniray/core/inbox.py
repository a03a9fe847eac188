"""What clients of this node (workers and drivers) say to their raylet, one method per message.

Senders are who the socket says they are: addresses inside a message that name its sender are
overwritten before anything reads them. What concerns a worker of another node is passed on to its
raylet, if that node lives. Pure; part of `core.node.Node`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2, gcs_pb2, raylet_pb2, worker_pb2
from miniray.core.contract import Send
from miniray.core.ids import OBJECT_ID_SIZE
from miniray.core.node_effects import CloseFd, DropClient, to_client
from miniray.core.pool import DRIVER, Worker

if TYPE_CHECKING:
    from miniray.core.node import Node


class Inbox:
    """See the module head."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def receive(self, now: float, worker: Worker, message: worker_pb2.ToRaylet, fd: int | None) -> None:
        """One message of a registered client; `fd` came with it."""
        kind = message.WhichOneof("body")
        if kind == "channel_open" and message.channel_open.target_node_id in (b"", self.node.node_id):
            self.node.relay.channel_opened(worker.worker_id, message.channel_open, fd)
            return
        if fd is not None:
            self.node.out.append(CloseFd(fd))
        handler = _HANDLERS.get(kind) if kind is not None else None
        if handler is not None:
            handler(self, now, worker, getattr(message, kind))

    def _to_peer(self, now: float, node_id: bytes, **body: Any) -> None:
        if self.node.neighbours.reached(now, node_id):
            self.node.out.append(Send(node_id, raylet_pb2.PeerMessage(**body)))

    def _on_lease_request(self, now: float, worker: Worker, message: worker_pb2.LeaseRequest) -> None:
        message.requester.node_id, message.requester.worker_id = self.node.node_id, worker.worker_id
        message.hops = 0
        self.node.leases.requested(now, message, b"")

    def _on_lease_cancel(self, now: float, worker: Worker, message: worker_pb2.LeaseCancel) -> None:
        message.requester.node_id, message.requester.worker_id = self.node.node_id, worker.worker_id
        self.node.leases.cancelled(now, message)

    def _on_lease_return(self, now: float, worker: Worker, message: worker_pb2.LeaseReturn) -> None:
        self.node.lease_returned(now, message)

    def _on_relay(self, now: float, worker: Worker, message: worker_pb2.RelayBatch) -> None:
        alive = self.node.neighbours.reached(now, message.destination.node_id)
        self.node.relay.relay_sent(worker.worker_id, message, alive)

    def _on_connection_wanted(self, now: float, worker: Worker, message: worker_pb2.ChannelOpen) -> None:
        if self.node.neighbours.reached(now, message.target_node_id):
            self.node.relay.connection_wanted(worker.worker_id, message)

    def _on_blocked(self, now: float, worker: Worker, message: worker_pb2.WorkerBlocked) -> None:
        self.node.leases.blocked(now, worker, message.blocked)

    def _on_make_room(self, now: float, worker: Worker, message: worker_pb2.MakeRoom) -> None:
        self.node.memory.room_requested(now, message, worker.worker_id)

    def _on_pull(self, now: float, worker: Worker, message: worker_pb2.PullRequest) -> None:
        if len(message.object_id) != OBJECT_ID_SIZE:
            wrong = f"an object's id has {OBJECT_ID_SIZE} bytes, not {len(message.object_id)}"
            failure = common_pb2.Failure(kind=common_pb2.INVALID_ARGUMENT, message=wrong)
            reply = worker_pb2.PullReply(request_id=message.request_id, failure=failure)
            self.node.out.append(to_client(worker.worker_id, pull=reply))
            return
        for node_id in message.locations:
            self.node.neighbours.reached(now, node_id)
        self.node.transfer.pull_requested(now, worker.worker_id, message)

    def _on_pull_cancel(self, now: float, worker: Worker, message: worker_pb2.PullCancel) -> None:
        self.node.transfer.pull_cancelled(now, worker.worker_id, message.request_id)

    def _on_copies_news(self, now: float, worker: Worker, message: worker_pb2.CopiesNews) -> None:
        nodes = list(message.subscribers)
        del message.subscribers[:]
        for node_id in nodes:
            if node_id == self.node.node_id:
                self.node.copies_news(now, node_id, message)
            else:
                self._to_peer(now, node_id, copies_news=message)

    def _on_object_sealed(self, now: float, worker: Worker, message: worker_pb2.ObjectSealed) -> None:
        if len(message.object_id) == OBJECT_ID_SIZE:
            owner = (message.owner.node_id, message.owner.worker_id)
            self.node.memory.object_sealed(message.object_id, message.size, owner, now, worker.worker_id)

    def _on_free_objects(self, now: float, worker: Worker, message: worker_pb2.FreeObjects) -> None:
        here = not message.node_ids
        for node_id in message.node_ids:
            if node_id == self.node.node_id:
                here = True
            else:
                freed = worker_pb2.FreeObjects(object_ids=message.object_ids)
                self._to_peer(now, node_id, free_objects=freed)
        if here:
            self.node.free(now, message.object_ids)

    def _on_control(self, now: float, worker: Worker, message: gcs_pb2.ControlRequest) -> None:
        self.node.bridge.client_requested(worker.worker_id, message)

    def _on_task_events(self, now: float, worker: Worker, message: gcs_pb2.TaskEventBatch) -> None:
        self.node.tell_head(task_events=message)

    def _on_actor_ready(self, now: float, worker: Worker, message: worker_pb2.ActorReady) -> None:
        self.node.hosting.ready(now, worker, message)

    def _on_exiting(self, now: float, worker: Worker, message: worker_pb2.Exiting) -> None:
        worker.intended = message.intended
        worker.reason = message.reason
        worker.ended_by = message.ended_by
        if worker.state == DRIVER:  # its connection may live on in a forked child
            self.node.out.append(DropClient(worker.worker_id))

    def _on_exit_refused(self, now: float, worker: Worker, message: worker_pb2.ExitRefused) -> None:
        self.node.leases.leave_refused(now, worker)

    def _on_current_task(self, now: float, worker: Worker, message: worker_pb2.CurrentTask) -> None:
        worker.current_task = message.name

    def _on_counted(self, now: float, worker: Worker, message: gcs_pb2.CensusPart) -> None:
        self.node.census.answered(worker.worker_id, message)

    def _on_finding(self, now: float, worker: Worker, message: gcs_pb2.Finding) -> None:
        self.node.inquiries.answered(worker, message)

    def _on_kill(self, now: float, worker: Worker, message: worker_pb2.KillRequest) -> None:
        if message.worker.node_id == self.node.node_id:
            self.node.kill(now, message)
        else:
            self._to_peer(now, message.worker.node_id, kill=message)

    def _on_watch(self, now: float, worker: Worker, message: worker_pb2.WatchWorker) -> None:
        alive = self.node.neighbours.reached(now, message.address.node_id)
        self.node.relay.watch_requested(worker.worker_id, message, alive)


_HANDLERS: dict[str, Any] = {
    "channel_open": Inbox._on_connection_wanted,
    "lease_request": Inbox._on_lease_request, "lease_cancel": Inbox._on_lease_cancel,
    "lease_return": Inbox._on_lease_return, "relay": Inbox._on_relay, "blocked": Inbox._on_blocked,
    "make_room": Inbox._on_make_room, "pull": Inbox._on_pull, "pull_cancel": Inbox._on_pull_cancel,
    "object_sealed": Inbox._on_object_sealed, "free_objects": Inbox._on_free_objects,
    "control": Inbox._on_control, "task_events": Inbox._on_task_events,
    "actor_ready": Inbox._on_actor_ready, "exiting": Inbox._on_exiting,
    "current_task": Inbox._on_current_task, "kill": Inbox._on_kill, "watch": Inbox._on_watch,
    "exit_refused": Inbox._on_exit_refused, "counted": Inbox._on_counted,
    "copies_news": Inbox._on_copies_news, "finding": Inbox._on_finding,
}
