"""Actors as their callers see them: creation, addresses, news, handles and their end.

The GCS is told once, through the raylet, when an actor is to be made; calls then go straight to
its process. News of an actor (alive here, restarting, dead and why) come as publications to
every process that has a handle.
"""

from __future__ import annotations

import os
import pickle
import time
from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import ids
from miniray.core.calls import DEAD, ActorClient
from miniray.core.directory import FAILED, INLINE, Address, ObjectEntry
from miniray.core.tasks import ActorTemplate, TaskRecord
from miniray.exceptions import PendingCallsLimitExceeded
from miniray.runtime import arguments, values
from miniray.runtime.definitions import scheduling_class
from miniray.runtime.errors import FailedArgument, failure_bytes

if TYPE_CHECKING:
    from miniray.ids import ObjectRef
    from miniray.runtime.worker import CoreWorker

STATES = {
    pb.DEPENDENCIES_UNREADY: "DEPENDENCIES_UNREADY",
    pb.PENDING_CREATION: "PENDING_CREATION",
    pb.ALIVE: "ALIVE",
    pb.RESTARTING: "RESTARTING",
    pb.DEAD: "DEAD",
}


NOTHING = pickle.dumps(None, 5)


_DEATHS: dict[Any, str] = {
    pb.ERROR_NONE: "",
    pb.WORKER_DIED: "The actor is dead because its worker process has died:",
    pb.NODE_DIED: "The actor died because its node has died.",
    pb.OWNER_DIED: "The actor is dead because its owner has died:",
    pb.OUT_OF_MEMORY: "",
    pb.USER_ERROR: "",
}
"""Causes of an actor's death that its callers see as ActorDiedError, and how they are told."""


class Creation:
    """An actor whose constructor arguments are still being made."""

    __slots__ = ("actors", "spec", "record", "remaining", "client", "definition")

    def __init__(
        self, actors: Actors, spec: pb.ActorSpec, record: TaskRecord, client: ActorClient, definition: bytes
    ):
        self.actors = actors
        self.spec = spec
        self.record = record
        self.client = client
        self.definition = definition
        self.remaining = 0

    def notify(self, entry: ObjectEntry) -> None:
        """An argument is ready, or failed. Under the worker's lock."""
        self.remaining -= 1
        if self.remaining == 0:
            self.actors.register(self)


