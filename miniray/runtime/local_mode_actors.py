"""Actors in the driver's own process: the part of local mode that `actors` is of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.calls import ALIVE, DEAD
from miniray.core.directory import INLINE
from miniray.core.tasks import ActorTemplate
from miniray.exceptions import ActorAlreadyExistsError, ActorDeath, ActorDiedError, RayTaskError
from miniray.ids import ObjectRef
from miniray.runtime import values
from miniray.runtime.actors import handle_state
from miniray.runtime.task_context import TaskContext

if TYPE_CHECKING:
    from miniray.runtime.local_mode import LocalWorker


@dataclass(slots=True)
class Call:
    """One task or call of an actor, with its arguments as they would travel."""

    name: str
    function: Callable[..., Any]
    returns: int
    payload: bytes
    direct: list[ObjectRef[Any]]
    context: TaskContext
    actor: LocalActor | None = None


class LocalActor:
    """An actor in this process: what its handles refer to."""

    def __init__(self, template: ActorTemplate, spec: pb.ActorSpec) -> None:
        self.template = template
        self.spec = spec
        self.instance: Any = None
        self.restarts = 0
        self.death: Exception | None = None
        self.creation: Call | None = None
        """The constructor's call; of no actor, for the actor is to end with its last handle."""
        self.turn: contextlib.AbstractContextManager[Any] = threading.RLock()
        """Synchronous calls of other threads wait for one another, as in an actor's process."""
        if template.is_async or (template.max_concurrency or 1) > 1 or template.concurrency_groups:
            self.turn = contextlib.nullcontext()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of its coroutines, running in a thread."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), name="local-actor-loop", daemon=True).start()
        return self._loop

    def end(self, death: Exception) -> None:
        """It answers no call any more."""
        self.death = death
        self.instance = None
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def __del__(self) -> None:
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


class Client:
    """An actor as its handles see it; does not keep it alive."""

    def __init__(self, actor_id: bytes, find: Callable[[bytes], LocalActor | None]) -> None:
        self.id = actor_id
        self.owned = True       # it is always made here
        self.max_task_retries = 0
        self._find = find

    @property
    def state(self) -> str:
        """Its state, as in a cluster."""
        actor = self._find(self.id)
        return ALIVE if actor is not None and actor.death is None else DEAD


