"""`init`, `shutdown`, `get`, `put`, `wait`, `cancel`, `kill`, `get_actor`: the verbs.

Each checks its arguments as Ray does and hands them to this process's worker library. The first
use of one of them connects (`init()` with no arguments) when nothing is connected yet; in worker
processes the connection is there from the start.

Importing this module loads neither protobuf nor numpy: `runtime.worker` comes with the first
connection. Thread-safe: `init` and `shutdown` exclude each other, everything else is the worker
library's own business.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from miniray import _native
from miniray.ids import ObjectRef

if TYPE_CHECKING:
    from miniray.actor import ActorHandle
    from miniray.generator import ObjectRefGenerator
    from miniray.runtime.worker import CoreWorker

R = TypeVar("R")
W = TypeVar("W")

_library: Any = None
"""`miniray.runtime.worker`, once something is connected."""


# ---- the connection ----


def connected_worker() -> CoreWorker:
    """This process's worker library; connects at first use. Raises after a fork, and in a worker
    process whose raylet is gone."""
    if _library is not None:
        worker: CoreWorker | None = _library._current
        if worker is not None and _native.fork_generation() == _library._generation:
            return worker
    return _connect()


def _connect() -> CoreWorker:
    global _library
    library = sys.modules.get("miniray.runtime.worker")
    if library is None or library.current_or_none() is None:
        if library is not None and library._current is not None:
            library.current()  # a fork of a connected process: raises, saying so
        from miniray import session

        session.init()
        library = sys.modules["miniray.runtime.worker"]
    _library = library
    worker: CoreWorker = library.current()
    return worker


def current_worker() -> CoreWorker | None:
    """This process's worker library if it is connected. Never connects."""
    library = sys.modules.get("miniray.runtime.worker")
    worker: CoreWorker | None = library.current_or_none() if library is not None else None
    return worker


def is_initialized() -> bool:
    """True between `init` and `shutdown`, and always in worker processes."""
    return current_worker() is not None


# ---- objects ----


@overload
def get(object_refs: ObjectRef[R], *, timeout: float | None = None) -> R: ...


@overload
def get(object_refs: Sequence[ObjectRef[R]], *, timeout: float | None = None) -> list[R]: ...


def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a reference, or the list of values of a list of references.

    Waits until all are there, at most `timeout` seconds (None: as long as it takes; 0: only what
    is there). Raises GetTimeoutError, or the first error among the tasks that make the values, as
    a type that is both RayTaskError and the user's. Arrays are read-only views on shared memory.
    """
    worker = connected_worker()
    if type(object_refs) is ObjectRef:
        if object_refs.entry is None:
            object_refs = _adopt(worker, object_refs)
        return worker.get((object_refs,), timeout)[0]
    if not isinstance(object_refs, list):
        if _is_generator(object_refs):
            return object_refs
        raise ValueError(
            f"Invalid type of object refs, {type(object_refs)}, is given. "
            "'object_refs' must either be an ObjectRef or a list of ObjectRefs. "
        )
    return worker.get(_checked(worker, object_refs), timeout)


def _checked(worker: CoreWorker, refs: list[Any]) -> list[ObjectRef[Any]]:
    for ref in refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"Attempting to call `get` on the value {ref}, which is not an ray.ObjectRef.")
        if ref.entry is None:
            return [_adopt(worker, one) for one in refs]
    return refs


def _adopt(worker: CoreWorker, ref: ObjectRef[Any]) -> ObjectRef[Any]:
    """A live reference for one that was made from an id by hand."""
    return ref if ref.entry is not None else worker.ref_restored(ref.binary(), b"")


def _is_generator(value: Any) -> bool:
    module = sys.modules.get("miniray.generator")
    return module is not None and isinstance(value, module.ObjectRefGenerator)


def put(value: R, *, _owner: ActorHandle[Any] | None = None, _tensor_transport: Any = None) -> ObjectRef[R]:
    """Store a value and return a reference to it. The value must not be changed afterwards.

    TypeError for an ObjectRef and for what cannot be pickled; ObjectStoreFullError when the
    value cannot be stored.
    """
    if _owner is not None:
        raise ValueError("The experimental `_owner` argument of `put` does not exist any more.")
    return connected_worker().put(value)


def wait(
    ray_waitables: list[W],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[W], list[W]]:
    """Split references (and generators) into those that are ready and the rest, in input order.

    Returns as soon as `num_returns` are ready, or after `timeout` seconds, with at most
    `num_returns` ready ones. A generator is ready when its next reference is. With `fetch_local`
    the values of ready ones are on their way to this node. TypeError and ValueError for wrong or
    repeated arguments.
    """
    worker = connected_worker()
    if isinstance(ray_waitables, ObjectRef) or _is_generator(ray_waitables):
        raise TypeError(
            "wait() expected a list of ray.ObjectRef or ray.ObjectRefGenerator, got a single "
            f"ray.ObjectRef or ray.ObjectRefGenerator {ray_waitables}"
        )
    if not isinstance(ray_waitables, list):
        raise TypeError(
            f"wait() expected a list of ray.ObjectRef or ray.ObjectRefGenerator, got {type(ray_waitables)}"
        )
    if timeout is not None and timeout < 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    refs: list[Any] = ray_waitables
    distinct = _native.check_refs(refs, ObjectRef)
    generators = distinct is None and _has_generators(refs)
    if not refs:
        return [], []
    if distinct is None:
        distinct = len(set(refs)) == len(refs)
        if not generators:
            refs = [_adopt(worker, ref) for ref in refs]
    if not distinct:
        raise ValueError("Wait requires a list of unique ray_waitables.")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(refs):
        raise ValueError(
            "num_returns cannot be greater than the number of ray_waitables provided to ray.wait."
        )
    if generators:
        from miniray import waitables

        return waitables.wait_mixed(worker, refs, num_returns, timeout)
    return worker.wait(refs, num_returns, timeout, fetch_local)  # type: ignore[return-value]  # those given


def _has_generators(waitables: list[Any]) -> bool:
    """Whether generators are among the references. TypeError for what is neither."""
    found = False
    for waitable in waitables:
        if type(waitable) is not ObjectRef:
            if not _is_generator(waitable):
                raise TypeError(
                    "wait() expected a list of ray.ObjectRef or ray.ObjectRefGenerator, "
                    f"got list containing {type(waitable)}"
                )
            found = True
    return found


def cancel(
    ray_waitable: ObjectRef[Any] | ObjectRefGenerator, *, force: bool = False, recursive: bool = True
) -> None:
    """Give up the task behind a reference or generator; nothing happens if it has ended.

    A waiting task never starts; a running one gets a KeyboardInterrupt (asyncio: it is cancelled),
    with `force` its worker is killed (not for actor methods: ValueError). `get` then raises
    TaskCancelledError. `recursive`: what the task started is cancelled too.
    """
    worker = connected_worker()
    if _is_generator(ray_waitable):
        ray_waitable = ray_waitable.completed()  # type: ignore[union-attr]
    if not isinstance(ray_waitable, ObjectRef):
        raise TypeError(
            "ray.cancel() only supported for object refs. For actors, try ray.kill(). "
            f"Got: {type(ray_waitable)}."
        )
    worker.cancel(_adopt(worker, ray_waitable), force, recursive)


# ---- actors ----


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor at once; calls in flight fail. With `no_restart` False it restarts if it may."""
    worker = connected_worker()
    from miniray.actor import ActorHandle

    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"ray.kill() only supported for actors. For tasks, try ray.cancel(). Got: {type(actor)}."
        )
    actor._ray_rejoin()
    worker.kill_actor(actor._ray_id, no_restart)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """A handle to the living actor of that name. ValueError if there is none.

    The handle does not keep the actor alive.
    """
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    if namespace is not None:
        check_namespace(namespace)
    found = find_actor(name, namespace)
    if found is not None:
        return found
    space = connected_worker().namespace if namespace is None else namespace
    raise ValueError(
        f"Failed to look up actor with name '{name}'. This could because 1. You are trying to look up "
        "a named actor you didn't create. 2. The named actor died. 3. You did not use a namespace "
        f"matching the namespace of the actor (looked in '{space}').{_lookalikes(name, space)}"
    )