class Actors:
    """All actors that this process made or has handles of."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._held: dict[bytes, list[ObjectEntry]] = {}
        """Arguments of constructors that may have to run, or to run again."""
        self._starting_once: dict[bytes, None] = {}
        self._tokens: dict[bytes, ObjectRef[Any]] = {}
        self._late: dict[bytes, list[tuple[str, Address | None, int, pb.Failure]]] = {}
        """News of actors whose last process may still have answers in its ring."""

    # ---- creation

    def create(self, template: ActorTemplate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Register an actor of `template`; returns its id, or the existing one with get_if_exists."""
        worker = self._worker
        encoded = arguments.encode(args, kwargs, worker.store_packed, template)
        if template.bound is None or template.bound[0] is not worker:
            template.bound = (worker, values.serialize_function(template.cls, "the actor class"))
        actor_id = ids.actor_id(os.urandom(12), worker.job_id)
        spec = self._spec(template, actor_id)
        record = TaskRecord(
            worker.new_task_id(actor_id), _Creation(template), encoded, None, None, [], 0, None, None,
            worker.default_task, time.monotonic(),
        )  # fmt: skip
        record.name = f"{template.class_name}.__init__"
        with worker.lock:
            client = worker.owner.calls.client(actor_id)
            client.owned = True
            client.detached = template.detached
            client.max_task_retries = template.max_task_retries
            client.max_pending_calls = template.max_pending_calls
            client.out_of_order = template.out_of_order
            token = worker.owner.directory.own(ids.object_id(record.id, 1))
            token.state = INLINE
            token.value = NOTHING
            token.more().stands_for = client
            self._tokens[actor_id] = worker.new_ref(token)
            creation = Creation(self, spec, record, client, template.bound[1])
            if not isinstance(encoded, bytes):
                for entry in encoded.held:
                    entry.pins += 1
                encoded.alive = None
                self._held[actor_id] = list(encoded.held)
                if template.max_restarts == 0:
                    self._starting_once[actor_id] = None
                for entry in encoded.slots:
                    if not entry.ready:
                        creation.remaining += 1
                        worker.owner.await_entry(entry, creation)
            worker.drain()
        if template.name:
            return self._register_named(creation, template)
        self._listen(client)
        with worker.lock:
            if creation.remaining:  # others may get handles meanwhile: the GCS must know of it
                worker.control.request_async("actor_register", gcs.ActorRegister(spec=spec, incomplete=True))
            else:
                self.register(creation)
        return actor_id

    def _spec(self, template: ActorTemplate, actor_id: bytes) -> pb.ActorSpec:
        worker = self._worker
        spec = pb.ActorSpec(
            actor_id=actor_id,
            class_name=template.class_name,
            name=template.name,
            namespace=worker.namespace if template.namespace is None else template.namespace,
            detached=template.detached,
            max_restarts=template.max_restarts,
            max_task_retries=template.max_task_retries,
            max_concurrency=template.max_concurrency or 0,
            is_async=template.is_async,
            max_pending_calls=template.max_pending_calls,
            out_of_order=template.out_of_order,
            priority=template.priority,
            handle=values.dumps(handle_state(template)),
        )
        spec.creation_class.CopyFrom(scheduling_class(worker, template))
        spec.creation_class.resources.amounts.update(template.creation_resources)
        spec.lifetime_resources.amounts.update(template.resources)
        spec.concurrency_groups.update(template.concurrency_groups)
        spec.owner.node_id, spec.owner.worker_id = worker.address
        return spec

    def _register_named(self, creation: Creation, template: ActorTemplate) -> bytes:
        """A name is taken or not: the caller waits for that answer, not for the constructor's arguments."""
        worker = self._worker
        message = gcs.ActorRegister(spec=creation.spec, get_if_exists=template.get_if_exists)
        with worker.lock:
            message.incomplete = creation.remaining > 0
            if not message.incomplete:
                message.spec.creation_task = self._creation_task(creation)
        try:
            info = worker.request("actor_register", message).actor
        except Exception:
            with worker.lock:
                creation.client.state = DEAD
                self._forget(creation.client)
            raise
        found: bytes = info.spec.actor_id
        if found != creation.spec.actor_id:
            with worker.lock:
                creation.client.state = DEAD    # its arguments are not waited for any more
                self._forget(creation.client)
            return found
        self._listen(creation.client)
        return found

    def register(self, creation: Creation) -> None:
        """All arguments have values: tell the GCS. Under the worker's lock."""
        if creation.client.state == DEAD:
            return  # killed, or given up, meanwhile: its arguments are not held any more
        encoded = creation.record.arguments
        slots = () if isinstance(encoded, bytes) else encoded.slots
        failed = next((entry for entry in slots if entry.state == FAILED), None)
        if failed is not None:
            error = failure_bytes(FailedArgument(creation.record, failed))
            failure = pb.Failure(kind=pb.ACTOR_DIED, payload=error)
            self._worker.owner.actor_updated(time.monotonic(), creation.client.id, DEAD, None, 0, failure)
            self._forget(creation.client, keep=True)
            message = gcs.ActorRegister(spec=creation.spec, failure=failure)
            self._worker.control.request_async("actor_register", message)
            return
        for entry in slots:
            if not entry.ready:  # lost meanwhile, and being made again
                creation.remaining += 1
                self._worker.owner.await_entry(entry, creation)
        if creation.remaining:
            return
        creation.spec.creation_task = self._creation_task(creation)
        message = gcs.ActorRegister(spec=creation.spec)

        def answered(reply: gcs.ControlReply | None) -> None:
            if reply is not None and reply.failure.kind:
                self._news(creation.spec.actor_id, DEAD, None, 0, reply.failure)

        self._worker.control.request_async("actor_register", message, answered)

    def _creation_task(self, creation: Creation) -> bytes:
        push = arguments.pack_push(creation.record, 0, 0, self._worker.address, failure_bytes)
        return len(creation.definition).to_bytes(4, "little") + creation.definition + push

    def token(self, actor_id: bytes) -> ObjectRef[Any] | None:
        """At the creator, once: the reference that the first handle of a new actor carries.

        Handles are counted as references to this object, so the actor lives while any process has one.
        """
        return self._tokens.pop(actor_id, None)

    # ---- news

    def client(self, actor_id: bytes) -> ActorClient:
        """The client of an actor somebody gave us a handle of; learns its state at first use."""
        worker = self._worker
        with worker.lock:
            client = worker.owner.calls.client(actor_id)
        if not client.subscribed and not client.owned:
            self._listen(client)
            self.look_up(actor_id)
        return client

    def look_up(self, actor_id: bytes) -> None:
        """Ask the GCS for the actor's state."""
        request = gcs.ActorLookup(actor_id=actor_id)
        self._worker.control.request_async("actor_lookup", request, self._looked_up)

    def _listen(self, client: ActorClient) -> None:
        if not client.subscribed:
            client.subscribed = True
            self._worker.subscribe("actor", client.id, self._published)

    def _published(self, publication: gcs.Publication) -> None:
        if publication.resync:
            self.look_up(publication.key)
            return
        self.learned(publication.actor)

    def _looked_up(self, reply: gcs.ControlReply | None) -> None:
        if reply is not None and not reply.failure.kind:
            self.learned(reply.actor)

    def learned(self, info: pb.ActorInfo) -> None:
        """The state of an actor, from the GCS."""
        state = STATES[info.state]
        client = self._worker.owner.calls.clients.get(info.spec.actor_id)
        if client is None:
            return
        if not client.owned:
            client.max_task_retries = info.spec.max_task_retries
            client.max_pending_calls = info.spec.max_pending_calls
            client.out_of_order = info.spec.out_of_order
        client.reason = info.pending_reason
        address = (info.address.node_id, info.address.worker_id) if state == "ALIVE" else None
        client.spec = info.spec.class_name
        failure = pb.Failure()
        failure.CopyFrom(info.death)
        if failure.kind in _DEATHS:
            failure.message = f"{_DEATHS[failure.kind]} {failure.message}".strip()
            failure.kind = pb.ACTOR_DIED
        if state == "RESTARTING":
            failure = pb.Failure(
                kind=pb.UNAVAILABLE,
                message=f"The actor is restarting ({info.spec.class_name}): {info.death.message}",
            )
        if client.is_unreachable(state, address):
            from miniray.runtime import host

            failure = pb.Failure(kind=pb.UNAVAILABLE, message=(
                f"The actor ({info.spec.class_name}) is alive, but the connection to its process was lost: "
                f"it is not known whether this call ran{host.files_open()}"))
        self._news(info.spec.actor_id, state, address, info.restarts, failure)

    def _news(
        self, actor_id: bytes, state: str, address: Address | None, restarts: int, failure: pb.Failure
    ) -> None:
        worker = self._worker
        with worker.lock:
            late = self._late.get(actor_id)
            if late is not None:
                late.append((state, address, restarts, failure))
                return
            process = self._still_talking(actor_id, address)
            if process is not None:
                self._late[actor_id] = [(state, address, restarts, failure)]
                worker.departures.after(process, lambda: self._catch_up(actor_id))
                return
            self._updated(actor_id, state, address, restarts, failure)
        worker.pump.wake()

    def _still_talking(self, actor_id: bytes, address: Address | None) -> Address | None:
        """The process that the actor is said to have left, if answers of it may be on their way."""
        owner = self._worker.owner
        client = owner.calls.clients.get(actor_id)
        remote = client.remote if client is not None else None
        if remote is None or remote.address == address or not remote.inflight:
            return None
        return remote.address if remote.address in owner.remotes else None

    def _catch_up(self, actor_id: bytes) -> None:
        for news in self._late.pop(actor_id, ()):
            self._updated(actor_id, *news)

    def _updated(
        self, actor_id: bytes, state: str, address: Address | None, restarts: int, failure: pb.Failure
    ) -> None:
        worker = self._worker
        worker.owner.actor_updated(time.monotonic(), actor_id, state, address, restarts, failure)
        if state == DEAD or (state == "ALIVE" and actor_id in self._starting_once):
            self._let_go(actor_id)
        worker.drain()

    # ---- calls and ends

    def admit(self, client: ActorClient) -> None:
        """PendingCallsLimitExceeded when the actor's queue is as long as its creator allowed."""
        limit = client.max_pending_calls
        if limit >= 0 and client.pending_calls >= limit:
            raise PendingCallsLimitExceeded(
                f"The task {client.id.hex()} could not be submitted because more than {limit} calls of the "
                "actor are pending (max_pending_calls): wait for some of them first."
            )

    def kill(self, actor_id: bytes, no_restart: bool) -> None:
        """End an actor now; with `no_restart` False it starts again if it may."""
        self._worker.request("actor_kill", gcs.ActorKill(actor_id=actor_id, no_restart=no_restart))

    def kill_worker(self, address: Address, reason: str) -> None:
        """End another worker's process. Under the lock."""
        message = wire.KillRequest(reason=reason)
        message.worker.node_id, message.worker.worker_id = address
        self._worker.raylet.send(wire.ToRaylet(kill=message))

    def out_of_scope(self, actor_id: bytes) -> None:
        """The creator's last handle is gone and nothing is pending. Under the lock."""
        self._worker.control.request_async("actor_handle_gone", gcs.ActorHandleGone(actor_id=actor_id))

    def _let_go(self, actor_id: bytes) -> None:
        self._starting_once.pop(actor_id, None)
        for entry in self._held.pop(actor_id, ()):
            self._worker.owner.ownership.unpinned(entry)

    def _forget(self, client: ActorClient, keep: bool = False) -> None:
        if not keep:
            client.owned = False
            self._tokens.pop(client.id, None)
        self._let_go(client.id)
        if not keep:
            self._worker.owner.calls.clients.pop(client.id, None)


class _Creation:
    """The template of a constructor call."""

    __slots__ = ("name", "num_returns", "retry_exceptions")

    def __init__(self, template: ActorTemplate) -> None:
        self.name = f"{template.class_name}.__init__"
        self.num_returns = 0
        self.retry_exceptions = False


def handle_state(template: ActorTemplate) -> dict[str, Any]:
    """What another process needs to build a handle of the actor."""
    return {
        "class_name": template.class_name,
        "methods": template.methods,
        "is_async": template.is_async,
        "max_task_retries": template.max_task_retries,
    }
