"""A `Head` with raylets played by the test: messages in, messages out, storage in a dict.

`World` keeps the clock, applies rows before it hands messages on (as the shell does), runs
`check()` after every step, and can restart the head from its rows.
"""

from __future__ import annotations

from random import Random
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core import resources as res
from miniray.core.contract import Persist, Send
from miniray.core.head import Answer, Head, HeadOptions
from miniray.core.packing import unpack_view, unpacked_publications


def node_id(number: int) -> bytes:
    return bytes([number]) * 28


def worker_id(number: int) -> bytes:
    return bytes([100 + number]) * 28


def address(node: int, worker: int) -> pb.Address:
    return pb.Address(node_id=node_id(node), worker_id=worker_id(worker))


def amounts(**floats: float) -> pb.ResourceMap:
    return res.to_map(res.from_floats(floats))


class World:
    """See the module head. Nodes and workers are named by small numbers."""

    def __init__(self, **floats: float) -> None:
        """One node, number 1, if it is given resources."""
        self.now = 100.0
        self.epoch = 0
        self.rows: dict[tuple[str, bytes], bytes] = {}
        self.inbox: dict[int, list[gcs.NodeMessage]] = {}
        self.replies: dict[int, gcs.ControlReply] = {}
        self.totals: dict[int, dict[str, float]] = {}
        self.next_request = 0
        self.start()
        if floats:
            self.join(1, **floats)

    # ---- the head

    def start(self) -> None:
        """Start the head, or start it again from its rows."""
        self.epoch += 1
        self.head = Head(Random(self.epoch), HeadOptions(epoch=self.epoch, wall_offset=1000.0))
        self.head.restore(self.now, [(table, key, value) for (table, key), value in self.rows.items()])
        self.inbox = {}
        self.settle()

    def settle(self) -> None:
        """Carry out effects and due ticks until nothing is due."""
        for _ in range(100):
            due = self.head.next_deadline()
            if due is not None and due <= self.now:
                self.head.tick(self.now)
            effects, self.head.out = self.head.out, []
            for effect in effects:
                self.carry_out(effect)
            self.head.check()
            due = self.head.next_deadline()
            if not effects and (due is None or due > self.now):
                return
        raise AssertionError("the head never comes to rest")

    def carry_out(self, effect: Any) -> None:
        if isinstance(effect, Persist):
            if effect.value is None:
                self.rows.pop((effect.table, effect.key), None)
            else:
                self.rows[(effect.table, effect.key)] = effect.value
        elif isinstance(effect, Send):
            message = effect.message
            copy = gcs.NodeMessage.FromString(message.SerializeToString())
            if copy.WhichOneof("body") == "reply":
                self.replies[copy.reply.request_id] = copy.reply
            else:
                if copy.HasField("view"):
                    unpack_view(copy.view)
                self.inbox.setdefault(effect.peer[0], []).append(copy)
        else:
            assert isinstance(effect, Answer)
            self.replies[-effect.ticket] = effect.reply

    def sleep(self, seconds: float) -> None:
        """Let time pass, deadline by deadline."""
        end = self.now + seconds
        while (due := self.head.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.settle()
        self.now = end
        self.settle()

    # ---- raylets

    def say(self, node: int, **body: Any) -> None:
        """One message of a raylet."""
        self.head.node_message(self.now, node_id(node), gcs.NodeMessage(**body))
        self.settle()

    def join(self, node: int, *, labels: dict[str, str] | None = None, actors: Any = (), bundles: Any = (),
             jobs: Any = (), workers: list[int] | None = None, **floats: float) -> None:  # fmt: skip
        """A raylet registers; what it says it holds matters after a restart of the head."""
        self.totals[node] = floats
        info = pb.NodeInfo(
            node_id=node_id(node), node_name=f"node-{node}", total=amounts(**floats),
            available=amounts(**floats), labels=labels or {},
        )  # fmt: skip
        register = gcs.NodeRegister(
            info=info, actors=actors, bundles=bundles, jobs=jobs, workers_listed=workers is not None,
            workers=[worker_id(number) for number in workers or ()],
        )  # fmt: skip
        self.say(node, register=register)

    def beat(self, node: int, seen: int = 0, total: pb.ResourceMap | None = None, **available: float) -> None:
        """A heartbeat; without figures nothing is in use."""
        self.say(
            node,
            heartbeat=gcs.Heartbeat(
                available=amounts(**(available or self.totals[node])),
                total=total or amounts(**self.totals[node]),
                placements_seen=seen,
            ),
        )

    def take(self, node: int, kind: str) -> list[Any]:
        """The messages of one kind that the raylet got since the last take; others stay."""
        found, rest = [], []
        for message in self.inbox.get(node, []):
            (found if message.WhichOneof("body") == kind else rest).append(message)
        self.inbox[node] = rest
        return [getattr(message, kind) for message in found]

    def one(self, node: int, kind: str) -> Any:
        """The only message of this kind."""
        found = self.take(node, kind)
        assert len(found) == 1, f"{len(found)} {kind} for node {node}"
        return found[0]

    def news(self, node: int, channel: str) -> list[gcs.Publication]:
        """Publications of one channel since the last call."""
        inbox = [single for message in self.inbox.get(node, []) for single in one_by_one(message)]
        found = [m.publication for m in inbox if m.publication.channel == channel]
        self.inbox[node] = [m for m in inbox if m.publication.channel != channel]
        return found

    # ---- requests

    def ask(self, node: int = 1, request_id: int = 0, worker: int = 1, **body: Any) -> gcs.ControlReply:
        """A request through a raylet, and its reply."""
        if not request_id:
            self.next_request += 1
            request_id = self.next_request
        request = gcs.ControlRequest(request_id=request_id, sender=address(node, worker), **body)
        self.replies.pop(request_id, None)
        self.say(node, request=request)
        return self.replies[request_id]

    def call(self, **body: Any) -> gcs.ControlReply:
        """A request from outside the nodes' streams."""
        self.head.request(self.now, gcs.ControlRequest(**body), 1)
        self.settle()
        return self.replies.pop(-1)

    def job(self, node: int = 1, driver: int = 1) -> bytes:
        """A driver starts a job."""
        start = gcs.JobStart(driver=address(node, driver), driver_pid=7, entrypoint="x.py", namespace="ns")
        return self.ask(node, job_start=start).job.job_id

    # ---- actors

    def spec(self, number: int = 1, *, job: bytes = ids.job_id(1), name: str = "", owner: int = 1,
             owner_node: int = 1, strategy: pb.SchedulingStrategy | None = None,
             needs: dict[str, float] | None = None, keeps: dict[str, float] | None = None,
             **fields: Any) -> pb.ActorSpec:  # fmt: skip
        """An actor's spec; it needs one CPU to be created and none to live unless said otherwise."""
        return pb.ActorSpec(
            actor_id=ids.actor_id(bytes([number]) * 12, job),
            creation_class=pb.SchedulingClass(
                resources=amounts(**({"CPU": 1} if needs is None else needs)), strategy=strategy, job_id=job
            ),
            lifetime_resources=amounts(**(keeps or {})),
            class_name="Klass", name=name, namespace="ns", owner=address(owner_node, owner),
            creation_task=b"construct", **fields,
        )  # fmt: skip

    def register(self, spec: pb.ActorSpec, **fields: Any) -> gcs.ControlReply:
        """A worker registers an actor."""
        return self.ask(actor_register=gcs.ActorRegister(spec=spec, **fields))

    def created(self, node: int, create: gcs.CreateActor, worker: int, failure: Any = None) -> None:
        """The raylet answers CreateActor."""
        self.say(
            node,
            actor_created=gcs.ActorCreated(
                actor_id=create.spec.actor_id,
                attempt=create.attempt,
                address=None if failure else address(node, worker),
                pid=worker,
                failure=failure,
            ),
        )

    def make_actor(self, spec: pb.ActorSpec, node: int = 1, worker: int = 50) -> bytes:
        """Register an actor and let `node` create it."""
        self.register(spec)
        self.created(node, self.one(node, "create_actor"), worker)
        return spec.actor_id

    def fail_worker(self, node: int, worker: int, actor: bytes = b"", *, intended: bool = False,
                    is_driver: bool = False) -> None:  # fmt: skip
        """The raylet reports the end of a worker."""
        failure = pb.Failure(kind=pb.WORKER_DIED, message="killed by SIGKILL")
        self.say(
            node,
            worker_failed=gcs.WorkerFailed(
                address=address(node, worker), actor_id=actor, failure=failure, intended=intended,
                is_driver=is_driver,
            ),
        )  # fmt: skip

    def actor(self, actor_id: bytes) -> pb.ActorInfo:
        """The actor's row, as a client sees it."""
        return self.ask(actor_lookup=gcs.ActorLookup(actor_id=actor_id)).actor

    def state(self, actor_id: bytes) -> str:
        return pb.ActorState.Name(self.actor(actor_id).state)


def one_by_one(message: gcs.NodeMessage) -> list[gcs.NodeMessage]:
    """The publications of one message as messages of their own; any other message as it is."""
    if message.WhichOneof("body") != "publications":
        return [message]
    together = unpacked_publications(message.publications)
    return [gcs.NodeMessage(publication=publication) for publication in together]
