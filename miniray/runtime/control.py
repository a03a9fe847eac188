"""A worker's dealings with its raylet: requests and answers, news, and the thread that reads them.

The I/O thread reads the raylet's socket and hands each message to the machine under the worker's
lock, or completes the `Reply` that somebody waits for. Requests to the GCS go the same way: the
raylet passes them on. When the socket ends, a worker process ends; in a driver everything
unfinished fails with the reason.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core.directory import FAILED
from miniray.exceptions import GetTimeoutError, RaySystemError
from miniray.runtime.errors import exception_of
from miniray.runtime.waiting import Reply

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

logger = logging.getLogger("miniray")


class Control:
    """One per CoreWorker."""

    def __init__(self, worker: CoreWorker) -> None:
        self.worker = worker
        self._replies: dict[int, Reply] = {}
        self._next_request = 0
        self.loss: pb.Failure | None = None
        """Why a driver has no raylet any more; what is begun after that fails, too."""
        self._subscriptions: dict[tuple[str, bytes], list[Callable[[Any], None]]] = {}
        self._thread = threading.Thread(target=self._read, name="miniray-io", daemon=True)

    def start(self) -> None:
        """Start the I/O thread."""
        self.worker.raylet.wait_readable = self.worker.connections.wait_readable
        self._thread.start()

    def join(self) -> None:
        """The socket is closed: wait for the thread's end and fail what still waits."""
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join(2.0)
        self.fail_all()

    def await_goodbye(self, within_s: float = 1.0) -> None:
        """We said that we leave: the raylet ends the connection behind the last it has for us."""
        if threading.current_thread() is not self._thread:
            self._thread.join(within_s)

    def fail_all(self) -> None:
        """Nobody will answer any more."""
        for reply in list(self._replies.values()):
            reply.set(None)

    def request(self, field: str, message: Any, timeout: float | None = 60.0) -> gcs.ControlReply:
        """One control-plane request; raises the typed error of a refusal, GetTimeoutError if no answer."""
        reply = self.request_async(field, message)
        if not reply.wait(timeout):
            raise GetTimeoutError(
                f"the control plane did not answer {field} within {timeout} s: is the head reachable?"
            )
        answer = reply.value
        if answer is None and self.loss is not None:
            raise exception_of(self.loss)
        if answer is None:
            raise RaySystemError("the connection to the raylet ended")
        if answer.failure.kind:
            raise exception_of(answer.failure)
        return answer  # type: ignore[no-any-return]

    def request_async(self, field: str, message: Any, callback: Callable[[Any], None] | None = None) -> Reply:
        """Send a control-plane request; `callback(reply)` runs on the I/O thread without the lock."""
        reply, number = self.expect(callback)
        control = gcs.ControlRequest(request_id=number, job_id=self.worker.job_id)
        control.sender.node_id, control.sender.worker_id = self.worker.address
        getattr(control, field).CopyFrom(message)
        getattr(control, field).SetInParent()
        self.worker.raylet.send(wire.ToRaylet(control=control))
        return reply

    def expect(self, callback: Callable[[Any], None] | None = None) -> tuple[Reply, int]:
        """A place for the answer of a request to the raylet, and the request's number."""
        reply = Reply(callback)
        with self.worker.lock:
            self._next_request = number = self._next_request + 1
            self._replies[number] = reply
        if self.worker.raylet.closed:
            reply.set(None)
        return reply, number

    def subscribe(self, channel: str, key: bytes, callback: Callable[[Any], None]) -> None:
        """`callback(publication)` for each later publication; runs on the I/O thread."""
        with self.worker.lock:
            listeners = self._subscriptions.setdefault((channel, key), [])
            listeners.append(callback)
            if len(listeners) > 1:
                return
        self.request_async("subscribe", gcs.Subscribe(channel=channel, key=key))

    def _read(self) -> None:
        while True:
            message = self.worker.raylet.receive()
            if message is None:
                break
            kind = message.WhichOneof("body")
            try:
                handler = _MESSAGES.get(kind)
                if handler is not None:
                    handler(self, getattr(message, kind))
                elif self.worker.executor is not None:
                    self.worker.executor.message(kind, getattr(message, kind))
            except Exception as error:
                logger.exception("message %s from the raylet could not be handled: %s", kind, error)
        self._disconnected()

    def _disconnected(self) -> None:
        if self.worker.closing:
            return
        if not self.worker.is_driver:
            os._exit(1)
        from miniray.runtime import remains

        self._raylet_lost()
        self.fail_all()
        remains.clear_when_dead(self.worker.session_dir)

    def _raylet_lost(self) -> None:
        """A driver without its raylet: everything unfinished fails, by name."""
        from miniray.runtime import kept_logs

        failure = pb.Failure(
            kind=pb.NODE_DIED, message=(
                "this driver's raylet has ended; call miniray.init() again. What it and its workers had "
                f"logged is in {kept_logs.place_of(self.worker.session_dir)}, unless it was told to end"))
        with self.worker.lock:
            self.loss = failure
            self.fail_unfinished(time.monotonic())
            self.worker.drain()
        self.worker.pump.wake()

    def fail_unfinished(self, now: float) -> None:
        """The raylet is lost: what has no value by now will have none. Under the lock."""
        for entry in list(self.worker.owner.directory.objects.values()):
            if not entry.ready:
                self.worker.owner.complete(now, entry, FAILED, self.loss)
                stream = entry.task.stream if entry.task is not None else None
                if stream is not None and stream.length is None:
                    stream.failed(self.loss)
        for client in self.worker.owner.calls.clients.values():
            client.state = "DEAD"
            client.failure = client.failure or self.loss

    def _answered(self, number: int, answer: Any) -> None:
        with self.worker.lock:
            reply = self._replies.pop(number, None)
        if reply is None:
            return
        reply.set(answer)
        if reply.callback is not None:
            reply.callback(answer)

    def _lease_reply(self, message: wire.LeaseReply) -> None:
        now = time.monotonic()
        with self.worker.lock:
            if message.HasField("worker"):
                address = (message.worker.node_id, message.worker.worker_id)
                lane = self.worker.owner.submission.lane_of(message.request_id)
                if lane is not None:
                    terms = wire.LeaseTerms(scheduling_class=lane.spec, slots=message.slots)
                    self.worker.terms[message.lease_id] = terms.SerializeToString()
                self.worker.owner.submission.lease_granted(now, message.request_id, message.lease_id, address)
            elif message.failure.kind:
                self.worker.owner.lease_refused(now, message.request_id, message.failure)
            else:
                self.worker.owner.submission.lease_pending(message.request_id, message.pending_reason)
            self.worker.drain()

    def _lease_revoked(self, message: wire.LeaseRevoked) -> None:
        address = (message.worker.node_id, message.worker.worker_id)
        if message.failure.kind:
            self._worker_gone(wire.WorkerGone(address=message.worker, failure=message.failure))
            return
        with self.worker.lock:
            self.worker.owner.submission.lease_reclaimed(message.lease_id, address)
            self.worker.drain()

    def _channel_offer(self, message: wire.ChannelOffer) -> None:
        fd = self.worker.raylet.take_fd()
        address = (message.source.node_id, message.source.worker_id)
        with self.worker.lock:
            if message.encrypted:
                self.worker.connections.add_encrypted(address, fd, message.dialled)
                return
            if message.connection:
                self.worker.peers.connected_to(self.worker.connections.add(address, fd))
                return
            self.worker.peers.offered(address, fd)
        os.close(fd)

    def _relay_hold(self, message: wire.RelayHold) -> None:
        with self.worker.lock:
            destination = message.destination
            self.worker.peers.hold((destination.node_id, destination.worker_id), message.hold)

    def _channel_refused(self, message: wire.ChannelRefused) -> None:
        self._worker_gone(wire.WorkerGone(address=message.target, failure=message.failure))

    def _worker_gone(self, message: wire.WorkerGone) -> None:
        with self.worker.lock:
            self.worker.departures.announced(message)

    def _relay(self, message: wire.RelayBatch) -> None:
        with self.worker.lock:
            self.worker.peers.carried((message.source.node_id, message.source.worker_id), [message.frames])
            self.worker.drain()
        if self.worker.callbacks:
            self.worker.run_callbacks_apart()

    def _census(self, message: gcs.CensusQuery) -> None:
        from miniray.runtime import census

        census.answer(self.worker, message)

    def _publication(self, message: gcs.Publication) -> None:
        for key in (message.key, b""):
            for callback in list(self._subscriptions.get((message.channel, key), ())):
                callback(message)
            if not message.key:
                break

    def _inquiry(self, message: gcs.Inquiry) -> None:
        from miniray.runtime import answering

        answering.inquired(self.worker, message)

    def _collect_garbage(self, message: wire.CollectGarbage) -> None:
        from miniray.runtime import garbage

        garbage.collect_soon()

    def _location(self, message: wire.LocationUpdate) -> None:
        with self.worker.lock:
            if message.removed:
                self.worker.copy_lost(message.object_id, message.node_id, why=message.reason)
            else:
                self.worker.owner.location_added(message.object_id, message.node_id)
            self.worker.drain()


    def _watch_copies(self, message: wire.WatchCopies) -> None:
        with self.worker.lock:
            subscribers = self.worker.owner.subscribers
            follow = subscribers.ended if message.ends else subscribers.subscribed
            follow(message.object_id, message.node_id)
            self.worker.drain()


_MESSAGES: dict[str | None, Callable[[Control, Any], None]] = {
    "lease_reply": Control._lease_reply,
    "lease_revoked": Control._lease_revoked,
    "channel_offer": Control._channel_offer,
    "channel_refused": Control._channel_refused,
    "worker_gone": Control._worker_gone,
    "relay": Control._relay,
    "relay_hold": Control._relay_hold,
    "room": lambda control, m: control._answered(m.request_id, m),
    "pull": lambda control, m: control._answered(m.request_id, m),
    "control": lambda control, m: control._answered(m.request_id, m),
    "publication": Control._publication,
    "location": Control._location,
    "watch_copies": Control._watch_copies,
    "census": Control._census,
    "inquiry": Control._inquiry,
    "collect_garbage": Control._collect_garbage,
}