class LocalActors:
    """All actors of a session in local mode; the part of `actors.Actors` that the API uses."""

    def __init__(self, worker: LocalWorker) -> None:
        self._worker = worker
        self._actors: weakref.WeakValueDictionary[bytes, LocalActor] = weakref.WeakValueDictionary()
        self._kept: dict[bytes, LocalActor] = {}    # detached ones live without handles
        self._names: dict[tuple[str, str], bytes] = {}
        self._tokens: dict[bytes, ObjectRef[Any]] = {}

    def find(self, actor_id: bytes) -> LocalActor | None:
        """An actor that somebody still has a handle of."""
        return self._actors.get(actor_id)

    def create(self, template: ActorTemplate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Run the constructor. Returns the id; ActorAlreadyExistsError if the name is taken."""
        worker = self._worker
        space = worker.namespace if template.namespace is None else template.namespace
        holder = self.named(space, template.name) if template.name else None
        if holder is not None:
            if template.get_if_exists:
                return holder.spec.actor_id
            raise ActorAlreadyExistsError(f"The name {template.name} is already taken.")
        worker.check_definition(template, template.cls, "the actor class")
        actor_id = ids.actor_id(os.urandom(12), worker.job_id)
        spec = pb.ActorSpec(
            actor_id=actor_id, class_name=template.class_name, name=template.name, namespace=space,
            is_async=template.is_async, handle=values.dumps(handle_state(template)),
        )  # fmt: skip
        actor = LocalActor(template, spec)
        call = worker.call(
            f"{template.class_name}.__init__", template.cls, 1, template, args, kwargs,
            worker.new_task_id()[:8] + actor_id, actor,
        )  # fmt: skip
        actor.creation = replace(call, actor=None)
        self._construct(actor)
        self._actors[actor_id] = actor
        if template.name:
            self._names[space, template.name] = actor_id
        if template.detached:
            self._kept[actor_id] = actor
        self._tokens[actor_id] = self._token(actor)
        return actor_id

    def _token(self, actor: LocalActor) -> ObjectRef[Any]:
        """Handles are counted as references to this object, whose value is the actor itself."""
        worker = self._worker
        with worker.lock:
            entry = worker.owner.directory.own(ids.object_id(actor.spec.actor_id.rjust(24, b"\0"), 1))
            entry.state = INLINE
            entry.value = actor
            return worker.new_ref(entry)

    def token(self, actor_id: bytes) -> ObjectRef[Any] | None:
        """The reference that the first handle carries."""
        return self._tokens.pop(actor_id, None)

    def _construct(self, actor: LocalActor) -> None:
        assert actor.creation is not None
        call = replace(actor.creation, actor=actor)
        try:
            actor.instance = self._worker.perform(call)
        except BaseException as error:
            if not isinstance(error, Exception):
                error = RuntimeError(f"the constructor raised {error!r}")
            cause = self._worker.error(call, error)
            actor.death = ActorDiedError(cause if isinstance(cause, RayTaskError) else str(cause))

    def client(self, actor_id: bytes) -> Client:
        """What a handle keeps of its actor."""
        return Client(actor_id, self.find)

    def named(self, namespace: str, name: str) -> LocalActor | None:
        """The living actor of this name."""
        actor = self.find(self._names.get((namespace, name), b""))
        return actor if actor is not None and actor.death is None else None

    def listed(self, wanted: gcs.ActorList) -> gcs.ControlReply:
        """The living actors, as the GCS would list them."""
        infos = [
            pb.ActorInfo(spec=actor.spec, state=pb.ALIVE)
            for actor in self._actors.values()
            if actor.death is None and (actor.spec.name or not wanted.named_only)
            and (wanted.all_namespaces or actor.spec.namespace == wanted.namespace)
        ]  # fmt: skip
        return gcs.ControlReply(actors=gcs.ActorInfos(actors=infos))

    def lookup(self, wanted: gcs.ActorLookup) -> gcs.ControlReply:
        """The answer that the GCS would give. ValueError if there is no such actor."""
        self._worker.collect_released()     # whoever has lost its last handle is gone
        actor = self.named(wanted.namespace, wanted.name) if wanted.name else self.find(wanted.actor_id)
        if actor is None:
            raise ValueError(f"no actor is called {wanted.name!r}")
        return gcs.ControlReply(actor=pb.ActorInfo(spec=actor.spec, state=pb.ALIVE))

    def kill(self, actor_id: bytes, no_restart: bool) -> None:
        """End an actor; with `no_restart` False its constructor runs again if it may."""
        actor = self.find(actor_id)
        if actor is None or actor.death is not None:
            return
        limit = actor.template.max_restarts
        if not no_restart and (limit < 0 or actor.restarts < limit):
            actor.restarts += 1
            self._construct(actor)
            return
        self._kept.pop(actor_id, None)
        actor.end(_died(actor, "it was killed by `ray.kill`"))

    def out_of_scope(self, actor_id: bytes) -> None:
        """The last handle of an actor of an earlier session is gone: it ended with that session."""

    def close(self) -> None:
        """The session ends."""
        for actor in list(self._actors.values()):
            if actor.death is None:
                actor.end(_died(actor, "its session has ended"))


def _died(actor: LocalActor, reason: str) -> ActorDiedError:
    spec = actor.spec
    message = f"The actor is dead because {reason}."
    return ActorDiedError(
        ActorDeath(spec.actor_id.hex(), message, spec.class_name, spec.name, spec.namespace)
    )
