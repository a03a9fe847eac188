"""Actors as one process sees them: creation, news, handles. The counterpart of `runtime.actors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.calls import DEAD, ActorClient
from miniray.core.directory import FAILED, INLINE, ObjectEntry

from .peers import slot_of
from .values import Arguments, Ref, Value

if TYPE_CHECKING:
    from .worker import SimWorker

UNIT = 10_000


class Creation:
    """An actor whose constructor arguments are still being made."""

    def __init__(self, actors: Actors, spec: pb.ActorSpec, call: tuple[str, bytes, Arguments]) -> None:
        self._actors = actors
        self.spec = spec
        self.call = call
        self.remaining = 0

    def notify(self, entry: ObjectEntry) -> None:
        """An argument is ready, or failed."""
        self.remaining -= 1
        if not self.remaining:
            self._actors.register(self)


class Actors:
    """All actors that this process made or has handles of."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._held: dict[bytes, list[ObjectEntry]] = {}

    def create(
        self,
        program: str,
        arguments: Arguments,
        *,
        cpus: float = 1.0,
        lifetime_cpus: float = 1.0,
        max_restarts: int = 0,
        max_task_retries: int = 0,
        max_concurrency: int = 1,
        strategy: pb.SchedulingStrategy | None = None,
        name: str = "",
        namespace: str = "",
    ) -> Ref:
        """Register an actor, with a `name` a detached one; returns its first handle."""
        worker = self._worker
        number = worker.cluster.next_number()
        actor_id = ids.actor_id(number.to_bytes(12, "little"), worker.job_id)
        shown = worker.world.call_it(actor_id, f"a{number}") and f"a{number}"
        spec = pb.ActorSpec(
            actor_id=actor_id,
            class_name=shown,
            name=name,
            namespace=namespace,
            detached=bool(name),
            max_restarts=max_restarts,
            max_task_retries=max_task_retries,
            max_concurrency=max_concurrency,
        )
        spec.creation_class.job_id = worker.job_id
        spec.creation_class.resources.amounts["CPU"] = round(cpus * UNIT)
        if strategy is not None:
            spec.creation_class.strategy.CopyFrom(strategy)
        if lifetime_cpus:
            spec.lifetime_resources.amounts["CPU"] = round(lifetime_cpus * UNIT)
        spec.owner.node_id, spec.owner.worker_id = worker.address
        client = worker.owner.calls.client(actor_id)
        client.owned = True
        client.max_task_retries = max_task_retries
        tid = worker.new_task_id(f"{shown}.init", actor_id)
        token = worker.owner.directory.own(ids.object_id(tid, 1))
        token.state = INLINE
        token.value = Value(token.id)
        token.more().stands_for = client
        handle = Ref(worker, token, actor_id)
        worker.cluster.oracle.actor_made(worker, spec, token.id)
        self._listen(client)
        creation = Creation(self, spec, (program, tid, arguments))
        self._held[actor_id] = arguments.held
        for entry in arguments.held:
            entry.pins += 1
        for entry in arguments.slots:
            if not entry.ready:
                creation.remaining += 1
                worker.owner.await_entry(entry, creation)
        if creation.remaining:
            worker.request("actor_register", gcs.ActorRegister(spec=spec, incomplete=True))
        else:
            self.register(creation)
        worker.end_turn()
        return handle

    def register(self, creation: Creation) -> None:
        """All arguments are there: tell the GCS."""
        worker = self._worker
        program, tid, arguments = creation.call
        actor_id = creation.spec.actor_id
        if actor_id not in self._held:
            return  # dead meanwhile: its arguments are not held any more
        failed = next((entry for entry in arguments.slots if entry.state == FAILED), None)
        if failed is not None:
            self._news(actor_id, DEAD, None, 0, failed.value)
            failure = pb.Failure(kind=pb.ACTOR_DIED, message="an argument of its constructor failed")
            worker.request("actor_register", gcs.ActorRegister(spec=creation.spec, failure=failure))
            return
        for entry in arguments.slots:
            if not entry.ready:     # lost, and being made again
                creation.remaining += 1
                worker.owner.await_entry(entry, creation)
        if creation.remaining:
            return
        slots = tuple(slot_of(entry, worker.address) for entry in arguments.slots)
        creation.spec.creation_task = worker.cluster.keep(
            (program, tid, slots, arguments.nested, arguments.body)
        )
        reply = worker.request("actor_register", gcs.ActorRegister(spec=creation.spec))
        reply.then(lambda answer: self._registered(actor_id, answer))

    def _registered(self, actor_id: bytes, reply: gcs.ControlReply) -> None:
        if reply.failure.kind:
            self._news(actor_id, DEAD, None, 0, reply.failure)
        elif actor_id in self._worker.cluster.oracle.detached:
            self._worker.cluster.oracle.detached[actor_id] = True

    # ---- news

    def client(self, actor_id: bytes) -> ActorClient:
        """The client of an actor; learns its state at first use."""
        client = self._worker.owner.calls.client(actor_id)
        if not client.subscribed and not client.owned:
            self._listen(client)
            self.look_up(actor_id)
        return client

    def look_up(self, actor_id: bytes) -> None:
        """Ask the GCS for the actor's state."""
        reply = self._worker.request("actor_lookup", gcs.ActorLookup(actor_id=actor_id))
        reply.then(lambda answer: None if answer.failure.kind else self._learned(answer.actor))

    def _listen(self, client: ActorClient) -> None:
        if not client.subscribed:
            client.subscribed = True
            self._worker.request("subscribe", gcs.Subscribe(channel="actor", key=client.id))

    def published(self, publication: gcs.Publication) -> None:
        """News from the GCS."""
        if publication.HasField("actor"):
            self._learned(publication.actor)
        elif publication.resync:
            self.look_up(publication.key)

    def _learned(self, info: pb.ActorInfo) -> None:
        client = self._worker.owner.calls.clients.get(info.spec.actor_id)
        if client is None:
            return
        if not client.owned:
            client.max_task_retries = info.spec.max_task_retries
        state = pb.ActorState.Name(info.state)
        address = (info.address.node_id, info.address.worker_id) if state == "ALIVE" else None
        failure = info.death
        if client.is_unreachable(state, address):
            failure = pb.Failure(kind=pb.UNAVAILABLE, message="the connection to it was lost")
        self._news(info.spec.actor_id, state, address, info.restarts, failure)

    def _news(self, actor_id: bytes, state: str, address: Any, restarts: int, failure: Any) -> None:
        worker = self._worker
        worker.world.note(worker.name, f"learns that {worker.world.name(actor_id)} is {state} ({restarts})")
        worker.owner.actor_updated(worker.world.now, actor_id, state, address, restarts, failure)
        if state == DEAD:
            worker.cluster.oracle.actor_died(actor_id)
            for entry in self._held.pop(actor_id, ()):
                worker.owner.ownership.unpinned(entry)
        worker.end_turn()
