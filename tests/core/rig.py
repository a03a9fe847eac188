"""A node machine on the bench: feeds stimuli, takes effects apart, checks every invariant after each."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, worker_pb2
from miniray.core.contract import HEAD, Send
from miniray.core.node import Node
from miniray.core.node_effects import StartWorker, StopWorker, ToClient

NODE = b"n" * 28
PEER = b"p" * 28
JOB = b"\1\0\0\0"
UNIT = 10_000


def resource_map(**amounts: float) -> common.ResourceMap:
    return common.ResourceMap(amounts={name: int(amount * UNIT) for name, amount in amounts.items()})


def node_info(node_id: bytes = NODE, **amounts: float) -> common.NodeInfo:
    shape = resource_map(**(amounts or {"CPU": 2}))
    return common.NodeInfo(node_id=node_id, node_name=chr(node_id[0]), total=shape, available=shape)


def scheduling_class(function: str = "f", job: bytes = JOB, priority: int = 0, env: str = "",
                     strategy: Any = None, **amounts: float) -> common.SchedulingClass:
    return common.SchedulingClass(
        resources=resource_map(**(amounts or {"CPU": 1})), job_id=job, function_name=function,
        priority=priority, runtime_env=env, strategy=strategy)


class Rig:
    """One node and the words to drive it."""

    def __init__(self, seed: int = 0, store_bytes: int = 1 << 30, **amounts: float) -> None:
        self.now = 100.0
        self.node = Node(node_info(**amounts), random.Random(seed), store_bytes=store_bytes)
        self.sent: deque[Any] = deque()
        self.starts: list[StartWorker] = []
        self.ids = 0
        self.requests = 0
        self.node.started(self.now)
        self.settle()
        self.head(registered=gcs_pb2.NodeRegistered(accepted=True, epoch=1))

    def settle(self) -> None:
        """Move effects out of the node, as a shell does at the end of a turn."""
        self.node.check()
        for effect in self.node.out:
            if isinstance(effect, StartWorker):
                self.starts.append(effect)
            self.sent.append(effect)
        self.node.out.clear()

    def take(self, kind: type) -> list[Any]:
        """All effects of one kind so far; the others stay."""
        found = [e for e in self.sent if isinstance(e, kind)]
        self.sent = deque(e for e in self.sent if not isinstance(e, kind))
        return found

    def messages(self, worker_id: bytes, body: str) -> list[Any]:
        """Messages of one kind sent to one client so far; the others stay."""
        found, rest = [], deque()
        for effect in self.sent:
            if (isinstance(effect, ToClient) and effect.worker_id == worker_id
                    and effect.message.WhichOneof("body") == body):
                found.append(getattr(effect.message, body))
            else:
                rest.append(effect)
        self.sent = rest
        return found

    def to(self, peer: bytes, body: str) -> list[Any]:
        """Messages of one kind sent to the GCS or a peer so far; the others stay."""
        found, rest = [], deque()
        for effect in self.sent:
            if isinstance(effect, Send) and effect.peer == peer and effect.message.WhichOneof("body") == body:
                found.append(getattr(effect.message, body))
            else:
                rest.append(effect)
        self.sent = rest
        return found

    # ---- stimuli ----

    def head(self, **body: Any) -> None:
        """The GCS says."""
        self.node.head_message(self.now, gcs_pb2.NodeMessage(**body))
        self.settle()

    def say(self, worker_id: bytes, fd: int | None = None, **body: Any) -> None:
        """A client says."""
        self.node.worker_message(self.now, worker_id, worker_pb2.ToRaylet(**body), fd)
        self.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass, with every tick that falls due."""
        end = self.now + seconds
        while True:
            due = self.node.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.node.tick(self.now)
            self.settle()
        self.now = end

    def new_id(self) -> bytes:
        self.ids += 1
        return b"w%027d" % self.ids

    def driver(self, job: bytes = JOB) -> bytes:
        """A registered driver with its job."""
        worker_id = self.new_id()
        self.node.worker_registered(self.now, worker_id, 1000 + self.ids, self.ids,
                                    worker_pb2.Register(is_driver=True, job=gcs_pb2.JobStart()))
        self.settle()
        request = [r for r in self.to(HEAD, "request") if r.WhichOneof("body") == "job_start"][-1]
        self.head(reply=gcs_pb2.ControlReply(request_id=request.request_id, job=common.JobInfo(job_id=job)))
        assert self.messages(worker_id, "registered")[0].job_id == job
        return worker_id

    def boot(self) -> bytes:
        """The oldest process that was asked for comes up. Returns its worker id."""
        start = self.starts.pop(0)
        worker_id = self.new_id()
        self.node.worker_registered(self.now, worker_id, 1000 + self.ids, self.ids,
                                    worker_pb2.Register(startup_token=start.startup_token))
        self.settle()
        return worker_id

    def boot_all(self) -> list[bytes]:
        found = []
        while self.starts:
            found.append(self.boot())
        return found

    def ask(self, worker_id: bytes, cls: common.SchedulingClass | None = None) -> int:
        """A client asks for a lease. Returns the request id."""
        self.requests += 1
        self.say(worker_id, lease_request=worker_pb2.LeaseRequest(
            request_id=self.requests, scheduling_class=cls or scheduling_class()))
        return self.requests

    def grants(self, worker_id: bytes) -> list[Any]:
        """Leases granted to a client since the last call."""
        found, rest = [], deque()
        for effect in self.sent:
            if (isinstance(effect, ToClient) and effect.worker_id == worker_id
                    and effect.message.lease_reply.worker.worker_id):
                found.append(effect.message.lease_reply)
            else:
                rest.append(effect)
        self.sent = rest
        return found

    def give_back(self, worker_id: bytes, lease_id: int, **more: Any) -> None:
        self.say(worker_id, lease_return=worker_pb2.LeaseReturn(lease_id=lease_id, node_id=NODE, **more))

    def exit(self, worker_id: bytes, text: str = "ended with signal SIGKILL") -> None:
        """A client's process has ended."""
        self.node.worker_exited(self.now, worker_id, common.Failure(message=text))
        self.settle()

    def peer(self, node_id: bytes = PEER, **amounts: float) -> None:
        """Another node is in the cluster, as far as this one knows."""
        info = node_info(node_id, **(amounts or {"CPU": 4}))
        self.head(view=gcs_pb2.ClusterView(nodes=[info]))

    def from_peer(self, node_id: bytes = PEER, **body: Any) -> None:
        """Another raylet says."""
        from miniray._proto import raylet_pb2

        self.node.peer_message(self.now, node_id, raylet_pb2.PeerMessage(**body))
        self.settle()

    def stops(self) -> list[StopWorker]:
        return self.take(StopWorker)
