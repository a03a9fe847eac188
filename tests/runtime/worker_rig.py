"""A driver's worker library with everything around it played by the test.

The raylet is a list of what was said and a queue of what is told; another worker is the test's
own end of a ring (`Hand`), or relay batches. One CoreWorker at a time: the library has one per
process.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from miniray import _native
from miniray._proto import common_pb2 as pb
from miniray._proto import worker_pb2 as wire
from miniray.core.circuit import Circuit
from miniray.core.directory import INLINE, Address
from miniray.core.owner import Result
from miniray.runtime import frames
from miniray.runtime import worker as library
from miniray.runtime.transport import split_batch
from miniray.runtime.worker import CoreWorker

SOON_S = 10.0
NODE, ELSEWHERE = b"n" * 28, b"e" * 28
ME: Address = (NODE, b"m" * 28)
JOB = b"\1\0\0\0"


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until the condition is true and return its value."""
    deadline = time.monotonic() + SOON_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.001)
    return value


def address(where: Address) -> pb.Address:
    return pb.Address(node_id=where[0], worker_id=where[1])


class RayletDouble:
    """What `RayletClient` is to the worker: the test hears and speaks for the raylet."""

    def __init__(self) -> None:
        self.said: list[wire.ToRaylet] = []
        self.fds: deque[int] = deque()
        self.closed = False
        self._inbox: queue.SimpleQueue[wire.ToWorker | None] = queue.SimpleQueue()
        self._sent_fds: deque[int] = deque()

    def send(self, message: wire.ToRaylet, fd: int | None = None) -> None:
        if fd is not None:
            self.fds.append(os.dup(fd))
        self.said.append(message)

    def receive(self) -> wire.ToWorker | None:
        message = self._inbox.get()
        if message is None:
            self.closed = True
        return message

    def take_fd(self) -> int:
        return self._sent_fds.popleft()

    def close(self) -> None:
        self.closed = True
        self._inbox.put(None)

    # ---- for the test

    def tell(self, fd: int | None = None, **body: Any) -> None:
        """One message to the worker."""
        if fd is not None:
            self._sent_fds.append(os.dup(fd))
        self._inbox.put(wire.ToWorker(**body))

    def hang_up(self) -> None:
        """The raylet ends."""
        self._inbox.put(None)

    def heard(self, kind: str, count: int = 1) -> Any:
        """The `count`-th message of a kind; waits for it."""

        def find() -> Any:
            found = [message for message in self.said if message.WhichOneof("body") == kind]
            return found[count - 1] if len(found) >= count else None

        return getattr(until(find, f"{kind} number {count}"), kind)


class Hand:
    """Another worker of this node, at the end of a ring that the worker opened."""

    def __init__(self, rig: Rig, where: Address) -> None:
        self.address = where
        self.store = _native.Store.attach(rig.node.fd, rig.node.open_client())
        self.mailbox = _native.Mailbox(self.store)
        self.channel: Any = None
        self._inbox: deque[bytes] = deque()
        self._rig = rig

    def accept(self) -> None:
        """Attach to the ring that the worker has asked its raylet to offer."""
        self._rig.raylet.heard("channel_open")
        fd = self._rig.raylet.fds.popleft()
        self.channel = self.mailbox.attach_channel(self, fd)
        os.close(fd)

    def open(self) -> None:
        """Open a ring to the worker."""
        self.channel = self.mailbox.create_channel(self, 1 << 16)
        offer = wire.ChannelOffer(source=address(self.address))
        self._rig.raylet.tell(self.channel.fd, channel_offer=offer)

    def next(self) -> bytes:
        """The next frame of the worker."""

        def poll() -> bool:
            self._inbox.extend(frame for _, frame in self.mailbox.poll() if frame is not None)
            return bool(self._inbox)

        until(poll, "another frame")
        return self._inbox.popleft()

    def push(self) -> tuple[int, Any]:
        """The next call: (its number, its arguments); what introduces it is passed over."""
        while (frame := self.next())[0] != frames.PUSH:
            assert frame[0] in (frames.FUNCTION, frames.LEASE), frame[0]
        call = frames.PUSH_HEADER.unpack_from(frame)[3]
        payload = frame[frames.PUSH_HEADER.size :]
        return call, pickle.loads(payload) if payload else ()

    def send(self, frame: bytes, rung: bool = True) -> None:
        """A frame to the worker; not `rung`: written, but its bell was not rung."""
        assert self.channel.send(frame, False, not rung)

    def reply(self, call: int, value: Any, rung: bool = True) -> None:
        """The result of a call."""
        self.send(reply(call, value), rung)


def reply(call: int, value: Any) -> bytes:
    """The frame of a small result."""
    payload = pickle.dumps(value, 5)
    return frames.pack_reply(call, 10, [Result(INLINE, payload, len(payload))], [])


class Rig:
    """A connected driver."""

    def __init__(self) -> None:
        self.node = _native.Store.create(1 << 24)
        self.raylet: Any = RayletDouble()
        info = wire.Registered(
            address=address(ME), job_id=JOB, client_slot=self.node.open_client(),
            node=pb.NodeInfo(node_id=NODE), job=pb.JobInfo(job_id=JOB, namespace="test"))  # fmt: skip
        self.worker = CoreWorker(self.raylet, info, os.dup(self.node.fd), is_driver=True)
        library.set_current(self.worker)
        self.worker.start()
        self._hands: list[Hand] = []
        self._circuits: dict[Address, Circuit] = {}

    def hand(self, where: Address) -> Hand:
        """Another worker."""
        made = Hand(self, where)
        self._hands.append(made)
        return made

    def grant(self, where: Address, request: int = 1, lease: int = 1) -> None:
        """Answer the `request`-th lease request."""
        wanted = self.raylet.heard("lease_request", request)
        self.raylet.tell(
            lease_reply=wire.LeaseReply(request_id=wanted.request_id, worker=address(where), lease_id=lease))

    def gone(self, where: Address, message: str = "it was killed") -> None:
        """Announce a death."""
        failure = pb.Failure(kind=pb.WORKER_DIED, message=message)
        self.raylet.tell(worker_gone=wire.WorkerGone(address=address(where), failure=failure))

    def relay(self, source: Address, *sent: bytes) -> None:
        """Frames of a worker on another node."""
        circuit = self._circuits.setdefault(source, Circuit(1))
        batch = circuit.pack([len(frame).to_bytes(4, "little") + frame for frame in sent])
        self.raylet.tell(
            relay=wire.RelayBatch(source=address(source), destination=address(ME), frames=batch))

    def relayed(self) -> list[bytes]:
        """All frames the worker has handed to its raylet for other nodes."""
        sent: list[bytes] = []
        for message in list(self.raylet.said):
            if message.WhichOneof("body") == "relay":
                split_batch(message.relay.frames, sent)
        return sent

    def close(self) -> None:
        if not self.worker.closing:
            self.worker.shutdown()
        for hand in self._hands:
            hand.mailbox.close()
            hand.store.close()
        self.node.close()


class InBackground:
    """A call on a thread of its own, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.value: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        """The value, or the error raised."""
        self.thread.join(SOON_S)
        assert not self.thread.is_alive(), "it still waits"
        if self.error is not None:
            raise self.error
        return self.value