def find_actor(name: str, namespace: str | None) -> ActorHandle[Any] | None:
    """The same for a name and a namespace that are in order; None if there is no such actor."""
    from miniray._proto import gcs_pb2 as gcs
    from miniray.actor import restore_handle

    worker = connected_worker()
    space = worker.namespace if namespace is None else namespace
    try:
        info = worker.request("actor_lookup", gcs.ActorLookup(name=name, namespace=space)).actor
    except ValueError:
        return None
    return restore_handle(info.spec.actor_id, info.spec.handle)


def _lookalikes(name: str, namespace: str) -> str:
    """Which actors may have been meant by a name that there is not."""
    from difflib import get_close_matches

    from miniray.util import list_named_actors

    living = [(row["name"], row["namespace"]) for row in list_named_actors(all_namespaces=True)]
    elsewhere = sorted(space for found, space in living if found == name)
    if elsewhere:
        return f" There is one of that name in the namespace '{elsewhere[0]}'."
    close = get_close_matches(name, [found for found, space in living if space == namespace], n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_namespace(namespace: object) -> None:
    """TypeError or ValueError for what cannot be the name of a namespace."""
    if not isinstance(namespace, str):
        raise TypeError("namespace must be None or a string.")
    if not namespace:
        raise ValueError('"" is not a valid namespace. Pass None to not specify a namespace.')


def stale_handle(actor: ActorHandle[Any]) -> Exception:
    """The error for a handle of an earlier session."""
    from miniray.exceptions import ActorHandleNotFoundError

    return ActorHandleNotFoundError(
        f"Cannot find the actor {actor._ray_id.hex()}. It might be dead or it's from a different cluster: "
        "ActorHandle objects are not valid across Ray sessions. Create the actor, or get a handle of it "
        "by name, in this session."
    )


# ---- what the surrounding task hands down ----


def captured_group(worker: CoreWorker) -> Any:
    """The placement group that the running task passes on to what it starts, or None."""
    from miniray import runtime_context

    if not runtime_context.captures_children(worker):
        return None
    from miniray.util.placement_group import PlacementGroup

    return PlacementGroup.from_binary(runtime_context.current_group_id(worker))


def runtime_env_for(worker: CoreWorker, own: Mapping[str, Any] | None) -> str:
    """Canonical JSON of the runtime_env of a task or actor that asks for `own`."""
    from miniray import options, runtime_context

    inherited = runtime_context.current_runtime_env(worker)
    return options.runtime_env_of(own, inherited)


# ---- accelerators ----


def get_gpu_ids() -> list[int] | list[str]:
    """The GPUs that the current worker may use, as the numbers or names CUDA_VISIBLE_DEVICES has."""
    from miniray.runtime_context import accelerator_ids

    return accelerator_ids(connected_worker()).get("GPU", [])
